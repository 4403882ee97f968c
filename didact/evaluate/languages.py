"""How well a model predicts a formal language from examples in its prompt, against the automaton itself and n-grams.

At every symbol: accuracy, whether the likeliest symbol is possible; tvd, half the L1 distance between the predicted
and the true distribution; nll minus the automaton's own, which is nonnegative on average for every predictor that
does not see the future.

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
LAST = 2  # strings at the end of a prompt that scores are averaged over: the others are context
SMOOTHED = 300  # most prompts that n-gram smoothing is fitted to


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts with their automata.

    Attributes:
        rows: tokenized prompts.
        ids: `(B, T)`, symbols 0 to V - 1, the separator V, V + 1 after the end.
        truth: the true distribution of every symbol, `(B, T, V)`; zero at other tokens.
        state: the minimal automaton's state after every symbol, `(B, T)`; -1 at other tokens.
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
        """The string of its prompt that every token belongs to, `(B, T)`, counted from the last, which is 1."""
        ends = self.ids == self.truth.shape[2]
        return np.asarray(1 + ends.sum(1, keepdims=True) - (ends.cumsum(1) - ends))


def has_automata(text: Sequence[Text]) -> bool:
    """Whether the records have their automata in their metadata.

    Raises:
        UserError: only some have.
    """
    present = [bool(record.metadata and "automaton" in record.metadata) for record in text]
    if any(present) and not all(present):
        raise UserError(f"text: record {present.index(False) + 1} has no 'automaton' in its metadata, others have one")
    return any(present)


def tokenizer_of(text: Sequence[Text]) -> Any:
    """A tokenizer with one token a word, for texts whose words are symbols."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [build.PAD, build.BOS, build.EOS, SEPARATOR, *words(text)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=build.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=build.BOS, eos_token=build.EOS, pad_token=build.PAD,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def words(text: Sequence[Text]) -> list[str]:
    """The symbols of all records, in order."""
    return sorted({word for record in text for word in record.text.split()} - {SEPARATOR})


def keys(text: Sequence[Text]) -> list[str]:
    """A key of every record's language: records with equal keys have the same language, whatever the state names."""
    index = {word: i for i, word in enumerate(words(text))}
    specs = [(r.metadata or {})["automaton"] for r in text]
    tables = [automata.table(spec, index, f"text: record {number}") for number, spec in enumerate(specs, 1)]
    return [mark.hex() for mark in automata.marks(automata.minimal(automata.stacked(tables)))]


def prompts(text: Sequence[Text], tokenizer: Any, window: int, symbols: Sequence[str] | None = None) -> Prompts:
    """Tokenize texts to prompts of at most `window` tokens, with the true distributions and states.

    `symbols` are the model's; by default those of the texts.

    Raises:
        UserError: a symbol is not one token, or a text is not in the language of its automaton.
    """
    names = list(symbols or words(text))
    tokens = {word: encode.pieces(tokenizer, [f" {word}"])[0] for word in [*names, SEPARATOR]}
    if unusable := next((word for word, ids in tokens.items() if len(ids) != 1), None):
        raise UserError(
            f"text: '{unusable}' is {len(tokens[unusable])} tokens of this model; symbols must be one token each"
        )
    index = {word: i for i, word in enumerate([*names, SEPARATOR])}
    rows, ids, tables = [], [], []
    for i, record in enumerate(text, 1):
        where = f"text: record {i}"
        tables.append(automata.table((record.metadata or {})["automaton"], {w: index[w] for w in names}, where))
        row = encode.windows(tokenizer, [record.text], window)[0]
        observed = [index[word] for word in record.text.split()][:window]
        if [*row.completion[1 : len(observed)]] != [tokens[[*names, SEPARATOR][i]][0] for i in observed[1:]]:
            raise UserError(f"{where}: symbols and separators must be one token each, separated by blanks")
        rows.append(row)
        ids.append(observed)
    width, count = max(map(len, ids)), len(names)
    table = np.array([[*row, *[count + 1] * (width - len(row))] for row in ids])
    languages = automata.stacked(tables)
    truth, state = automata.following(languages, table), automata.after(automata.minimal(languages), table)
    p = np.take_along_axis(truth, np.minimum(table, count - 1)[..., None], 2)[..., 0]
    for i, t in np.argwhere((p == 0) & (table < count)).tolist():
        raise UserError(
            f"text: record {i + 1}: symbol {t + 1}, '{names[table[i, t]]}', is impossible under its automaton"
        )
    return Prompts(rows, table, truth, state, np.array([tokens[w][0] for w in names]), tokens[SEPARATOR][0])


