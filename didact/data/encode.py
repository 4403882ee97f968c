"""Records to token rows: a prompt that is read and a completion that is scored.

The two parts are tokenised apart, so the border between them is exact, and joined by one space
unless either side brings white space of its own. The token that ends an answer is a label too: the first end token of
the model's generation configuration, else the tokenizer's; in a conversation what the chat template ends a turn with.

A prompt of `Messages` is rendered by the tokenizer's chat template where there is one, and is plain
text (`User: ...`) where there is none.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import datetime
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, cast

from didact.data import templates
from didact.data.templates import Chat, Condition
from didact.types import Messages, Record, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # how templates write the date
_DAY: contextvars.ContextVar[datetime.datetime | None] = contextvars.ContextVar("day", default=None)


@contextlib.contextmanager
def dated(day: str) -> Iterator[None]:
    """Inside the block chat templates that write the date write this one (ISO): a run has one, whenever it goes on."""
    token = _DAY.set(datetime.datetime.fromisoformat(day))
    try:
        yield
    finally:
        _DAY.reset(token)


def today() -> str:
    """The day that a run beginning now is of."""
    return datetime.datetime.now().isoformat(timespec="seconds")


class TokenizedExample(NamedTuple):
    """Token ids of one prompt and its completion; the completion's tokens are the labels."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def size(self) -> int:
        """All its tokens."""
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

    A prompt too long for the context loses tokens on its left; a completion too long raises. The words of a
    `condition` belong to the prompt.

    Raises:
        UserError: the completion is empty or alone longer than the context.
    """
    return _cut(tokenizer, *_parts(tokenizer, prompt, completion, kind, end, condition), kind, context)


def _cut(
    tokenizer: PreTrainedTokenizerBase, head: list[int], body: list[int], kind: str, context: int
) -> TokenizedExample:
    """Both parts as they fit into the context."""
    check_known(tokenizer, [*head, *body])
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
        head = start + head[len(head) - keep :] if keep > 0 else head[-room:]
    return TokenizedExample(tuple(head), tuple(body))


def rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[str, str]],
    kind: str,
    context: int,
    name: str = "data",
    condition: Condition | None = None,
    end: bool = True,
) -> list[TokenizedExample]:
    """Tokenise many; an error names the record's number in `name`, or says that there is none.

    Prompts that lose tokens are counted in a line on standard error.
    """
    out, cut = [], 0
    for number, (prompt, completion) in enumerate(pairs, 1):
        try:
            head, body = _parts(tokenizer, prompt, completion, kind, end, condition)
            out.append(_cut(tokenizer, head, body, kind, context))
        except UserError as error:
            raise UserError(f"{name}: record {number}: {error}") from None
        cut += len(head) + len(body) > out[-1].size
    if not out:
        raise UserError(f"{name}: no records")
    tell_cut(name, cut, len(out), context)
    return out


@functools.cache
def tell_cut(name: str, cut: int, total: int, context: int) -> None:
    """Say once on standard error that prompts lose tokens; nothing where none does."""
    if cut:
        print(f"{name}: {cut} of {total} prompts are cut on the left to fit the context of {context} tokens",
              file=sys.stderr)  # fmt: skip


def chain(
    tokenizer: PreTrainedTokenizerBase, prompt: str, steps: Sequence[tuple[str, str]], kind: str, context: int
) -> tuple[TokenizedExample, list[float]]:
    """One prompt and several completions in turn, each after its phrase: the row, and which label tokens are to learn.

    `prompt phrase_1 y_1 </s> phrase_2 y_2 </s> ...`: the first phrase belongs to the prompt; the others are label
    tokens with a 0, every completion with its end token has a 1. An empty last completion is not there, nor its end:
    that is how the next one is asked for.

    Raises:
        UserError: a completion is empty, or all are longer than the context.
    """
    last = answer_end(tokenizer)
    end = [last] if last is not None else []
    more: list[int] = []
    learnt: list[float] = []
    for phrase, completion in steps[1:]:
        seen = prompt if is_control(tokenizer, phrase) else phrase or prompt
        cue, body = _ids(tokenizer, phrase), _ids(tokenizer, join(seen, completion, kind))
        body = body + end if completion else []
        more += cue + body
        learnt += [0.0] * len(cue) + [1.0] * len(body)
    (phrase, completion), room = steps[0], context - len(more)
    if room < 2:
        raise UserError(
            f"the chain has {len(more)} tokens after its first completion and the model's context {context}"
        )
    first = row(tokenizer, prompt, completion, kind, room, condition=Condition(after=phrase))
    if kind == "causal" and len(first.prompt) < len(_ids(tokenizer, phrase)) + bool(prompt):
        raise UserError(f"the model's context of {context} leaves no room for a prompt before the phrase")
    return TokenizedExample(first.prompt, (*first.completion, *more)), [1.0] * len(first.completion) + learnt


def windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[TokenizedExample]:
    """Texts joined by the end token and cut into rows of `length` label tokens, for language modelling."""
    return scored_windows(tokenizer, [[(text, 0.0)] for text in texts], length)[0]


def scored_windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Sequence[tuple[str, float]]], length: int, end: float = 0.0
) -> tuple[list[TokenizedExample], list[list[float]]]:
    """The same for documents in parts, each with a score: rows, and of each row its label tokens' scores.

    Parts are tokenised apart. Every token of a part bears its score, the token that ends a document `end`.
    """
    stream: list[int] = []
    scores: list[float] = []
    for parts in documents:
        for text, score in parts:
            ids = _ids(tokenizer, text)
            stream += ids
            scores += [score] * len(ids)
        if tokenizer.eos_token_id is not None:
            stream.append(tokenizer.eos_token_id)
            scores.append(end)
    check_known(tokenizer, stream)
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
    """How many records lose prompt tokens in `row`."""
    return sum(n > context for n in sizes(tokenizer, pairs))


def sizes(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]]) -> list[int]:
    """Tokens of each prompt and its completion together, before any is cut."""
    parts = (_parts(tokenizer, prompt, completion, "causal", True) for prompt, completion in pairs)
    return [len(head) + len(body) for head, body in parts]


def join(prompt: str, completion: str, kind: str) -> str:
    """The completion as it follows the prompt: after one space, unless either side brings white space."""
    if kind != "causal" or not prompt or not completion or prompt[-1].isspace() or completion[0].isspace():
        return completion
    return " " + completion


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, kind: str, condition: Condition | None = None
) -> list[int]:
    """A prompt as a model of this kind reads it: with the tokenizer's start token, without an end token if causal.

    What a `condition` puts after it is tokenised apart; an encoder reads both as one text.
    """
    if condition is not None:
        prompt = templates.introduced(prompt, condition.before, condition.place)
        after = _cue(tokenizer, prompt, condition.after)
        if after and kind != "causal" and not _templated(prompt, tokenizer):
            return prompt_ids(tokenizer, prompt + after, kind)
        return prompt_ids(tokenizer, prompt, kind) + (_ids(tokenizer, after) if after else [])
    if _templated(prompt, tokenizer):
        return _ids(tokenizer, _render(tokenizer, prompt.turns, add_generation_prompt=True))
    if not prompt:
        return _start(tokenizer)
    ids = list(tokenizer(prompt)["input_ids"])
    ends = kind == "causal" and ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    return ids[:-1] if ends else ids


def chat_choice(
    tokenizer: PreTrainedTokenizerBase, records: Iterable[Record], asked: Chat = "auto"
) -> Literal["template", "plain"]:
    """How `row` puts the prompts of these records to the model, once `templates.as_chat` did what was asked.

    `auto`: by the tokenizer's chat template where there is one and the records are conversations,
    else as plain text.

    Raises:
        UserError: a template is asked for and the tokenizer has none.
    """
    if asked == "template" and not _has_template(tokenizer):
        raise UserError("--chat template: the model's tokenizer has no chat template; use --chat plain")
    spoken = any(isinstance(getattr(record, "prompt", None), Messages) for record in records)
    template = asked == "template" or (asked == "auto" and spoken and _has_template(tokenizer))
    return "template" if template else "plain"


def rendered(tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: str) -> tuple[str, str]:
    """A conversation and its answer in the words of the tokenizer's chat template.

    The answer is what the whole has after the prompt, up to the template's end of turn where it gives one.

    Raises:
        UserError: the template refuses these turns, or writes the prompt differently once it is answered.
    """
    head = _render(tokenizer, prompt.turns, add_generation_prompt=True)
    whole = _render(tokenizer, (*prompt.turns, {"role": "assistant", "content": completion}))
    if not whole.startswith(head):
        raise UserError(
            "the tokenizer's chat template writes the prompt differently once it is answered, so that what to learn "
            "cannot be told from it; use --chat plain, or mend the template"
        )
    tail = whole[len(head) :]
    said = tail.rfind(completion.strip())
    behind = max(said, 0) + (len(completion.strip()) if said >= 0 else 0)
    found = [(at, end) for end in _end_words(tokenizer) if (at := tail.find(end, behind)) >= 0]
    if found:  # what a template puts behind it is never generated
        at, end = min(found)
        tail = tail[: at + len(end)]
    return head, tail


# --- what a model knows of its tokenizer's ids -----------------------------------------------


def fitted(tokenizer: PreTrainedTokenizerBase, settings: Any, count: int | None) -> PreTrainedTokenizerBase:
    """A tokenizer that knows its model: the generation configuration, and how many tokens have embeddings.

    It is told in place, but for one that belongs to another sort of model already: that is copied.
    """
    known: Any = tokenizer
    if settings is None and count is None:
        return tokenizer
    theirs = (_generation_ends(tokenizer), getattr(tokenizer, "embedded", None))
    if hasattr(tokenizer, "embedded") and theirs != (ends_of(settings, count), count):
        known = copy.copy(tokenizer)
    known.generation, known.embedded = settings, count
    return cast("PreTrainedTokenizerBase", known)


def check_known(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        UserError: one has none.
    """
    count = getattr(tokenizer, "embedded", None)
    if count is not None and (alien := next((i for i in ids if i >= count), None)) is not None:
        token = tokenizer.convert_ids_to_tokens(alien)
        raise UserError(f"the model has no embedding of the token {token!r} ({alien} of {count}), which is in the text")


