"""Tool calls in a text, `[f(a=1, b='x'), g()]`, and in which fields they differ from those that were wanted.

Texts are read by Python's own parser and never run. A bare word stands for itself: `f(colour=red)`.
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
"""What can be wrong: no list of calls, their number, a function's name, the set of its parameters, a value."""

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
    """A function's name and its arguments by name; those without one are named by their place, from 0."""

    name: str
    arguments: dict[str, Any]


def parse(text: str) -> list[Call] | None:
    """The calls of a text, alone or in a list; None where it is nothing of the sort."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def errors(said: str, wanted: str | Sequence[Call]) -> list[str]:
    """The `FIELDS` in which a text's calls are wrong, each once, the coarsest first; none where all is right.

    Calls are matched in their order, arguments by name; 3 and 3.0 are one value, "3" is another.
    """
    made, right = parse(said), parse(wanted) if isinstance(wanted, str) else list(wanted)
    if right is None:
        return [] if forms.key(said) == forms.key(str(wanted)) else ["form"]
    if made is None:
        return ["form"]
    wrong = {"count"} if len(made) != len(right) else set()
    for a, b in zip(made, right, strict=False):
        if a.name != b.name:
            wrong.add("function")
        elif set(a.arguments) != set(b.arguments):
            wrong.add("names")
        elif any(not _equal(a.arguments[k], b.arguments[k]) for k in b.arguments):
            wrong.add("values")
    return [field for field in FIELDS if field in wrong]


def accepted(said: str, possible: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]]) -> list[str]:
    """The same against answers as the Berkeley Function-Calling Leaderboard writes them.

    Args:
        said: the text.
        possible: for each call `{function: {parameter: [accepted values]}}`; one with "" among them may be left out.
    """
    made = parse(said)
    if made is None:
        return ["form"]
    wrong = {"count"} if len(made) != len(possible) else set()
    for call, answer in zip(made, possible, strict=False):
        (name, allowed), *_ = answer.items()
        needed = {k for k, values in allowed.items() if "" not in values}
        if call.name != name:
            wrong.add("function")
        elif not needed <= set(call.arguments) <= set(allowed):
            wrong.add("names")
        elif any(not any(_equal(v, w) for w in allowed[k]) for k, v in call.arguments.items()):
            wrong.add("values")
    return [field for field in FIELDS if field in wrong]


def lexemes(text: str) -> list[str]:
    """Names, numbers and signs one by one, as they are without quotes and white space."""
    return LEXEME.findall(text.replace("'", " ").replace('"', " "))


def on_track(said: str, wanted: str) -> bool:
    """Whether a text so far is the beginning of the wanted one, lexeme by lexeme; the last one may be unfinished."""
    a, b = lexemes(said), lexemes(wanted)
    if not a:
        return True
    *whole, last = a
    return whole == b[: len(whole)] and len(b) >= len(a) and b[len(whole)].startswith(last)


def overlap(a: str, b: str) -> float:
    """Of two texts' words (between white space), the share that the one with fewer shares with the other."""
    one, two = set(a.split()), set(b.split())
    return len(one & two) / min(len(one), len(two)) if one and two else 0.0


def tally(wrong: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of texts with an error in each field, and `exact`, the share with none."""
    counts = Counter(field for fields in wrong for field in fields)
    n = max(1, len(wrong))
    return {"exact": sum(not fields for fields in wrong) / n, **{f: counts[f] / n for f in FIELDS}}


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


def value(said: str, wanted: str, terminal: bool) -> float:
    """+1 where what was said is right so far (an ended answer: has the same calls), -1 where it is not."""
    good = not errors(said, wanted) if terminal else on_track(said, wanted)
    return 1.0 if good else -1.0


def guess(step: str, wanted: str) -> float:
    """The official code's first guess of a fragment, from words alone.

    0.1 where it ends the calls if and only if the right answer does, else -0.1, plus the overlap of their words less
    0.5; 0 for white space.
    """
    if not step.strip():
        return 0.0
    return (0.1 if (")]" in step) == (")]" in wanted) else -0.1) + overlap(wanted, step) - 0.5


def difficulties(demos: Sequence[Demo]) -> list[float]:
    """Mean rank by number of tools, length of the prompt and number of calls."""
    tools = [len(d.extra.get("tools", ())) or d.prompt.count('"name"') for d in demos]
    calls = [len(parse(d.completion) or ()) for d in demos]
    return selection.mean_rank([tools, [len(d.prompt) for d in demos], calls])


def values(
    judge: Judge, model: Model, demos: Sequence[Demo], texts: Sequence[str], steps: Sequence[tuple[str, bool]],
    kv_cache: KVCache | None = None,
) -> list[float]:  # fmt: skip
    """What partial answers are worth.

    Args:
        judge: `ast` compares with the right answer (`value`), `words` guesses from a step's words (`guess`), `self`
            asks the model for a verdict in [-0.5, 0.25].
        model: that searches.
        demos: the request and right answer of each.
        texts: each answer so far.
        steps: its last step alone, and whether it ends the answer.
        kv_cache: what the model has read before.
    """
    if judge == "self":
        asked = [
            VERDICT.format(request=d.prompt, truth=d.completion, answer=t) for d, t in zip(demos, texts, strict=True)
        ]
        return rank.expected(model, asked, WORTH, kv_cache)
    wanted = [d.completion for d in demos]
    if judge == "words":
        return [guess(step, w) for (step, _), w in zip(steps, wanted, strict=True)]
    return [value(t, w, ended) for t, w, (_, ended) in zip(texts, wanted, steps, strict=True)]


def selected(
    demos: Sequence[Demo], nll: Sequence[float], ratio: float, trim: float = 0.0, select: str = "ppl", seed: int = 0
) -> list[int]:
    """Which demonstrations are searched: `floor(n ratio)` of those with calls and of the others, hardest first."""
    chance = np.random.default_rng([seed, 57]).random(len(demos)).tolist()
    score = {"ppl": nll, "easy": [-x for x in nll], "random": chance}[select]
    return selection.top(score, ratio, [")" in d.completion for d in demos], trim, nll)