def predicted(model: Model, prompts: Prompts) -> tuple[Array, Array]:
    """A model's distribution over the symbols before every token, `(B, T, V)`, and its logp of the token, `(B, T)`."""
    shape = prompts.truth.shape
    probabilities, logp = np.zeros(shape), np.zeros(shape[:2])
    symbols = torch.from_numpy(prompts.symbols)

    def distribution(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits[:, symbols.to(logits.device)].double().softmax(-1)

    for group, batch, values in forward.score(model, prompts.rows, {"p": distribution}):
        row = batch.row.cpu().numpy()
        p = values["p"].cpu().numpy()
        for j, i in enumerate(group):
            p_row = p[row == j][: shape[1]]
            probabilities[i, : len(p_row)] = p_row
    is_symbol = prompts.ids < shape[2]
    p_token = np.take_along_axis(probabilities, np.minimum(prompts.ids, shape[2] - 1)[..., None], 2)[..., 0]
    with np.errstate(divide="ignore"):
        logp[is_symbol] = np.log(p_token[is_symbol])
    return probabilities, logp


def in_parts(predict: Callable[[NDArray[np.int64], int], Array], prompts: Prompts, rows: int) -> Array:
    """`predict(ids, symbols)` for every prompt, `rows` at a time; zero at tokens that are not symbols."""
    parts = np.array_split(prompts.ids, max(1, len(prompts.ids) // rows))
    probabilities = np.concatenate([predict(ids, prompts.truth.shape[2]) for ids in parts])
    return np.asarray(probabilities * (prompts.truth.sum(-1, keepdims=True) > 0))


def references(prompts: Prompts, training: Prompts | None, seed: int) -> dict[str, Array]:
    """Distributions of predictors that see only the prompt: n-grams with back-off; n-grams with smoothing fitted to
    `training` prompts; an automaton fitted by Baum-Welch; and the uniform distribution."""
    out = {f"{n}-gram": in_parts(functools.partial(ngrams.followers, n=n), prompts, 16) for n in (2, 3)}
    if training is not None:
        smoothed = ngrams.smoothing(training.ids, training.truth.shape[2], seed)
        out["smoothed n-grams"] = in_parts(
            lambda ids, symbols: smoothed(ids, symbols).double().exp().numpy(), prompts, 16
        )
    out["Baum-Welch"] = in_parts(hidden_states.expected, prompts, 64)
    return out | {"any symbol": np.full(prompts.truth.shape, 1 / prompts.truth.shape[2])}


def over_last(values: Array, prompts: Prompts) -> Array:
    """Mean of values `(B, T)` over the symbols of the last strings of every prompt, `(B,)`."""
    selected = (prompts.string <= LAST) & (prompts.truth.sum(-1) > 0)
    return np.asarray(np.where(selected, values, 0).sum(1) / np.maximum(selected.sum(1), 1))


def scores(probabilities: Array, logp: Array | None, prompts: Prompts) -> dict[str, Array]:
    """Scores of every prompt over its last strings, `(B,)`: accuracy, tvd and, given `logp`, excess nll."""
    return {name: over_last(values, prompts) for name, values in at_each(probabilities, logp, prompts).items()}


def at_each(probabilities: Array, logp: Array | None, prompts: Prompts) -> dict[str, Array]:
    """Scores of every token, `(B, T)`: accuracy, tvd and, given `logp`, the nll above the automaton's."""
    best = np.take_along_axis(prompts.truth, probabilities.argmax(-1)[..., None], 2)[..., 0]
    out = {"accuracy": (best > 0).astype(float), "tvd": 0.5 * np.abs(probabilities - prompts.truth).sum(-1)}
    if logp is not None:
        out["excess"] = -logp - np.log((prompts.truth > 0).sum(-1).clip(1))
    return out


def curve(probabilities: Array, prompts: Prompts, name: str) -> list[float]:
    """Mean over prompts by string, from the earliest that all prompts have (counted from the end) to the last."""
    values, is_symbol = at_each(probabilities, None, prompts)[name], prompts.truth.sum(-1) > 0
    count = int(prompts.string[:, 0].min())
    return [float(values[is_symbol & (prompts.string == k)].mean()) for k in range(count, 0, -1)]


def check_floor(excess: Array, name: str) -> None:
    """Check that a predictor is no better than the automaton that generated the strings: else it sees its targets.

    Raises:
        UserError: the whole 99.9 % interval over prompts lies below 0.
    """
    interval = statistics.mean_interval(excess, 0.999)
    if interval.high < 0:
        raise UserError(
            f"{name}: {-interval.estimate:.3f} nats a symbol below the entropy of the languages: it sees its targets "
            "(a leak in the model or the data)"
        )


def findings(
    arms: Mapping[str, Model], prompts: Prompts, training: Prompts | None = None, seed: int = 0
) -> dict[str, Any]:
    """Scores of every arm's model and of the `references` on held-out languages, and the distances of the models from
    each reference and from the automaton; intervals are over prompts.

    Raises:
        UserError: a predictor is better than the automaton: see `check_floor`.
    """
    out: dict[str, Any] = {"prompts": len(prompts.ids), "predictors": {}, "by_string": {"accuracy": {}, "tvd": {}}}
    predictions = {name: predicted(model, prompts) for name, model in arms.items()}
    baselines = references(prompts, training, seed)
    for name, (p, logp) in (predictions | {name: (p, None) for name, p in baselines.items()}).items():
        values = scores(p, logp, prompts)
        if "excess" in values:
            check_floor(values["excess"], name)
        out["predictors"][name] = {k: statistics.mean_interval(v)._asdict() for k, v in values.items()}
        for measure, lines in out["by_string"].items():
            lines[name] = curve(p, prompts, measure)
    out["apart"] = {
        arm: {
            name: statistics.mean_interval(over_last(0.5 * np.abs(p - q).sum(-1), prompts))._asdict()
            for name, q in ({"the automaton": prompts.truth} | baselines).items()
        }
        for arm, (p, _) in predictions.items()
    }
    return out


def metrics(findings: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics of the arm with heads from `findings`; before: the control arm, if there is one."""
    heads, control = (findings["predictors"].get(arm) for arm in ("heads", "control"))

    def metric(name: str, better: Literal["higher", "lower"], text: str) -> Metric:
        after, before = heads[name], control[name]["estimate"] if control else None
        ends, text = (after["low"], after["high"]), f"{text}; before: weights that look nothing up"
        return Metric(after=after["estimate"], before=before, n=findings["prompts"], ci=ends, better=better, help=text)

    return {
        "accuracy": metric(
            "accuracy", "higher", "share of symbols of held-out languages where the model's first choice is possible"
        ),
        "tvd": metric("tvd", "lower", "distance from the true distribution of the next symbol"),
    }
