"""The likeliest span of a passage, exactly: one decoder row per start scores every span that begins there.

The score of the span x_i..x_j under a prompt X, lower is better, SUM and not mean, the end token included:

    total(i, j) = sum_{k=i..j} -log P(x_k | X, x_i..x_{k-1})  -  log P(end | X, x_i..x_j)

The logits after x_j score both the next passage token and the end, so n rows give all n(n+1)/2 spans. Rows share the
prompt, which is read once; they are as long as the passage lets them be and never wrap around it.
Source: Castel et al., How Optimal is Greedy Decoding for Extractive Question Answering?, arXiv:2108.05857.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from didact.data import encode, spans
from didact.data.encode import TokenizedExample
from didact.data.streams import by_length
from didact.infer import beam
from didact.models import forward, prefix
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import UserError

Floats = NDArray[np.float64]
TEMPLATE = "Text: {context} Question: {question} Answer:"
SENTINELS = ("<extra_id_0>", "<extra_id_1>")
ENCODER_DECODERS = {"t5"}  # whose decoder is exact from a cache after an encoder pass, proven by the parity test
LOGITS = 1 << 26  # held at once by one chunk (256 MiB in float32)
FREE = 64  # tokens of a free answer where no cap is given
PROBED = 4  # starts tried first, to bound the others
SLACK = 1e-4  # nats by which rounding may move a bound


# --- questions as tokens ---------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a model is asked, and how it answers.

    Args:
        template: text with `{context}` and `{question}`.
        bos: constant tokens a decoder answers after (T5: `<extra_id_0>`).
        end: the token after an answer.
    """

    template: str
    bos: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class Ask:
    """One question about one passage (or one window of it), as tokens.

    `prompt` is what the model reads, `passage (n,)` the tokens whose spans may answer, `spots` where in `context`
    each of them stands, as characters.
    """

    prompt: tuple[int, ...]
    passage: tuple[int, ...]
    context: str
    spots: tuple[tuple[int, int], ...]


def form(model: Model, template: str = TEMPLATE, bos: str = "auto", end: str = "auto") -> Form:
    """The form for a model: sentinels around the answer of an encoder-decoder, an end token after a decoder's.

    Args:
        model: causal or seq2seq.
        template: text with `{context}` and `{question}`; an encoder-decoder's is followed by `bos` and a full stop.
        bos: first token of a decoder's answer: a token, `none`, or `auto` (`<extra_id_0>` for seq2seq).
        end: last token of an answer: a token, `eos`, `newline`, or `auto` (`<extra_id_1>` for seq2seq, else eos).

    Raises:
        UserError: a token that the tokenizer does not have, or a template without its two slots.
    """
    for slot in ("{context}", "{question}"):
        if slot not in template:
            raise UserError(f"template {template!r}: {slot} is missing")
    sequence = model.kind == "seq2seq"
    first = {"auto": SENTINELS[0] if sequence else "none"}.get(bos, bos)
    last = {"auto": SENTINELS[1] if sequence else "eos"}.get(end, end)
    if not sequence and first != "none":
        raise UserError(f"bos = {bos!r}: a decoder-only model answers after the prompt: put the text into the template")
    start = () if first == "none" else (_token(model, first),)
    if sequence and start:
        template = f"{template}{first}."
    return Form(template, start, _end(model, last))


def text_ids(model: Model, text: str) -> list[int]:
    """A passage, or an answer, as tokens: after one space, so that a word is the same tokens in both."""
    return list(model.tokenizer(_spaced(text), add_special_tokens=False)["input_ids"])


def ask(model: Model, how: Form, context: str, question: str) -> Ask:
    """One question about all of a passage.

    Raises:
        UserError: the passage is empty.
    """
    passage = text_ids(model, context)
    if not passage or not context.strip():
        raise UserError("the passage is empty: there is no span to answer with")
    before, _, after = how.template.partition("{context}")
    prompt = before.replace("{question}", question) + context + after.replace("{question}", question)
    ids = encode.prompt_ids(model.tokenizer, prompt, model.kind)
    return Ask(tuple(ids), tuple(passage), *_spots(model, context, passage))


