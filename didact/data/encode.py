"""Records to token rows: a prompt that is read and a completion that is scored.

The two are joined by one space unless either side has white space there, tokenised as one text, and split where the
completion begins (an encoder-decoder reads two texts). A token across the border goes with the completion, and so does
white space at the end of the prompt's last line: tokenizers start a word with its space. The token that ends an
answer is a label too: the first end token of the model's generation configuration, else the tokenizer's; in a
conversation, the token with which the chat template ends a turn.

A prompt of `Messages` is rendered by the tokenizer's chat template where there is one, and is plain
text (`User: ...`) where there is none.
"""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

from didact.data import chat, templates
from didact.data.templates import Condition
from didact.types import Messages, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\r\n")
PROBE = "a"  # stands in for a completion: at the end of a text, line ends are other tokens


class TokenizedExample(NamedTuple):
    """Token ids of one prompt and its completion; the completion's tokens are the labels."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of tokens of both."""
        return len(self.prompt) + len(self.completion)


def row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    kind: str,
    context: int,
    end: bool = True,
    condition: Condition | None = None,
) -> TokenizedExample:
    """Tokenise one prompt and completion for a model of this `kind` (`causal` or `seq2seq`).

    A prompt too long for the context loses tokens on its left (or on the side set by `limit`); a completion too long
    raises. The words of a `condition` belong to the prompt.

    Raises:
        UserError: the completion is empty or alone longer than the context.
    """
    return _fitted(tokenizer, *parts(tokenizer, prompt, completion, kind, end, condition), kind, context)


def _fitted(
    tokenizer: PreTrainedTokenizerBase, head: list[int], body: list[int], kind: str, context: int
) -> TokenizedExample:
    """Truncate the prompt so that both parts fit into the context."""
    check_vocabulary(tokenizer, [*head, *body])
    if not head:  # without a start token the first one can be read but not predicted
        head, body = body[:1], body[1:]
        if not body:
            raise UserError("the text is one token, which nothing precedes: nothing to learn or score")
    room = context - len(body) if kind == "causal" else context
    if len(body) > context or room < 1:
        raise UserError(f"the completion has {len(body)} tokens and the model's context {context}; shorten it")
    if len(head) > room:
        start = head[:1] if head[0] == tokenizer.bos_token_id else []
        keep = room - len(start)
        head = start + clipped(tokenizer, head[len(start) :], keep) if keep > 0 else clipped(tokenizer, head, room)
    return TokenizedExample(tuple(head), tuple(body))


def limit(tokenizer: PreTrainedTokenizerBase, most: int | None, side: str) -> None:
    """Limit rows of this tokenizer's models to `most` tokens, below their context, and set where prompts are cut."""
    target: Any = tokenizer
    target.most, target.cut_side = most, side


def clipped(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], room: int) -> list[int]:
    """Truncate a prompt to `room` tokens, on its left or on the side set by `limit`."""
    return list(ids[:room] if _side(tokenizer) == "right" else ids[-room:])


def _side(tokenizer: PreTrainedTokenizerBase | None) -> str:
    return str(getattr(tokenizer, "cut_side", "left"))


def rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[str, str]],
    kind: str,
    context: int,
    name: str = "data",
    condition: Condition | None = None,
    end: bool = True,
) -> list[TokenizedExample]:
    """Tokenise many pairs; an error names the record's number in `name`, or says that there are no records.

    The number of truncated prompts is printed on standard error.
    """
    out, n_cut = [], 0
    for number, (prompt, completion) in enumerate(pairs, 1):
        try:
            head, body = parts(tokenizer, prompt, completion, kind, end, condition)
            out.append(_fitted(tokenizer, head, body, kind, context))
        except UserError as error:
            raise UserError(f"{name}: record {number}: {error}") from None
        n_cut += len(head) + len(body) > out[-1].size
    if not out:
        raise UserError(f"{name}: no records")
    tell_cut(tokenizer, name, n_cut, len(out), context)
    return out