# --- where answers end -----------------------------------------------------------------------


def ends_of(settings: Any, count: int | None = None) -> list[int]:
    """The end tokens of a generation configuration, as far as there are embeddings for them."""
    named = getattr(settings, "eos_token_id", None)
    return [i for i in ([named] if isinstance(named, int) else named or []) if count is None or i < count]


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an answer, as a label: the first of the generation configuration's, else the tokenizer's."""
    return next(iter(_generation_ends(tokenizer)), tokenizer.eos_token_id)


def stops(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens a model may end an answer with: those of its generation configuration, the tokenizer's own, and what
    the chat template ends a turn with."""
    named = (*_generation_ends(tokenizer), tokenizer.eos_token_id, turn_end(tokenizer))
    return frozenset(end for end in named if end is not None)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes after an answer; None without one."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    known: Any = tokenizer
    if getattr(tokenizer, "turn_end_of", None) != repr(template):
        known.turn_end_of, known.turn_end = repr(template), _turn_end(tokenizer)
    found: int | None = known.turn_end
    return found


def _generation_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return ends_of(getattr(tokenizer, "generation", None), getattr(tokenizer, "embedded", None))


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = "didact"
    try:
        turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": said})
        _, found, tail = _render(tokenizer, turns).rpartition(said)
    except UserError:
        return None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in _ids(tokenizer, tail) if i in special), None) if found else None


