"""Functions of the user's: found by `module:function`, and asked so that their mistakes are told in one line."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from didact import untrusted
from didact.types import Reward, UserError

LIMIT = {"seconds": 3600.0}  # for one call of a user's function, or its import; --function-timeout

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
        with untrusted.limited(LIMIT["seconds"]):
            found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(f"{what} '{name}' cannot be imported: {error}") from None
    except (Exception, SystemExit, untrusted.ExceededError) as error:
        raise UserError(f"{what} '{name}' cannot be imported: {_raised(error)}") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UserError(f"{what} '{name}' is no function")
    return _guarded(cast("Callable[..., Any]", found), f"{what} '{name}'")


def _guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function, which neither ends the program nor takes for ever."""

    @functools.wraps(function)
    def guarded(*args: Any, **more: Any) -> Any:
        try:
            with untrusted.limited(LIMIT["seconds"]):
                return function(*args, **more)
        except (SystemExit, untrusted.ExceededError) as error:
            raise UserError(f"{name} {_raised(error)}") from error

    return guarded


def one_each(function: Callable[..., Any], name: str, what: str, *columns: Sequence[str]) -> list[Any]:
    """What a user's function says of every row; its mistakes in one line.

    Raises:
        UserError: it raised, or did not give one value for each row.
    """
    most = len(columns[-1])
    try:
        with untrusted.limited(LIMIT["seconds"]):
            given = list(itertools.islice(function(*map(list, columns)), most + 1))
    except UserError:
        raise
    except (Exception, SystemExit, untrusted.ExceededError) as error:
        raise UserError(f"{name} {_raised(error)}") from error
    if len(given) != len(columns[-1]):
        count = len(given) if len(given) <= most else f"more than {most}"
        raise UserError(f"{name} gave {count} {what} for {len(columns[-1])} completions")
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
        except Exception as error:  # a float() of the user's own class may raise anything
            raise UserError(f"{name} {_raised(error)}") from error
        for i, x in enumerate(given):
            if not math.isfinite(x):
                found = "NaN" if math.isnan(x) else "an infinity"
                raise UserError(f"{name} gave {found} for completion {i}: {completions[i][:60]!r}")
        return given

    return safe


def _raised(error: BaseException) -> str:
    """What a user's function did in place of an answer."""
    if isinstance(error, untrusted.ExceededError):
        return f"took longer than {LIMIT['seconds']:g} s (--function-timeout)"
    if isinstance(error, SystemExit):
        return f"ended the program (exit {error.code})"
    return f"raised {type(error).__name__}: {error}"


def scorer(given: str | Scorer) -> Scorer:
    """What scores texts, from `module:function` or a function itself; its mistakes are told in one line.

    Raises:
        UserError: there is no such module or function.
    """
    name = given if isinstance(given, str) else getattr(given, "__name__", "scorer")
    found = imported(given, "scorer") if isinstance(given, str) else given
    safe = checked(lambda _, texts: found(texts), name)
    return lambda texts: safe(texts, texts)