def asks(
    model: Model, how: Form, context: str, question: str, limit: int = 512, window: int = 512, stride: int = 120
) -> list[Ask]:
    """The same, in windows of words where the prompt would be longer than `limit` tokens; see `data.spans.windows`."""
    pieces = spans.windows(context, lambda c: len(ask(model, how, c, question).prompt) <= limit, window, stride)
    return [ask(model, how, piece, question) for piece in pieces]


def _spots(model: Model, context: str, passage: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text that answers are cut from, and where in it each token stands."""
    tokenizer = model.tokenizer
    if getattr(tokenizer, "is_fast", False):
        ahead = len(_spaced(context)) - len(context)
        read: Any = tokenizer(_spaced(context), add_special_tokens=False, return_offsets_mapping=True)
        return context, tuple((max(0, a - ahead), b - ahead) for a, b in read["offset_mapping"])
    texts = [str(tokenizer.decode(list(passage[:k]))) for k in range(len(passage) + 1)]
    return texts[-1], tuple((len(a), len(b)) for a, b in itertools.pairwise(texts))


def _spaced(text: str) -> str:
    return text if text[:1].isspace() else " " + text


def _token(model: Model, name: str) -> int:
    known = model.tokenizer.get_vocab()
    if name not in known:
        raise UserError(
            f"this tokenizer has no token {name!r}: name one it has (--bos, --end; --bos none --end eos for a model "
            "without sentinels), or add it to the tokenizer and the embeddings"
        )
    return int(known[name])


def _end(model: Model, name: str) -> int:
    if name == "eos":
        if model.tokenizer.eos_token_id is None:
            raise UserError("this tokenizer has no end token: name one it has with --end")
        return int(model.tokenizer.eos_token_id)
    if name == "newline":
        ids = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(f"end = newline: this tokenizer spells it in {len(ids)} tokens; name a token with --end")
        return int(ids[0])
    return _token(model, name)


# --- answers ---------------------------------------------------------------------------------

Decoder = Literal["exact", "greedy", "constrained_greedy", "beam"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How answers are looked for.

    Args:
        max_len: tokens of an answer at most; 0 is no limit for spans (and 64 for what is decoded freely).
        top: distinct spans given per question by `exact`.
        length_norm: compare spans by nll per token; see `best`.
        beams: width of `beam`.
        limit: prompt tokens at most; a longer passage is cut into windows, and the likeliest answer of them wins.
        window: words of a window.
        stride: words between the beginnings of two windows.
        prune: leave out rows that cannot matter; see `tables`.
        chunk_tokens: prompt and row tokens held at once.
    """

    max_len: int = 64
    top: int = 1
    length_norm: bool = False
    beams: int = 8
    limit: int = 512
    window: int = 512
    stride: int = 120
    prune: bool = True
    chunk_tokens: int = 16384


def answers(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    how: Form,
    decoders: Sequence[Decoder] = ("exact",),
    search: Search = Search(),
) -> dict[Decoder, list[list[Span]]]:
    """Answers to (context, question) pairs by each decoder, best first: several only from `exact` with `top`."""
    room = min(search.max_len or FREE, model.context // 2) if model.kind == "causal" else 0
    limit = min(search.limit, model.context - room)
    windows = [asks(model, how, *pair, limit, search.window, search.stride) for pair in pairs]
    flat, owner = [a for w in windows for a in w], [i for i, w in enumerate(windows) for _ in w]
    found: dict[Decoder, list[list[Span]]] = {}
    if {"exact", "constrained_greedy"} & set(decoders):
        all_spans = tables(
            model, flat, how, search.max_len, search.chunk_tokens, search.prune, search.top, search.length_norm
        )
        if "exact" in decoders:
            found["exact"] = [
                best(a, t, how, search.top, search.length_norm) for a, t in zip(flat, all_spans, strict=True)
            ]
        if "constrained_greedy" in decoders:
            found["constrained_greedy"] = [[constrained(a, t)] for a, t in zip(flat, all_spans, strict=True)]
    widths: dict[Decoder, int] = {"greedy": 1, "beam": search.beams}
    for name, width in widths.items():
        if name in decoders:
            said = free(model, flat, how, search.max_len or FREE, width)
            found[name] = [[s] for s in free_spans(model, flat, how, said)]
    return {name: _merged(found[name], owner, len(pairs), search.top) for name in decoders}


def _merged(found: Sequence[list[Span]], owner: Sequence[int], n: int, top: int) -> list[list[Span]]:
    """The best over the windows of each question."""
    out: list[dict[str, Span]] = [{} for _ in range(n)]
    for span, i in sorted(((s, i) for row, i in zip(found, owner, strict=True) for s in row), key=lambda x: x[0].score):
        out[i].setdefault(span.text, span)
    return [list(spans_.values())[:top] for spans_ in out]


# --- scores of all spans ---------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Scores of the spans of one `Ask`, in nats; row i begins at the i-th passage token.

    `nll[i, t]` is -log P of token x_{i+t} after x_i..x_{i+t-1}, `end[i, t]` that of the end after x_i..x_{i+t}; both
    `(n, m)`, infinite where there is no span (or none that could be the best). `bos` is the nll of the form's
    constant tokens, `rows` how many starts were decoded.
    """

    nll: Floats
    end: Floats
    bos: float
    rows: int


class Span(NamedTuple):
    """An answer: its text, its nll in nats (end token in, constant first tokens out), and its tokens.

    `score` is what was compared: the nll, or the nll by length. `start` is its first token's place in the passage,
    None for what was decoded freely.
    """

    text: str
    nll: float
    score: float
    tokens: tuple[int, ...]
    start: int | None = None


def branches(passage: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """What the row of each start reads: `longest` tokens, fewer where the passage ends."""
    return [tuple(passage[i : i + longest]) for i in range(len(passage))]


def totals(nll: Floats, end: Floats) -> Floats:
    """`total (n, m)` from token and end nlls: the SUM over the span's tokens, and the end after the last."""
    return nll.cumsum(1) + end


def longest(model: Model, question: Ask, max_len: int = 0) -> int:
    """Tokens of the longest span that is scored: the cap, the passage, and what the context leaves."""
    room = model.context - len(question.prompt) if model.kind == "causal" else len(question.passage)
    if room < 1:
        raise UserError(f"a prompt of {len(question.prompt)} tokens fills the context of {model.context}: lower limit")
    return min(max_len or len(question.passage), len(question.passage), room)


@torch.no_grad()
def tables(
    model: Model,
    questions: Sequence[Ask],
    how: Form,
    max_len: int = 0,
    chunk_tokens: int = 16384,
    prune: bool = False,
    top: int = 1,
    length_norm: bool = False,
) -> list[Table]:
    """Scores of all spans of up to `max_len` tokens (0: all), from one decoder row per start.

    Args:
        model: any causal or seq2seq model; the prompt is read once where its type is proven, else with every row.
        questions: prompts and passages; rows of several run side by side.
        how: the end token, and what an answer begins with.
        max_len: longest span.
        chunk_tokens: prompt and row tokens held at once; changes memory and speed, never the result. It is halved
            where memory runs out.
        prune: skip starts that cannot hold one of the `top` best spans: no span scores below its first token, so
            the first tokens, which the prompt alone scores, and a few rows bound the rest. The best are the same.
        top: with `prune`, how many distinct spans are wanted.
        length_norm: with `prune`, how they will be compared; see `best`.
    """
    was = model.module.training
    model.module.eval()
    out: list[Table | None] = [None] * len(questions)
    try:
        for group in by_length([len(q.prompt) for q in questions], chunk_tokens):
            some = [questions[i] for i in group]
            for i, table in zip(
                group, _tables(model, some, how, max_len, chunk_tokens, prune, top, length_norm), strict=True
            ):
                out[i] = table
    finally:
        model.module.train(was)
    return [t for t in out if t is not None]


def best(question: Ask, table: Table, how: Form, top: int = 1, length_norm: bool = False) -> list[Span]:
    """The `top` best spans with distinct texts; ties go to the first in row-major order.

    Args:
        question: gives the texts.
        table: its scores.
        how: with `length_norm`, how many constant tokens count.
        top: how many.
        length_norm: compare (nll + bos) / (tokens, end and constant tokens), T5's total / (length + 2).
    """
    total = totals(table.nll, table.end)
    score = normed(total, table.bos, how) if length_norm else total
    found: dict[str, Span] = {}
    for spot in np.argsort(score, axis=None, kind="stable"):
        i, t = divmod(int(spot), score.shape[1])
        if len(found) == top or not np.isfinite(score[i, t]):
            break
        tokens = question.passage[i : i + t + 1]
        # One string has one score wherever it stands; rounding does not choose among its places.
        first = next(j for j in range(i + 1) if question.passage[j : j + t + 1] == tokens)
        if (text := span_text(question, first, first + t)) and text not in found:
            found[text] = Span(text, float(total[i, t]), float(score[i, t]), tokens, first)
    return list(found.values())


def normed(total: Floats, bos: float, how: Form) -> Floats:
    """Nll by token, `(bos + total) / (span length + 1 + constant tokens)`."""
    return (bos + total) / (np.arange(1, total.shape[1] + 1) + 1 + len(how.bos))


def constrained(question: Ask, table: Table) -> Span:
    """Greedy decoding that may only follow the passage, read off the table: the likeliest first token among the
    passage's, then the likeliest of the end and the tokens that follow what was said, wherever it stands."""
    alive = np.arange(len(question.passage))
    tokens: list[int] = []
    nll, end, said = 0.0, 0.0, False
    for t in range(table.nll.shape[1]):
        alive = alive[alive + t < len(question.passage)]
        after = table.nll[alive, t]
        if not len(alive) or (said and end <= after.min()):
            break
        token = question.passage[alive[after.argmin()] + t]
        alive = alive[[question.passage[i + t] == token for i in alive]]
        tokens.append(token)
        nll += float(after.min())
        end, said = float(table.end[alive[0], t]), bool(span_text(question, alive[0], alive[0] + t))
    first = next(i for i in range(len(question.passage)) if question.passage[i : i + len(tokens)] == tuple(tokens))
    text = span_text(question, first, first + len(tokens) - 1)
    return Span(text, nll + end, nll + end, tuple(tokens), first)


def span_text(question: Ask, first: int, last: int) -> str:
    """The passage from one token to another, as it stands there, without white space around it."""
    return question.context[question.spots[first][0] : question.spots[last][1]].strip()


# --- free decoding, and scores of given answers ----------------------------------------------


@torch.no_grad()
def free(
    model: Model, questions: Sequence[Ask], how: Form, max_len: int = 64, beams: int = 1, rows: int = 64
) -> list[tuple[int, ...]]:
    """What the model says without any constraint, before its end token: greedily, or the likeliest of a beam."""
    ends = {how.end, int(how.end if model.tokenizer.eos_token_id is None else model.tokenizer.eos_token_id)}
    rooms = [min(max_len, model.context - len(q.prompt)) if model.kind == "causal" else max_len for q in questions]
    if model.kind == "causal":
        made = beam.search(model, [q.prompt for q in questions], beams, 0.0, rooms, ends, rows=rows)
        return [_until(m[0].tokens, ends) for m in made]
    said: list[tuple[int, ...]] = [()] * len(questions)
    module: Any = model.module
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    for at in range(0, len(order), rows):
        group = order[at : at + rows]
        ids, mask = _padded([questions[i].prompt for i in group], model)
        start = (model.pad if model.start is None else model.start, *how.bos)
        made = module.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_len, do_sample=False, num_beams=beams,
            decoder_input_ids=torch.tensor([start] * len(group), device=model.device), eos_token_id=sorted(ends),
            pad_token_id=model.pad, **({"length_penalty": 0.0} if beams > 1 else {}),
        )  # fmt: skip
        for i, tokens in zip(group, made[:, len(start) :].tolist(), strict=True):
            said[i] = _until(tokens, ends)
    return said


def free_spans(model: Model, questions: Sequence[Ask], how: Form, said: Sequence[tuple[int, ...]]) -> list[Span]:
    """Freely decoded tokens as answers with their nll; `start` says where they are a span of the passage's tokens."""
    scores = answer_nll(model, questions, how, said)
    return [
        Span(
            str(model.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip(),
            nll,
            nll,
            tokens,
            place(q, tokens),
        )
        for q, tokens, nll in zip(questions, said, scores, strict=True)
    ]


def place(question: Ask, tokens: Sequence[int]) -> int | None:
    """Where in the passage these tokens first stand, None where they do not (or are none)."""
    n = len(tokens)
    spots = range(len(question.passage) - n + 1) if n else ()
    return next((i for i in spots if question.passage[i : i + n] == tuple(tokens)), None)


def answer_nll(model: Model, questions: Sequence[Ask], how: Form, answers: Sequence[Sequence[int]]) -> list[float]:
    """The nll of given answers with their end token, by the scoring that serves everything else."""
    rows = [TokenizedExample(q.prompt, (*how.bos, *a, how.end)) for q, a in zip(questions, answers, strict=True)]
    out = [0.0] * len(rows)
    for group, batch, values in forward.score(model, rows):
        logp = values["logp"].double().cpu().numpy()
        owner = batch.row.cpu().numpy()
        for k, i in enumerate(group):
            out[i] = float(-logp[owner == k][len(how.bos) :].sum())
    return out


def forced(model: Model, question: Ask, how: Form, max_len: int = 0, batch_tokens: int = 8192) -> Floats:
    """`total (n, m)` by forced decoding of every span by itself: n(n+1)/2 rows, what exact decoding replaces."""
    m = longest(model, question, max_len)
    places = [(i, t) for i in range(len(question.passage)) for t in range(min(m, len(question.passage) - i))]
    out = np.full((len(question.passage), m), np.inf)
    for at in range(0, len(places), 1024):
        some = places[at : at + 1024]
        answers = [question.passage[i : i + t + 1] for i, t in some]
        for (i, t), nll in zip(some, answer_nll(model, [question] * len(some), how, answers), strict=True):
            out[i, t] = nll
    return out


def _until(tokens: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    return tuple(tokens[: next((k for k, token in enumerate(tokens) if token in ends), None)])


# --- prompts that are read once --------------------------------------------------------------


class _Read(Protocol):
    """Prompts that were read: `first (Q, V)` logits of an answer's first token, `bos (Q,)` nll of what precedes it."""

    first: Tensor
    bos: Floats

    def after(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits `(R, T, V)` after every token of rows that continue the prompts `owners`."""


class _Decoder:
    """Prompts of a decoder-only model, as keys and values."""

    def __init__(self, model: Model, questions: Sequence[Ask]) -> None:
        self.model, self.lengths = model, [len(q.prompt) for q in questions]
        self.store = prefix.Store()
        self.first = prefix.extend(model, self.store, [q.prompt for q in questions])
        self.bos = np.zeros(len(questions))

    def after(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids, _ = _padded(rows, self.model)
        width = ids.shape[1]
        store = prefix.packed([(self.store, [(q, 0, self.lengths[q]) for q in owners])], width)
        past = torch.tensor([self.lengths[q] for q in owners], device=ids.device)[:, None]
        columns = torch.arange(store.length + width, device=ids.device)
        mask = columns >= store.length - past if int(past.min()) < store.length else None
        # Padding may lie beyond the context; nothing looks at it.
        positions = (past + torch.arange(width, device=ids.device)).clamp(max=self.model.context - 1)
        return prefix.step(self.model, store, ids, positions, mask, keep=width)


class _EncoderDecoder:
    """Prompts of an encoder-decoder, encoded once; their keys and values for the decoder's layers are made once too."""

    def __init__(self, model: Model, questions: Sequence[Ask], bos: tuple[int, ...]) -> None:
        self.model = model
        self.inner = prefix.inner_of(model)
        ids, self.mask = _padded([q.prompt for q in questions], model)
        self.states = self.inner.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.own, self.cross = prefix.Store(), prefix.Store()
        start = (model.pad if model.start is None else model.start, *bos)
        logits = self._step(
            self.own, self.cross, self.states, self.mask, torch.tensor([start] * len(ids), device=ids.device)
        )
        self.first = logits[:, -1]
        logp = logits[:, :-1].double().log_softmax(-1)
        target = torch.tensor([bos] * len(ids), device=ids.device, dtype=torch.long)
        self.bos = -logp.gather(-1, target[..., None]).sum((1, 2)).cpu().numpy()

    def after(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids, _ = _padded(rows, self.model)
        mine = torch.tensor(owners, device=ids.device)
        own, cross = self.own.select(mine, room=ids.shape[1]), self.cross.select(mine)
        return self._step(own, cross, self.states[mine], self.mask[mine], ids)

    def _step(self, own: prefix.Store, cross: prefix.Store, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        past = EncoderDecoderCache(own, cross)
        given: dict[str, Any] = {"decoder_input_ids": ids, "past_key_values": past, "use_cache": True}
        return self.model.module(encoder_outputs=(states,), attention_mask=mask, **given).logits


class _Plain:
    """Any other model: the prompt is read with every row, by the scoring forward of `models.forward`."""

    def __init__(self, model: Model, questions: Sequence[Ask], how: Form) -> None:
        self.model, self.questions, self.how = model, questions, how
        self.bos = np.zeros(len(questions))
        every = self.after(range(len(questions)), [()] * len(questions))
        self.first = every[:, -1]

    def after(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        bos, end = self.how.bos, self.how.end
        scored = [
            TokenizedExample(self.questions[q].prompt, (*bos, *r, end)) for q, r in zip(owners, rows, strict=True)
        ]
        width = max(len(r) for r in rows) or 1
        out: Tensor | None = None
        for group, batch, values in forward.score(self.model, scored, {"logits": lambda logits, target: logits}):
            logits = values["logits"]
            out = logits.new_zeros(len(rows), width, logits.shape[-1]) if out is None else out
            for k, i in enumerate(group):
                mine = logits[batch.row == k]  # of bos, row and end
                n = max(1, len(rows[i]))
                out[i, :n] = mine[-n:]
                if not rows[i] and bos:
                    logp = mine[: len(bos)].double().log_softmax(-1)
                    self.bos[i] = -float(logp[torch.arange(len(bos)), list(bos)].sum())
        assert out is not None
        return out


def _read(model: Model, questions: Sequence[Ask], how: Form) -> _Read:
    if prefix.shares(model):
        return _Decoder(model, questions)
    if model.kind == "seq2seq" and prefix.inner_of(model).config.model_type in ENCODER_DECODERS:
        return _EncoderDecoder(model, questions, how.bos)
    return _Plain(model, questions, how)


def _tables(
    model: Model, questions: Sequence[Ask], how: Form, max_len: int, chunk_tokens: int, prune: bool, top: int,
    length_norm: bool,
) -> list[Table]:  # fmt: skip
    read = _read(model, questions, how)
    logp = token_functions.wide(read.first).log_softmax(-1)
    rows = [branches(q.passage, longest(model, q, max_len)) for q in questions]
    out = []
    for q, mine in enumerate(rows):
        shape = (len(mine), len(mine[0]))
        table = Table(np.full(shape, np.inf), np.full(shape, np.inf), float(read.bos[q]), 0)
        table.nll[:, 0] = -logp[q, [r[0] for r in mine]].double().cpu().numpy()
        out.append(table)
    left = [(q, i) for q, mine in enumerate(rows) for i in range(len(mine))]
    done: set[tuple[int, int]] = set()
    if prune:
        order = [np.argsort(t.nll[:, 0], kind="stable")[: PROBED + top] for t in out]
        done = {(q, int(i)) for q, some in enumerate(order) for i in some}
        _fill(model, read, questions, rows, sorted(done), out, how.end, chunk_tokens)
        bounds = [_bound(t, q, how, top, length_norm) for t, q in zip(out, questions, strict=True)]
        left = [
            (q, i) for q, i in left
            if (q, i) not in done and _least(out[q], i, how, length_norm) <= bounds[q] + SLACK
        ]  # fmt: skip
    _fill(model, read, questions, rows, left, out, how.end, chunk_tokens)
    counts = np.bincount([q for q, _ in (*done, *left)], minlength=len(out))
    return [Table(t.nll, t.end, t.bos, int(n)) for t, n in zip(out, counts, strict=True)]


def _least(table: Table, start: int, how: Form, length_norm: bool) -> float:
    """What no span from this start scores below."""
    first = table.nll[start : start + 1, :1]
    return float(normed(np.tile(first, table.nll.shape[1]), table.bos, how)[0, -1] if length_norm else first[0, 0])


def _bound(table: Table, question: Ask, how: Form, top: int, length_norm: bool) -> float:
    """The score of the worst of the `top` best spans so far."""
    found = best(question, table, how, top, length_norm)
    return found[-1].score if len(found) == top else float("inf")


def _fill(
    model: Model, read: _Read, questions: Sequence[Ask], rows: Sequence[Sequence[tuple[int, ...]]],
    wanted: Sequence[tuple[int, int]], out: Sequence[Table], end: int, chunk_tokens: int,
) -> None:  # fmt: skip
    """Decode the wanted rows (question, start) and write their scores into the tables."""
    for chunk in _chunks([(len(rows[q][i]), len(questions[q].prompt)) for q, i in wanted], chunk_tokens, model):
        stack = [[wanted[k] for k in chunk]]
        while stack:
            some = stack.pop()
            try:
                logits = token_functions.wide(read.after([q for q, _ in some], [rows[q][i] for q, i in some]))
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise UserError("out of memory on a single row: lower max_len or limit") from None
                stack += [some[len(some) // 2 :], some[: len(some) // 2]]
                continue
            total = logits.logsumexp(-1)
            after, _ = _padded([rows[q][i][1:] or (end,) for q, i in some], model)
            scores = logits[:, : after.shape[1]].gather(-1, after[..., None])[..., 0]
            nll = (total[:, : after.shape[1]] - scores).double().cpu().numpy()
            ends = (total - logits[..., end]).double().cpu().numpy()
            for k, (q, i) in enumerate(some):
                n = len(rows[q][i])
                out[q].nll[i, 1:n] = nll[k, : n - 1]
                out[q].end[i, :n] = ends[k, :n]


def _chunks(sizes: Sequence[tuple[int, int]], chunk_tokens: int, model: Model) -> Iterator[list[int]]:
    """Rows, the longest first, that fit side by side; a size is (row, prompt) tokens."""
    width = int(getattr(model.config, "vocab_size", None) or 1)
    group: list[int] = []
    tall = deep = 0
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k][0], k)):
        own, past = sizes[k]
        n, t, p = len(group) + 1, max(tall, own), max(deep, past)
        if group and (n * (t + p) > chunk_tokens or n * t * width > LOGITS):
            yield group
            group, t, p = [], own, past
        group, tall, deep = [*group, k], t, p
    if group:
        yield group


def _padded(rows: Sequence[Sequence[int]], model: Model) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, and which of it is real: `(R, T)` twice."""
    width = max(1, *(len(r) for r in rows))
    ids = [[*r, *[model.pad] * (width - len(r))] for r in rows]
    mask = [[1] * len(r) + [0] * (width - len(r)) for r in rows]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)