def _end_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    ids = [i for i in (turn_end(tokenizer), tokenizer.eos_token_id) if i is not None]
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in ids]


# --- parts -----------------------------------------------------------------------------------


def _parts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    kind: str,
    end: bool,
    condition: Condition | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its completion with its end token, nothing cut."""
    last = answer_end(tokenizer)
    words = condition or Condition()
    if completion and _templated(asked := templates.introduced(prompt, words.before, words.place), tokenizer):
        before, after = rendered(tokenizer, asked, completion)
        head = _ids(tokenizer, before) + _ids(tokenizer, _cue(tokenizer, asked, words.after))
        body = _ids(tokenizer, after)
        if body and body[-1] in (turn_end(tokenizer), tokenizer.eos_token_id):
            last = body.pop()
    else:
        # A control token is not there for white space: the completion joins what stands before it.
        seen = prompt if is_control(tokenizer, words.after) else words.after or prompt
        head, body = prompt_ids(tokenizer, prompt, kind, condition), _ids(tokenizer, join(seen, completion, kind))
    if not body:
        raise UserError("the completion is empty: nothing to learn or score")
    return head, [*body, last] if end and last is not None else body


def is_control(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text is one token of its own that was added to the tokenizer."""
    return bool(text) and text in tokenizer.get_added_vocab()


def _cue(tokenizer: PreTrainedTokenizerBase, prompt: str, after: str) -> str:
    """Words put after a prompt: joined as a completion is, but for control tokens, which join anything."""
    return after if is_control(tokenizer, after) else join(prompt, after, "causal")


def _templated(prompt: str, tokenizer: PreTrainedTokenizerBase) -> TypeGuard[Messages]:
    return isinstance(prompt, Messages) and _has_template(tokenizer)


def _has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], **how: Any) -> str:
    from jinja2 import TemplateError

    template = getattr(tokenizer, "chat_template", None)
    if (now := _DAY.get()) is not None and isinstance(template, str) and "strftime_now" in template:
        how["chat_template"] = _DATE.sub(lambda m: repr(now.strftime(m[2])), template)
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **how))
    except TemplateError as error:
        raise UserError(f"the tokenizer's chat template refuses these messages: {error}") from None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text."""
    ids = list(tokenizer("")["input_ids"])
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []
