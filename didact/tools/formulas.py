"""Parse and evaluate formulas of one variable in a text by their syntax tree; nothing is executed."""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import re
from collections.abc import Callable

LONGEST = 300  # characters
POWER = 16  # the largest exponent: numbers stay small
_HEAD = re.compile(r"(?:\by|\bf\(x\))\s*=\s*", re.IGNORECASE)
_IMPLIED = re.compile(r"(?<=[\d)])\s*(?=[a-wyz]*\(|x\b)")
_SIGNS = str.maketrans({"^": "**", "²": "**2", "³": "**3", "·": "*", "−": "-", "≤": "<=", "≥": ">="})
NAMES = {"pi": math.pi, "e": math.e}
CALLS: dict[str, Callable[[float], float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "exp": math.exp, "log": math.log, "ln": math.log,
    "sqrt": math.sqrt, "abs": abs,
}  # fmt: skip
SEVERAL: dict[str, Callable[..., float]] = {"min": min, "max": max}
ORDERS: dict[type, Callable[[float, float], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
SIGNS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def parse(text: str) -> Callable[[float], float] | None:
    """The last formula `y = ...` in a text as a function of x; None where there is none.

    `3x`, `2(x + 1)`, `x^2` and `x²` are understood, as are `max(0, x - 2)` and `2x if x < 3 else 6`; words after the
    formula end it.
    """
    for tail in reversed(_HEAD.split(text)[1:]):
        body = re.split(r"(?<![<>])=|[\n;]", tail)[0].translate(_SIGNS)
        words = body.split()
        for length in range(len(words), 0, -1):  # the longest prefix that is a formula
            if function := _function(" ".join(words[:length]).rstrip(".,")):
                return function
    return None


def _function(text: str) -> Callable[[float], float] | None:
    if not text or len(text) > LONGEST:
        return None
    try:
        tree = ast.parse(_IMPLIED.sub("*", text), mode="eval").body
        _evaluate(tree, 0.5)
    except (ArithmeticError, ValueError):
        pass  # undefined at this x, perhaps not at others
    except (SyntaxError, TypeError, RecursionError, MemoryError):
        return None

    def function(x: float) -> float:
        try:
            return float(_evaluate(tree, x))
        except (ArithmeticError, ValueError):
            return math.nan

    return function


def _evaluate(node: ast.AST, x: float) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.Name(id=name) if name.lower() == "x":
            return x
        case ast.Name(id=name) if name.lower() in NAMES:
            return NAMES[name.lower()]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return -_evaluate(operand, x) if isinstance(sign, ast.USub) else _evaluate(operand, x)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            power = _evaluate(right, x)
            if abs(power) > POWER:
                raise TypeError("too large a power")
            return float(_evaluate(left, x) ** power)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in SIGNS:
            return SIGNS[type(sign)](_evaluate(left, x), _evaluate(right, x))
        case ast.Call(func=ast.Name(id=name), args=[operand], keywords=[]) if name.lower() in CALLS:
            return float(CALLS[name.lower()](_evaluate(operand, x)))
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as operands, keywords=[]) if name.lower() in SEVERAL:
            return float(SEVERAL[name.lower()](*[_evaluate(operand, x) for operand in operands]))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            branch, unused = (body, orelse) if _holds(test, x) else (orelse, body)
            with contextlib.suppress(ArithmeticError, ValueError):
                _evaluate(unused, x)  # it must be a formula too
            return _evaluate(branch, x)
    raise TypeError("not a formula of x")


def _holds(node: ast.AST, x: float) -> bool:
    """Evaluate a comparison, `x < 3` or `0 <= x < 3`."""
    if not isinstance(node, ast.Compare) or any(type(order) not in ORDERS for order in node.ops):
        raise TypeError("not a comparison")
    values = [_evaluate(operand, x) for operand in (node.left, *node.comparators)]
    return all(ORDERS[type(order)](a, b) for order, a, b in zip(node.ops, values, values[1:], strict=False))
