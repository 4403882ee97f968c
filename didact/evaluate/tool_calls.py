"""Tool calls in a text, `[f(a=1, b='x'), g()]`, and the fields in which they differ from the expected ones.

Texts are parsed by Python's own parser and never run. A bare word stands for itself: `f(colour=red)`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from didact.data import selection
from didact.data import words as forms
from didact.infer import rank
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.types import Demo

FIELDS = ("form", "count", "function", "names", "values")
"""Kinds of errors: no list of calls, their number, a function's name, the set of its parameters, a value."""

LEXEME = re.compile(r"-?\d+(?:\.\d+)?|\w+|\S")


VERDICT = (
    "REQUEST: {request}\n\nGROUND TRUTH: {truth}\n\nANSWER: {answer}\n\n"
    "Compare the answer with the ground truth by five criteria: function names, number of parameters, parameter names, "
    "parameter values and types, and meaning. A fragment of the ground truth is excellent too.\n"
    "(A) Excellent\n(B) Acceptable\n(C) Fair\n(D) Poor\n\nVerdict:"
)
WORTH = {"A": 1.0 / 4, "B": 0.1 / 4, "C": -1.0 / 4, "D": -2.0 / 4}

Judge = Literal["ast", "self", "words"]


class Call(NamedTuple):
    """A function's name and its arguments by name; positional ones are named by their position, from 0."""

    name: str
    arguments: dict[str, Any]


def parse(text: str) -> list[Call] | None:
    """The calls of a text, a single one or a list; None if it is neither."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def errors(text: str, expected: str | Sequence[Call]) -> list[str]:
    """The `FIELDS` in which a text's calls are wrong, each once, the coarsest first; empty if all is right.

    Calls are matched in their order, arguments by name; 3 and 3.0 are one value, "3" is another.
    """
    calls, expected_calls = parse(text), parse(expected) if isinstance(expected, str) else list(expected)
    if expected_calls is None:
        return [] if forms.key(text) == forms.key(str(expected)) else ["form"]
    if calls is None:
        return ["form"]
    failed = {"count"} if len(calls) != len(expected_calls) else set()
    for a, b in zip(calls, expected_calls, strict=False):
        if a.name != b.name:
            failed.add("function")
        elif set(a.arguments) != set(b.arguments):
            failed.add("names")
        elif any(not _equal(a.arguments[k], b.arguments[k]) for k in b.arguments):
            failed.add("values")
    return [field for field in FIELDS if field in failed]


def accepted(text: str, possible: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]]) -> list[str]:
    """Like `errors`, against answers in the format of the Berkeley Function-Calling Leaderboard.

    Args:
        text: the text.
        possible: for each call `{function: {parameter: [accepted values]}}`; one with "" among them may be left out.
    """
    calls = parse(text)
    if calls is None:
        return ["form"]
    failed = {"count"} if len(calls) != len(possible) else set()
    for call, answer in zip(calls, possible, strict=False):
        (name, allowed), *_ = answer.items()
        needed = {k for k, values in allowed.items() if "" not in values}
        if call.name != name:
            failed.add("function")
        elif not needed <= set(call.arguments) <= set(allowed):
            failed.add("names")
        elif any(not any(_equal(v, w) for w in allowed[k]) for k, v in call.arguments.items()):
            failed.add("values")
    return [field for field in FIELDS if field in failed]


def lexemes(text: str) -> list[str]:
    """The names, numbers and signs of a text, without quotes and white space."""
    return LEXEME.findall(text.replace("'", " ").replace('"', " "))


def on_track(text: str, expected: str) -> bool:
    """Whether a partial text is a prefix of the expected one, lexeme by lexeme; the last one may be unfinished."""
    a, b = lexemes(text), lexemes(expected)
    if not a:
        return True
    *whole, last = a
    return whole == b[: len(whole)] and len(b) >= len(a) and b[len(whole)].startswith(last)


def overlap(a: str, b: str) -> float:
    """Share of the words (between white space) of the text with fewer words that the other has too."""
    words_a, words_b = set(a.split()), set(b.split())
    return len(words_a & words_b) / min(len(words_a), len(words_b)) if words_a and words_b else 0.0


def tally(failures: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of texts with an error in each field, and `exact`, the share with none."""
    counts = Counter(field for fields in failures for field in fields)
    n = max(1, len(failures))
    return {"exact": sum(not fields for fields in failures) / n, **{f: counts[f] / n for f in FIELDS}}


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("not a call")
    arguments = {str(i): _value(a) for i, a in enumerate(node.args)}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("not a named argument")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(ast.unparse(_name(node.func)), arguments)


def _name(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _name(node.value)):
        return node
    raise ValueError("not a name")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    return ast.literal_eval(node)


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def value(text: str, expected: str, terminal: bool) -> float:
    """+1 if a text is right so far (an ended answer: has the same calls), else -1."""
    is_right = not errors(text, expected) if terminal else on_track(text, expected)
    return 1.0 if is_right else -1.0


def guess(step: str, expected: str) -> float:
    """The official code's initial value of a fragment, from words alone.

    0.1 if it ends the calls exactly when the right answer does, else -0.1, plus the overlap of their words less 0.5;
    0 for white space.
    """
    if not step.strip():
        return 0.0
    return (0.1 if (")]" in step) == (")]" in expected) else -0.1) + overlap(expected, step) - 0.5


def difficulties(demos: Sequence[Demo]) -> list[float]:
    """Mean rank by number of tools, length of the prompt and number of calls."""
    tools = [len(d.extra.get("tools", ())) or d.prompt.count('"name"') for d in demos]
    calls = [len(parse(d.completion) or ()) for d in demos]
    return selection.mean_rank([tools, [len(d.prompt) for d in demos], calls])


def values(
    judge: Judge, model: Model, demos: Sequence[Demo], texts: Sequence[str], steps: Sequence[tuple[str, bool]],
    kv_cache: KVCache | None = None,
) -> list[float]:  # fmt: skip
    """The values of partial answers.

    Args:
        judge: `ast` compares with the right answer (`value`), `words` guesses from a step's words (`guess`), `self`
            asks the model for a verdict in [-0.5, 0.25].
        model: the searching model.
        demos: the request and right answer of each.
        texts: each answer so far.
        steps: its last step alone, and whether it ends the answer.
        kv_cache: cache of prefixes that the model has read.
    """
    if judge == "self":
        prompts = [
            VERDICT.format(request=d.prompt, truth=d.completion, answer=t) for d, t in zip(demos, texts, strict=True)
        ]
        return rank.expected(model, prompts, WORTH, kv_cache)
    expected = [d.completion for d in demos]
    if judge == "words":
        return [guess(step, w) for (step, _), w in zip(steps, expected, strict=True)]
    return [value(t, w, ended) for t, w, (_, ended) in zip(texts, expected, steps, strict=True)]


def selected(
    demos: Sequence[Demo], nll: Sequence[float], ratio: float, trim: float = 0.0, select: str = "ppl", seed: int = 0
) -> list[int]:
    """Indices of demonstrations to search: `floor(n ratio)` of those with calls and of the others, hardest first."""
    random = np.random.default_rng([seed, 57]).random(len(demos)).tolist()
    score = {"ppl": nll, "easy": [-x for x in nll], "random": random}[select]
    return selection.top(score, ratio, [")" in d.completion for d in demos], trim, nll)