def tell_cut(tokenizer: PreTrainedTokenizerBase | None, name: str, cut: int, total: int, context: int) -> None:
    """Print once on standard error how many prompts are truncated; nothing if none is."""
    if cut:
        _warn_once(
            f"{name}: {cut} of {total} prompts are cut on the {_side(tokenizer)} to fit the context of {context} tokens"
        )


@functools.cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


def chain(
    tokenizer: PreTrainedTokenizerBase, prompt: str, steps: Sequence[tuple[str, str]], kind: str, context: int
) -> tuple[TokenizedExample, list[float]]:
    """Tokenise one prompt with several (phrase, completion) steps: the row, and which of its label tokens are learnt.

    `prompt phrase_1 y_1 </s> phrase_2 y_2 </s> ...`: the first phrase belongs to the prompt; the others are label
    tokens with weight 0, completions and their end tokens have 1. An empty last completion is left out with its end
    token, so that a model generates it.

    Raises:
        UserError: a completion is empty, or all are longer than the context.
    """
    end_id = answer_end(tokenizer)
    end = [end_id] if end_id is not None else []
    end_text = str(tokenizer.convert_ids_to_tokens(end_id)) if end_id is not None else ""
    tail: list[int] = []
    learnt: list[float] = []
    for (_, before), (phrase, completion) in itertools.pairwise(steps):
        preceding = prompt if is_control(tokenizer, phrase) else phrase or prompt
        texts = (end_text or before, *cut(phrase, join(preceding, completion, kind)))
        _, cue, body = pieces(tokenizer, texts)
        body = body + end if completion else []
        tail += cue + body
        learnt += [0.0] * len(cue) + [1.0] * len(body)
    (phrase, completion), room = steps[0], context - len(tail)
    if room < 2:
        raise UserError(
            f"the chain has {len(tail)} tokens after its first completion and the model's context {context}"
        )
    first = row(tokenizer, prompt, completion, kind, room, condition=Condition(after=phrase))
    if kind == "causal" and len(first.prompt) < len(_ids(tokenizer, cut(phrase, "")[0])) + bool(prompt):
        raise UserError(f"the model's context of {context} leaves no room for a prompt before the phrase")
    return TokenizedExample(first.prompt, (*first.completion, *tail)), [1.0] * len(first.completion) + learnt


def windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[TokenizedExample]:
    """Texts joined by the end token and cut into rows of `length` label tokens, for language modelling."""
    return scored_windows(tokenizer, [[(text, 0.0)] for text in texts], length)[0]


def scored_windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Sequence[tuple[str, float]]], length: int, end: float = 0.0
) -> tuple[list[TokenizedExample], list[list[float]]]:
    """As `windows`, for documents in scored parts: rows, and the scores of each row's label tokens.

    Every token has the score of its part (of the later one if it crosses a border), a document's end token `end`.
    """
    stream: list[int] = []
    scores: list[float] = []
    for document in documents:
        for ids, (_, score) in zip(pieces(tokenizer, [text for text, _ in document]), document, strict=True):
            stream += ids
            scores += [score] * len(ids)
        if tokenizer.eos_token_id is not None:
            stream.append(tokenizer.eos_token_id)
            scores.append(end)
    check_vocabulary(tokenizer, stream)
    start = tuple(_start(tokenizer))
    if not start and tokenizer.eos_token_id is not None:
        start = (tokenizer.eos_token_id,)
    elif not start:  # without a start token the first one can be read but not predicted
        start, stream, scores = tuple(stream[:1]), stream[1:], scores[1:]
    cuts = range(0, len(stream), length)
    return [TokenizedExample(start, tuple(stream[i : i + length])) for i in cuts], [
        scores[i : i + length] for i in cuts
    ]


def truncated(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], context: int) -> int:
    """Number of records that lose prompt tokens in `row`."""
    return sum(n > context for n in sizes(tokenizer, pairs))


def sizes(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]]) -> list[int]:
    """Number of tokens of each prompt with its completion, before truncation."""
    both = (parts(tokenizer, prompt, completion, "causal", True) for prompt, completion in pairs)
    return [len(head) + len(body) for head, body in both]


def join(prompt: str, completion: str, kind: str) -> str:
    """The completion as it follows the prompt: after one space, unless either side brings white space."""
    if kind != "causal" or not prompt or not completion or prompt[-1].isspace() or completion[0].isspace():
        return completion
    return " " + completion


def pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Tokenise one text given in pieces, and split its ids there; a token across a border goes with the later piece.

    Without the tokenizer's special tokens, or with those it puts before a text (`special`). If a tokenizer gives no
    character offsets, a border is where the ids diverge from those of the preceding text alone.
    """
    whole = "".join(texts)
    if len(texts) == 1 and not special:
        return [_ids(tokenizer, whole)]
    ends = list(itertools.accumulate(map(len, texts[:-1])))
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoding["offset_mapping"]
        last = len(offsets)
        while special and last > 1 and offsets[last - 1] == (0, 0):  # special tokens after the text
            last -= 1
        ids = list(encoding["input_ids"][:last])
        cuts = [bisect.bisect_right(offsets, end, hi=last, key=lambda offset: offset[1]) for end in ends]
    else:
        start = _start(tokenizer) if special else []
        ids = start + _ids(tokenizer, whole)
        cuts = [_shared(ids, start + _ids(tokenizer, whole[:end])) for end in ends]
    return [ids[a:b] for a, b in itertools.pairwise([0, *cuts, len(ids)])]


def located(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    """Token ids of a text as they are within a longer one, and their character offsets, None if unknown."""
    prefix = PROBE if text[:1].isspace() else "\n"
    if not getattr(tokenizer, "is_fast", False):
        return pieces(tokenizer, (prefix, text))[1], None
    encoding = tokenizer(prefix + text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoding["offset_mapping"]
    n = len(prefix)
    first = bisect.bisect_right(offsets, n, key=lambda offset: offset[1])
    return list(encoding["input_ids"][first:]), [(max(0, a - n), b - n) for a, b in offsets[first:]]


def cut(prompt: str, completion: str) -> tuple[str, str]:
    """Split a prompt and its direct continuation into the text read and the text scored, blanks between going along."""
    head = prompt.rstrip(BLANKS)
    return head, prompt[len(head) :] + completion


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, kind: str, condition: Condition | None = None
) -> list[int]:
    """Token ids of a prompt as a model of this kind reads it before its completion: with the tokenizer's start token,
    without an end token if causal, and with the words that a `condition` puts after it."""
    text, special = _read(tokenizer, prompt, condition)
    if not text:
        return _start(tokenizer)
    if kind != "causal":
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    head, _ = cut(text, "")
    return pieces(tokenizer, (head, PROBE if head.endswith(("\r", "\n")) else ""), special)[0]


def continued(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, kind: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its direct continuation, with nothing between them and no end token."""
    opened, special = _read(tokenizer, prompt)
    return _cut_ids(tokenizer, opened, text, special, kind)


# --- which ids a model has embeddings for ----------------------------------------------------


def fitted(tokenizer: PreTrainedTokenizerBase, settings: Any, count: int | None) -> PreTrainedTokenizerBase:
    """Attach a model's generation configuration and its number of token embeddings to the tokenizer.

    In place, unless the tokenizer already belongs to a model with other values: then a copy is returned.
    """
    target: Any = tokenizer
    if settings is None and count is None:
        return tokenizer
    previous = (_generation_ends(tokenizer), getattr(tokenizer, "embedded", None))
    if hasattr(tokenizer, "embedded") and previous != (ends_of(settings, count), count):
        target = copy.copy(tokenizer)
    target.generation, target.embedded = settings, count
    return cast("PreTrainedTokenizerBase", target)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        UserError: there is one.
    """
    count = getattr(tokenizer, "embedded", None)
    if count is not None and (unknown := next((i for i in ids if i >= count), None)) is not None:
        token = tokenizer.convert_ids_to_tokens(unknown)
        raise UserError(f"the model has no embedding of the token {token!r} in the text (id {unknown} >= {count})")


# --- where answers end -----------------------------------------------------------------------


def ends_of(settings: Any, count: int | None = None) -> list[int]:
    """The end tokens of a generation configuration that have embeddings."""
    ends = getattr(settings, "eos_token_id", None)
    return [i for i in ([ends] if isinstance(ends, int) else ends or []) if count is None or i < count]


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The end token of an answer as a label: the first of the generation configuration's, else the tokenizer's."""
    return next(iter(_generation_ends(tokenizer)), tokenizer.eos_token_id)


