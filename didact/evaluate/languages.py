"""How well a model predicts a language that it only sees examples of: against the automaton itself, and n-grams.

At every symbol: accuracy, whether the likeliest symbol is possible; tvd, half the L1 distance between the predicted
and the true distribution; nll less the automaton's own, which no predictor that does not see the future can be below
on average.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from didact.data import automata, encode
from didact.data.encode import TokenizedExample
from didact.evaluate import statistics
from didact.evaluate.references import hidden_states, ngrams
from didact.models import build, forward
from didact.models.model import Model
from didact.types import Metric, Text, UserError

Array = NDArray[np.float64]
SEPARATOR = "|"
LAST = 2  # strings at the end of a prompt that numbers are of: by then the others have been seen
SMOOTHED = 300  # prompts, at most, that learn how to smooth n-grams


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts with their automata.

    Attributes:
        rows: what a model reads.
        ids: `(B, T)`, symbols 0 to V - 1, the separator V, V + 1 behind the end.
        truth: the true distribution of every symbol, `(B, T, V)`; zero where none stands.
        state: where the smallest automaton is after every symbol, `(B, T)`; -1 where none stands.
        symbols: the model's token of every symbol, `(V,)`.
        separator: its token of the separator.
    """

    rows: list[TokenizedExample]
    ids: NDArray[np.int64]
    truth: Array
    state: NDArray[np.int64]
    symbols: NDArray[np.int64]
    separator: int

    @property
    def string(self) -> NDArray[np.int64]:
        """In which string of its prompt every token stands, `(B, T)`, counted from the last, which is 1."""
        ends = self.ids == self.truth.shape[2]
        return np.asarray(1 + ends.sum(1, keepdims=True) - (ends.cumsum(1) - ends))


def has_automata(text: Sequence[Text]) -> bool:
    """Whether records bring the automata they are of; all of them, or none.

    Raises:
        UserError: some do.
    """
    told = [bool(record.metadata and "automaton" in record.metadata) for record in text]
    if any(told) and not all(told):
        raise UserError(f"text: record {told.index(False) + 1} has no 'automaton' in its metadata, others have one")
    return any(told)


