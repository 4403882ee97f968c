"""Ways to break a search for pairs that more than one claim must notice."""

from __future__ import annotations

from typing import Any

from didact.infer import tree


def turned(*args: Any, right: Any = tree.pairs, **more: Any) -> list[tree.Pair]:
    """`tree.pairs` with better and worse swapped."""
    return [tree.Pair(pair.worse, pair.better) for pair in right(*args, **more)]