def stops(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens a model may end an answer with: those of its generation configuration, the tokenizer's own, and the
    one with which the chat template ends a turn."""
    ends = (*_generation_ends(tokenizer), tokenizer.eos_token_id, turn_end(tokenizer))
    return frozenset(end for end in ends if end is not None)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes after an answer; None without one."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    target: Any = tokenizer
    if getattr(tokenizer, "turn_end_of", None) != repr(template):
        target.turn_end_of, target.turn_end = repr(template), _turn_end(tokenizer)
    end: int | None = target.turn_end
    return end


def _generation_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return ends_of(getattr(tokenizer, "generation", None), getattr(tokenizer, "embedded", None))


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    answer = "didact"
    try:
        turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer})
        _, separator, tail = chat.render(tokenizer, turns).rpartition(answer)
    except UserError:
        return None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in _ids(tokenizer, tail) if i in special), None) if separator else None


def _end_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    ids = [i for i in (turn_end(tokenizer), tokenizer.eos_token_id) if i is not None]
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in ids]


# --- parts -----------------------------------------------------------------------------------


def parts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    kind: str,
    end: bool,
    condition: Condition | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its completion with its end token, without truncation."""
    end_id = answer_end(tokenizer)
    words = condition or Condition()
    if completion and _templated(opened := templates.introduced(prompt, words.before, words.place), tokenizer):
        before, after = chat.rendered(tokenizer, opened, completion, _end_words(tokenizer))
        head, body = _cut_ids(tokenizer, before + _cue(tokenizer, opened, words.after), after, False, kind)
        if body and body[-1] in (turn_end(tokenizer), tokenizer.eos_token_id):
            end_id = body.pop()
    else:
        # Control tokens do not count for white space: the completion is joined to the text before them.
        preceding = prompt if is_control(tokenizer, words.after) else words.after or prompt
        text, special = _read(tokenizer, prompt, condition)
        head, body = _cut_ids(tokenizer, text, join(preceding, completion, kind), special, kind)
    if not completion or not body:
        raise UserError("the completion is empty: nothing to learn or score")
    return head, [*body, end_id] if end and end_id is not None else body


def _read(tokenizer: PreTrainedTokenizerBase, prompt: str, condition: Condition | None = None) -> tuple[str, bool]:
    """The text a model reads before its completion, and whether the tokenizer's start token is still to be added."""
    words = condition or Condition()
    opened = templates.introduced(prompt, words.before, words.place)
    cue = _cue(tokenizer, opened, words.after) if words.after else ""
    if _templated(opened, tokenizer):
        return chat.render(tokenizer, opened.turns, opened.tools, add_generation_prompt=True) + cue, False
    start = tokenizer.bos_token
    return opened + cue, not (start and opened.startswith(str(start)))


def _cut_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, special: bool, kind: str
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its continuation; an encoder-decoder reads two texts."""
    if kind == "causal":
        head, body = pieces(tokenizer, cut(prompt, text), special)
        return head, body
    ids = list(tokenizer(prompt, add_special_tokens=special)["input_ids"]) if prompt else _start(tokenizer)
    return ids, _ids(tokenizer, text)


def is_control(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text is a single token that was added to the tokenizer."""
    return bool(text) and text in tokenizer.get_added_vocab()


def _cue(tokenizer: PreTrainedTokenizerBase, prompt: str, after: str) -> str:
    """Words put after a prompt: joined as a completion is, except control tokens, which follow it directly."""
    return after if is_control(tokenizer, after) else join(prompt, after, "causal")


def _templated(prompt: str, tokenizer: PreTrainedTokenizerBase) -> TypeGuard[Messages]:
    return isinstance(prompt, Messages) and chat.has_template(tokenizer)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    if getattr(tokenizer, "is_fast", False):
        return pieces(tokenizer, ("", PROBE), special=True)[0]
    ids = list(tokenizer("")["input_ids"])
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
