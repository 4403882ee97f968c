"""Code that differs only in local names has the same canonical form, and other code does not."""

import ast

import pytest

from didact.claims import canonical


def form(source: str) -> str:
    return ast.unparse(canonical.form(ast.parse(source)))


@pytest.mark.parametrize(
    "one, other",
    [
        ("def f(a):\n    x = a\n    return x", "def f(a):\n    y = a\n    return y"),
        ("def f(a):\n    x = a\n    return [x for x in x]", "def f(a):\n    y = a\n    return [z for z in y]"),
        ("def f(a):\n    return [v for k in a if (v := k)], v", "def f(a):\n    return [w for k in a if (w := k)], w"),
        ("f = lambda x: x + y", "f = lambda z: z + y"),
        ("_A = 1\ndef _g():\n    return _A", "_B = 1\ndef _h():\n    return _B"),
        ("try:\n    f()\nexcept E as _e:\n    print(_e)", "try:\n    f()\nexcept E as _g:\n    print(_g)"),
        (
            "def f(a):\n    match a:\n        case [x, *y]:\n            return x, y",
            "def f(a):\n    match a:\n        case [p, *q]:\n            return p, q",
        ),
        ("def f(a):\n    x = 1\n    return f'{x} x'", "def f(a):\n    y = 1\n    return f'{y} x'"),
    ],
)
def test_names_of_local_variables_do_not_count(one: str, other: str) -> None:
    assert form(one) == form(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("def f():\n    x = 1\n    y = 2\n    return x", "def f():\n    x = 1\n    y = 2\n    return y"),
        ("def f():\n    x = 1\n    return g", "def f():\n    g = 1\n    return g"),
        ("def f(a, b):\n    return a", "def f(b, a):\n    return b"),
        ("def f(a):\n    return a.x", "def f(a):\n    return a.y"),
        ("def f(a):\n    return g(x=a)", "def f(a):\n    return g(y=a)"),
        ("class C:\n    x = 1", "class C:\n    y = 1"),
        ("A = 1", "B = 1"),
        ("def f():\n    global x\n    x = 1", "def f():\n    global y\n    y = 1"),
        ("def f():\n    import x\n    return x", "def f():\n    import y\n    return y"),
        (
            "def f():\n    x = 1\n    def g():\n        x = 2\n    return x",
            "def f():\n    x = 1\n    def g():\n        nonlocal x\n        x = 2\n    return x",
        ),
    ],
)
def test_everything_else_does(one: str, other: str) -> None:
    assert form(one) != form(other)
