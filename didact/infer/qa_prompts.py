"""Encode questions about a passage: prompt format, passage tokens with character offsets, windows that fit."""

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
    """The format of prompts and answers.

    Args:
        template: text with `{context}` and `{question}`.
        bos: constant tokens that the decoder starts an answer with (T5: `<extra_id_0>`).
        end: the token after an answer.
    """

    template: str
    bos: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class EncodedQuestion:
    """One question about one passage (or one window of it), as tokens.

    `prompt` is what the model reads, `passage (n,)` the tokens whose spans are candidate answers, `offsets` their
    character ranges in `context`.
    """

    prompt: tuple[int, ...]
    passage: tuple[int, ...]
    context: str
    offsets: tuple[tuple[int, int], ...]

    def text(self, first: int, last: int) -> str:
        """The passage's text from token `first` to token `last`, stripped."""
        return self.context[self.offsets[first][0] : self.offsets[last][1]].strip()

    def find(self, tokens: Sequence[int]) -> int | None:
        """The index of the first occurrence of these tokens in the passage; None if there is none or no tokens."""
        n = len(tokens)
        starts = range(len(self.passage) - n + 1) if n else ()
        return next((i for i in starts if self.passage[i : i + n] == tuple(tokens)), None)


def prompt_format(model: Model, template: str = TEMPLATE, bos: str = "auto", end: str = "auto") -> PromptFormat:
    """The format for a model: sentinels around an encoder-decoder's answer, an end token after a decoder's.

    Args:
        model: causal or seq2seq.
        template: text with `{context}` and `{question}`; an encoder-decoder's is followed by `bos` and a full stop.
        bos: first token of a decoder's answer: a token, `none`, or `auto` (`<extra_id_0>` for seq2seq).
        end: last token of an answer: a token, `eos`, `newline`, or `auto` (`<extra_id_1>` for seq2seq, else eos).

    Raises:
        UserError: the tokenizer lacks a token, or the template lacks a slot.
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
    """Tokens that stop a freely decoded answer: the format's end token, the tokenizer's stop tokens and, if the end is
    a line break, every token that begins with one (a blank line)."""
    tokenizer = model.tokenizer
    ends = {form.end, *encode.stops(tokenizer)}
    if tokenizer.decode([form.end]) == "\n":
        line = str(tokenizer.convert_ids_to_tokens(form.end))
        ends |= {token for text, token in tokenizer.get_vocab().items() if text.startswith((line, "\n"))}
    return ends


def text_ids(model: Model, text: str) -> list[int]:
    """A passage or an answer as tokens, encoded after one space so that a word has the same tokens in both."""
    return encode.located(model.tokenizer, _spaced(text))[0]


def encode_question(model: Model, form: PromptFormat, context: str, question: str) -> EncodedQuestion:
    """Encode one question about a whole passage.

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
    """Encode a question, cutting the passage into windows of words if the prompt would exceed `limit` tokens (see
    `data.spans.windows`)."""

    def fits(piece: str) -> bool:
        return len(encode_question(model, form, piece, question).prompt) <= limit

    return [encode_question(model, form, piece, question) for piece in spans.windows(context, fits, window, stride)]


def _offsets(model: Model, context: str, passage: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text that answers are cut from, and each token's character range in it."""
    _, offsets = encode.located(model.tokenizer, _spaced(context))
    if offsets is not None:
        shift = len(_spaced(context)) - len(context)
        return context, tuple((max(0, a - shift), b - shift) for a, b in offsets)
    texts = [str(model.tokenizer.decode(list(passage[:k]))) for k in range(len(passage) + 1)]
    return texts[-1], tuple((len(a), len(b)) for a, b in itertools.pairwise(texts))


def _spaced(text: str) -> str:
    return text if text[:1].isspace() else " " + text


def _token(model: Model, name: str) -> int:
    vocabulary = model.tokenizer.get_vocab()
    if name not in vocabulary:
        raise UserError(
            f"this tokenizer has no token {name!r}: name one it has (--bos, --end; --bos none --end eos for a model "
            "without sentinels), or add it to the tokenizer and the embeddings"
        )
    return int(vocabulary[name])


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
