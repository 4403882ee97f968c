"""User functions: imported by `module:function`, and called so that their errors are reported in one line."""

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

LIMIT = {"seconds": 3600.0}  # time limit of a call or import of a user function; --function-timeout

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""`scorer(texts)`: one number each, higher is better."""


def import_function(name: str, what: str, form: str = "module:function") -> Callable[..., Any]:
    """Import the user's `module:function`; the module may be in the working directory.

    Raises:
        UserError: it cannot be imported; the message names its purpose `what` and the expected `form`.
    """
    module, colon, function = name.partition(":")
    if not colon or function.startswith("//"):
        raise UserError(f"{what} '{name}': {form} is expected")
    sys.path.insert(0, "")
    try:
        with untrusted.limited(LIMIT["seconds"]):
            target = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(f"{what} '{name}' cannot be imported: {error}") from None
    except (Exception, SystemExit, untrusted.ExceededError) as error:
        raise UserError(f"{what} '{name}' cannot be imported: {_raised(error)}") from None
    finally:
        sys.path.remove("")
    if not callable(target):
        raise UserError(f"{what} '{name}' is not a function")
    return _guarded(cast("Callable[..., Any]", target), f"{what} '{name}'")


def _guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap a function so that it can neither exit the program nor run for ever."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            with untrusted.limited(LIMIT["seconds"]):
                return function(*args, **kwargs)
        except (SystemExit, untrusted.ExceededError) as error:
            raise UserError(f"{name} {_raised(error)}") from error

    return guarded


def one_each(function: Callable[..., Any], name: str, what: str, *columns: Sequence[str]) -> list[Any]:
    """Call a user function on columns and return its list of values, one per row.

    Raises:
        UserError: it raised, or did not return one value per row.
    """
    count = len(columns[-1])
    try:
        with untrusted.limited(LIMIT["seconds"]):
            values = list(itertools.islice(function(*map(list, columns)), count + 1))
    except UserError:
        raise
    except (Exception, SystemExit, untrusted.ExceededError) as error:
        raise UserError(f"{name} {_raised(error)}") from error
    if len(values) != len(columns[-1]):
        number = len(values) if len(values) <= count else f"more than {count}"
        raise UserError(f"{name} gave {number} {what} for {len(columns[-1])} completions")
    return values


def checked(reward: Reward, name: str = "reward") -> Reward:
    """Wrap a reward function so that its errors are reported in one line.

    Raises (when called):
        UserError: it raised, or did not return one finite number per completion.
    """

    def safe(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        values = one_each(reward, name, "numbers", prompts, completions)
        try:
            numbers = [float(x) for x in values]
        except Exception as error:  # float() of a user's class may raise anything
            raise UserError(f"{name} {_raised(error)}") from error
        for i, x in enumerate(numbers):
            if not math.isfinite(x):
                kind = "NaN" if math.isnan(x) else "an infinity"
                raise UserError(f"{name} gave {kind} for completion {i}: {completions[i][:60]!r}")
        return numbers

    return safe


def _raised(error: BaseException) -> str:
    """Describe how a user function failed."""
    if isinstance(error, untrusted.ExceededError):
        return f"took longer than {LIMIT['seconds']:g} s (--function-timeout)"
    if isinstance(error, SystemExit):
        return f"ended the program (exit {error.code})"
    return f"raised {type(error).__name__}: {error}"


def scorer(source: str | Scorer) -> Scorer:
    """Return a scorer of texts from `module:function` or a function; its errors are reported in one line.

    Raises:
        UserError: there is no such module or function.
    """
    name = source if isinstance(source, str) else getattr(source, "__name__", "scorer")
    function = import_function(source, "scorer") if isinstance(source, str) else source
    safe = checked(lambda _, texts: function(texts), name)
    return lambda texts: safe(texts, texts)