def tokenizer_of(text: Sequence[Text]) -> Any:
    """One token a word, for texts whose words are symbols."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [build.PAD, build.BOS, build.EOS, SEPARATOR, *words(text)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=build.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=build.BOS, eos_token=build.EOS, pad_token=build.PAD,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def words(text: Sequence[Text]) -> list[str]:
    """The symbols of all records, in order."""
    return sorted({word for record in text for word in record.text.split()} - {SEPARATOR})


def keys(text: Sequence[Text]) -> list[str]:
    """Of every record its language: two with one key are the same, whatever their states are called."""
    number = {word: i for i, word in enumerate(words(text))}
    told = [(r.metadata or {})["automaton"] for r in text]
    tables = [automata.table(each, number, f"text: record {at}") for at, each in enumerate(told, 1)]
    return [mark.hex() for mark in automata.marks(automata.minimal(automata.stacked(tables)))]


def prompts(text: Sequence[Text], tokenizer: Any, window: int, symbols: Sequence[str] | None = None) -> Prompts:
    """Prompts as a model reads them, at most `window` tokens of each, with what is true of them.

    `symbols` are those a model knows; by default those of the prompts.

    Raises:
        UserError: a symbol is not one token, or a text is not of its automaton.
    """
    known = list(symbols or words(text))
    tokens = {word: encode.pieces(tokenizer, [f" {word}"])[0] for word in [*known, SEPARATOR]}
    if many := next((word for word, ids in tokens.items() if len(ids) != 1), None):
        raise UserError(f"text: '{many}' is {len(tokens[many])} tokens of this model; symbols must be one token each")
    number = {word: i for i, word in enumerate([*known, SEPARATOR])}
    rows, ids, tables = [], [], []
    for at, record in enumerate(text, 1):
        place = f"text: record {at}"
        tables.append(automata.table((record.metadata or {})["automaton"], {w: number[w] for w in known}, place))
        row = encode.windows(tokenizer, [record.text], window)[0]
        read = [number[word] for word in record.text.split()][:window]
        if [*row.completion[1 : len(read)]] != [tokens[[*known, SEPARATOR][i]][0] for i in read[1:]]:
            raise UserError(f"{place}: symbols and separators must be one token each, between blanks, and are not")
        rows.append(row)
        ids.append(read)
    width, count = max(map(len, ids)), len(known)
    table = np.array([[*row, *[count + 1] * (width - len(row))] for row in ids])
    languages = automata.stacked(tables)
    truth, state = automata.following(languages, table), automata.after(automata.minimal(languages), table)
    came = np.take_along_axis(truth, np.minimum(table, count - 1)[..., None], 2)[..., 0]
    for at, t in np.argwhere((came == 0) & (table < count)).tolist():
        raise UserError(f"text: record {at + 1}: symbol {t + 1}, '{known[table[at, t]]}', cannot come by its automaton")
    return Prompts(rows, table, truth, state, np.array([tokens[w][0] for w in known]), tokens[SEPARATOR][0])


def predicted(model: Model, of: Prompts) -> tuple[Array, Array]:
    """A model's distribution over the symbols before every token, `(B, T, V)`, and its logp of the token, `(B, T)`."""
    shape = of.truth.shape
    said, logp = np.zeros(shape), np.zeros(shape[:2])
    symbols = torch.from_numpy(of.symbols)

    def distribution(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits[:, symbols.to(logits.device)].double().softmax(-1)

    for group, batch, values in forward.score(model, of.rows, {"p": distribution}):
        row = batch.row.cpu().numpy()
        p = values["p"].cpu().numpy()
        for line, i in enumerate(group):
            own = p[row == line][: shape[1]]
            said[i, : len(own)] = own
    real = of.ids < shape[2]
    each = np.take_along_axis(said, np.minimum(of.ids, shape[2] - 1)[..., None], 2)[..., 0]
    with np.errstate(divide="ignore"):
        logp[real] = np.log(each[real])
    return said, logp


def in_parts(predict: Callable[[NDArray[np.int64], int], Array], of: Prompts, rows: int) -> Array:
    """`predict(ids, symbols)` of every prompt, so many at a time; nothing where no symbol stands."""
    parts = np.array_split(of.ids, max(1, len(of.ids) // rows))
    said = np.concatenate([predict(ids, of.truth.shape[2]) for ids in parts])
    return np.asarray(said * (of.truth.sum(-1, keepdims=True) > 0))


def references(of: Prompts, taught: Prompts | None, seed: int) -> dict[str, Array]:
    """What predictors say that have only the prompt: n-grams with back-off and, of `taught` languages, smoothed; an
    automaton fitted by Baum-Welch; and the equal distribution."""
    out = {f"{n}-gram": in_parts(functools.partial(ngrams.followers, n=n), of, 16) for n in (2, 3)}
    if taught is not None:
        made = ngrams.smoothing(taught.ids, taught.truth.shape[2], seed)
        out["smoothed n-grams"] = in_parts(lambda ids, symbols: made(ids, symbols).double().exp().numpy(), of, 16)
    out["Baum-Welch"] = in_parts(hidden_states.expected, of, 64)
    return out | {"any symbol": np.full(of.truth.shape, 1 / of.truth.shape[2])}


def over_last(each: Array, of: Prompts) -> Array:
    """The mean of values `(B, T)` over the symbols of the last strings of every prompt, `(B,)`."""
    chosen = (of.string <= LAST) & (of.truth.sum(-1) > 0)
    return np.asarray(np.where(chosen, each, 0).sum(1) / np.maximum(chosen.sum(1), 1))


def scores(said: Array, logp: Array | None, of: Prompts) -> dict[str, Array]:
    """Of every prompt, over its last strings `(B,)`: accuracy, tvd and, given `logp`, nll above the automaton's."""
    return {name: over_last(each, of) for name, each in at_each(said, logp, of).items()}


def at_each(said: Array, logp: Array | None, of: Prompts) -> dict[str, Array]:
    """The same of every token, `(B, T)`."""
    best = np.take_along_axis(of.truth, said.argmax(-1)[..., None], 2)[..., 0]
    out = {"accuracy": (best > 0).astype(float), "tvd": 0.5 * np.abs(said - of.truth).sum(-1)}
    if logp is not None:
        out["excess"] = -logp - np.log((of.truth > 0).sum(-1).clip(1))
    return out


def curve(said: Array, of: Prompts, name: str) -> list[float]:
    """Mean over prompts by string, from the first that all prompts have (counted from the end) to the last."""
    each, there = at_each(said, None, of)[name], of.truth.sum(-1) > 0
    most = int(of.string[:, 0].min())
    return [float(each[there & (of.string == k)].mean()) for k in range(most, 0, -1)]


def check_floor(excess: Array, name: str) -> None:
    """Stop where a predictor is better than the automaton that wrote the strings: it must see what it predicts.

    Raises:
        UserError: the whole 99.9 % interval over prompts lies below 0.
    """
    found = statistics.mean_interval(excess, 0.999)
    if found.high < 0:
        raise UserError(
            f"{name}: {-found.estimate:.3f} nats a symbol below the entropy of the languages: it sees what it is to "
            "predict (a leak in the model or the data)"
        )


def findings(arms: Mapping[str, Model], of: Prompts, taught: Prompts | None = None, seed: int = 0) -> dict[str, Any]:
    """What the models of every arm and the `references` predict of held-out languages, and how far the models are from
    each reference and from the automaton; intervals are over prompts.

    Raises:
        UserError: one is better than can be.
    """
    out: dict[str, Any] = {"prompts": len(of.ids), "predictors": {}, "by_string": {"accuracy": {}, "tvd": {}}}
    said = {name: predicted(model, of) for name, model in arms.items()}
    others = references(of, taught, seed)
    for name, (p, logp) in (said | {name: (p, None) for name, p in others.items()}).items():
        found = scores(p, logp, of)
        if "excess" in found:
            check_floor(found["excess"], name)
        out["predictors"][name] = {k: statistics.mean_interval(v)._asdict() for k, v in found.items()}
        for measure, lines in out["by_string"].items():
            lines[name] = curve(p, of, measure)
    out["apart"] = {
        arm: {
            name: statistics.mean_interval(over_last(0.5 * np.abs(p - q).sum(-1), of))._asdict()
            for name, q in ({"the automaton": of.truth} | others).items()
        }
        for arm, (p, _) in said.items()
    }
    return out


def metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    """What `findings` says of the arm with heads; before: the control, where there is one."""
    heads, control = (found["predictors"].get(arm) for arm in ("heads", "control"))

    def metric(name: str, better: Literal["higher", "lower"], text: str) -> Metric:
        now, before = heads[name], control[name]["estimate"] if control else None
        ends, text = (now["low"], now["high"]), f"{text}; before: weights that look nothing up"
        return Metric(after=now["estimate"], before=before, n=found["prompts"], ci=ends, better=better, help=text)

    return {
        "accuracy": metric("accuracy", "higher", "symbols of held-out languages whose first choice is possible"),
        "tvd": metric("tvd", "lower", "distance from the true distribution of the next symbol"),
    }
