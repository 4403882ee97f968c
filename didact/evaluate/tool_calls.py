"""Tool calls in a text, `[f(a=1, b='x'), g()]`, and in which fields they differ from those that were wanted.

Texts are read by Python's own parser and never run. A bare word stands for itself: `f(colour=red)`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FIELDS = ("form", "count", "function", "names", "values")
"""What can be wrong: no list of calls, their number, a function's name, the set of its parameters, a value."""

LEXEME = re.compile(r"-?\d+(?:\.\d+)?|\w+|\S")


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
        return [] if said.strip() == str(wanted).strip() else ["form"]
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
