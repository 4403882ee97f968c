"""Questions about a passage as tokens: prompt format, passage tokens and where they stand, windows that fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from didact.data import encode, spans
from didact.models.model import Model
from didact.types import UserError

TEMPLATE = "Text: {context} Question: {question} Answer:"
SENTINELS = ("<extra_id_0>", "<extra_id_1>")


@dataclass(frozen=True)
class PromptFormat:
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
class EncodedQuestion:
    """One question about one passage (or one window of it), as tokens.

    `prompt` is what the model reads, `passage (n,)` the tokens whose spans may answer, `offsets` where in `context`
    each of them stands, as characters.
    """

    prompt: tuple[int, ...]
    passage: tuple[int, ...]
    context: str
    offsets: tuple[tuple[int, int], ...]

    def text(self, first: int, last: int) -> str:
        """The passage from one token to another, as it stands there, without white space around it."""
        return self.context[self.offsets[first][0] : self.offsets[last][1]].strip()

    def find(self, tokens: Sequence[int]) -> int | None:
        """Where in the passage these tokens first stand, None where they do not (or are none)."""
        n = len(tokens)
        starts = range(len(self.passage) - n + 1) if n else ()
        return next((i for i in starts if self.passage[i : i + n] == tuple(tokens)), None)


def prompt_format(model: Model, template: str = TEMPLATE, bos: str = "auto", end: str = "auto") -> PromptFormat:
    """The format for a model: sentinels around the answer of an encoder-decoder, an end token after a decoder's.

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
    seq2seq = model.kind == "seq2seq"
    first = {"auto": SENTINELS[0] if seq2seq else "none"}.get(bos, bos)
    last = {"auto": SENTINELS[1] if seq2seq else "eos"}.get(end, end)
    if not seq2seq and first != "none":
        raise UserError(f"bos = {bos!r}: a decoder-only model answers after the prompt: put the text into the template")
    start = () if first == "none" else (_token(model, first),)
    if seq2seq and start:
        template = f"{template}{first}."
    return PromptFormat(template, start, _end(model, last))


def endings(model: Model, form: PromptFormat) -> set[int]:
    """Tokens at which a freely decoded answer ends: its end token, those that the model ends its text with, and where
    a line break is the end every token that begins with one, such as a blank line's."""
    tokenizer = model.tokenizer
    ends = {form.end, *encode.stops(tokenizer)}
    if tokenizer.decode([form.end]) == "\n":
        line = str(tokenizer.convert_ids_to_tokens(form.end))
        ends |= {token for text, token in tokenizer.get_vocab().items() if text.startswith((line, "\n"))}
    return ends


def text_ids(model: Model, text: str) -> list[int]:
    """A passage, or an answer, as tokens: after one space, so that a word is the same tokens in both."""
    return encode.located(model.tokenizer, _spaced(text))[0]


def encode_question(model: Model, form: PromptFormat, context: str, question: str) -> EncodedQuestion:
    """One question about all of a passage.

    Raises:
        UserError: the passage is empty.
    """
    passage = text_ids(model, context)
    if not passage or not context.strip():
        raise UserError("the passage is empty: there is no span to answer with")
    before, _, after = form.template.partition("{context}")
    prompt = before.replace("{question}", question) + context + after.replace("{question}", question)
    ids = encode.prompt_ids(model.tokenizer, prompt, model.kind)
    return EncodedQuestion(tuple(ids), tuple(passage), *_offsets(model, context, passage))


def encode_windows(
    model: Model, form: PromptFormat, context: str, question: str, limit: int = 512, window: int = 512,
    stride: int = 120,
) -> list[EncodedQuestion]:  # fmt: skip
    """The same, in windows of words where the prompt would be longer than `limit` tokens; see `data.spans.windows`."""

    def fits(piece: str) -> bool:
        return len(encode_question(model, form, piece, question).prompt) <= limit

    return [encode_question(model, form, piece, question) for piece in spans.windows(context, fits, window, stride)]


def _offsets(model: Model, context: str, passage: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text that answers are cut from, and where in it each token stands."""
    _, places = encode.located(model.tokenizer, _spaced(context))
    if places is not None:
        ahead = len(_spaced(context)) - len(context)
        return context, tuple((max(0, a - ahead), b - ahead) for a, b in places)
    texts = [str(model.tokenizer.decode(list(passage[:k]))) for k in range(len(passage) + 1)]
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
        if (end := encode.answer_end(model.tokenizer)) is None:
            raise UserError("this tokenizer has no end token: name one it has with --end")
        return end
    if name == "newline":
        ids = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(f"end = newline: this tokenizer spells it in {len(ids)} tokens; name a token with --end")
        return int(ids[0])
    return _token(model, name)
