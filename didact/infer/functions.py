"""Functions of the user's: found by `module:function`, and asked so that their mistakes are told in one line."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from didact.types import Reward, UserError

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""`scorer(texts)`: one number each, higher is better."""


def imported(name: str, what: str, form: str = "module:function") -> Callable[..., Any]:
    """The user's `module:function`; the module may lie in the working folder.

    Raises:
        UserError: there is none; `what` it is for and the `form` expected are said.
    """
    module, colon, function = name.partition(":")
    if not colon or function.startswith("//"):
        raise UserError(f"{what} '{name}': {form} is expected")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} '{name}' cannot be imported: {error}") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UserError(f"{what} '{name}' is no function")
    return cast("Callable[..., Any]", found)


def one_each(function: Callable[..., Any], name: str, what: str, *columns: Sequence[str]) -> list[Any]:
    """What a user's function says of every row; its mistakes in one line.

    Raises:
        UserError: it raised, or did not give one value for each row.
    """
    try:
        given = list(function(*map(list, columns)))
    except Exception as error:
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if len(given) != len(columns[-1]):
        raise UserError(f"{name} gave {len(given)} {what} for {len(columns[-1])} completions")
    return given


def checked(reward: Reward, name: str = "reward") -> Reward:
    """The same reward function, whose mistakes are told in one line.

    Raises (when called):
        UserError: it raised, or gave NaN, or not one number for each completion.
    """

    def safe(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        values = one_each(reward, name, "numbers", prompts, completions)
        try:
            given = [float(x) for x in values]
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
        for i, x in enumerate(given):
            if math.isnan(x):
                raise UserError(f"{name} gave NaN for completion {i}: {completions[i][:60]!r}")
        return given

    return safe


def scorer(given: str | Scorer) -> Scorer:
    """What scores texts, from `module:function` or a function itself; its mistakes are told in one line.

    Raises:
        UserError: there is no such module or function.
    """
    name = given if isinstance(given, str) else getattr(given, "__name__", "scorer")
    found = imported(given, "scorer") if isinstance(given, str) else given
    safe = checked(lambda _, texts: found(texts), name)
    return lambda texts: safe(texts, texts)
