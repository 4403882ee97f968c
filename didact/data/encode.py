"""Records to token rows: a prompt that is read and a completion that is scored.

The two parts are tokenised apart, so the border between them is exact, and joined by one space
unless either side brings white space of its own. The end token of the completion is a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from didact.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Row(NamedTuple):
    """Token ids of one prompt and its completion; the completion's tokens are the labels."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def size(self) -> int:
        """All its tokens."""
        return len(self.prompt) + len(self.completion)


def row(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, kind: str, context: int, end: bool = True
) -> Row:
    """Tokenise one prompt and completion for a model of this `kind` (`causal` or `seq2seq`).

    A prompt too long for the context loses tokens on its left; a completion too long raises.

    Raises:
        UserError: the completion is empty or alone longer than the context.
    """
    head = prompt_ids(tokenizer, prompt, kind)
    body = list(tokenizer(join(prompt, completion, kind), add_special_tokens=False)["input_ids"]) if completion else []
    eos = tokenizer.eos_token_id
    if not body:
        raise UserError("the completion is empty: nothing to learn or score")
    if end and eos is not None:
        body.append(eos)
    if not head:  # without a start token the first one can be read but not predicted
        head, body = body[:1], body[1:]
        if not body:
            raise UserError("the text is one token, which nothing precedes: nothing to learn or score")
    room = context - len(body) if kind == "causal" else context
    if len(body) > context or room < 1:
        raise UserError(f"the completion has {len(body)} tokens and the model's context {context}; shorten it")
    if len(head) > room:
        start = _start(tokenizer)
        keep = room - len(start)
        head = start + head[len(head) - keep :] if keep > 0 else head[-room:]
    return Row(tuple(head), tuple(body))


def rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], kind: str, context: int, name: str = "data"
) -> list[Row]:
    """Tokenise many; an error names the record's number in `name`, or says that there is none."""
    out = []
    for number, (prompt, completion) in enumerate(pairs, 1):
        try:
            out.append(row(tokenizer, prompt, completion, kind, context))
        except UserError as error:
            raise UserError(f"{name}: record {number}: {error}") from None
    if not out:
        raise UserError(f"{name}: no records")
    return out


def windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[Row]:
    """Texts joined by the end token and cut into rows of `length` label tokens, for language modelling."""
    stream: list[int] = []
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    start = tuple(_start(tokenizer)) or (tokenizer.eos_token_id,)
    return [Row(start, tuple(stream[i : i + length])) for i in range(0, len(stream), length)]


def truncated(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], context: int) -> int:
    """How many records lose prompt tokens in `row`."""
    full = (len(tokenizer(p)["input_ids"]) + len(tokenizer(c)["input_ids"]) + 1 for p, c in pairs)
    return sum(n > context for n in full)


def join(prompt: str, completion: str, kind: str) -> str:
    """The completion as it follows the prompt: after one space, unless either side brings white space."""
    if kind != "causal" or not prompt or not completion or prompt[-1].isspace() or completion[0].isspace():
        return completion
    return " " + completion


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, kind: str) -> list[int]:
    """A prompt as a model of this kind reads it: with the tokenizer's start token, without an end token if causal."""
    if not prompt:
        return _start(tokenizer)
    ids = list(tokenizer(prompt)["input_ids"])
    ends = kind == "causal" and ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    return ids[:-1] if ends else ids


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text."""
    ids = list(tokenizer("")["input_ids"])
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []
