"""`@method`: registers a function as a method, with its declaration.

The wrapper checks bounds, model kinds and empty inputs before the function runs, makes a start model that is an adapter
ready for training, and gives every checkpoint written inside the identity of the call: the digest of all arguments and
data and of the method's source.
"""

from __future__ import annotations

import collections.abc
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from didact import bounds, files
from didact.types import Call, Record, Result, UserError

F = TypeVar("F", bound=Callable[..., Any])

ROUNDS = "didact.learn.rounds"  # by name: it is in a higher layer, which this one may not import
RUNTIME = ("fit", "hooks")  # not in the digest: a checkpoint compares training options itself; hooks only observe


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method: its function and what the command line, `methods` and `compare` need."""

    name: str
    family: str
    function: Callable[..., Any]
    paper: str
    year: int
    source: str
    gives: tuple[str, ...]
    capabilities: tuple[str, ...]
    kinds: tuple[str, ...]
    protocol: tuple[str, ...]
    answers: str | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baseline: bool = False

    @property
    def module(self) -> str:
        """The module that defines the function."""
        return self.function.__module__

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """Annotations of the parameters, bounds included."""
        return bounds.hints_of(self.function)

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters by name, in their order."""
        return inspect.signature(self.function).parameters

    @functools.cached_property
    def needs(self) -> dict[str, dict[str, Any]]:
        """Its inputs: `{parameter: {"kind": "model" or a record kind, "required": bool}}`."""
        kinds = {name: _input_kind(self.hints[name]) for name in self.parameters}
        return {
            name: {"kind": kind, "required": self.parameters[name].default is inspect.Parameter.empty}
            for name, kind in kinds.items()
            if kind
        }

    @property
    def rounds(self) -> bool:
        """Whether it works in rounds, each of which samples from the model of the previous one."""
        imported = vars(sys.modules[self.module]).values()
        return any(getattr(part, "__name__", "") == ROUNDS for part in imported)

    def check(self, values: Mapping[str, Any]) -> None:
        """Check option values against the bounds in the signature.

        Raises:
            UserError: one is out of bounds; the message names the method, the option, its value and its bounds.
        """
        options = {name: value for name, value in values.items() if name not in self.needs and name not in RUNTIME}
        for name, text in bounds.violations(self.hints, options):
            default = self.parameters[name].default
            if dataclasses.is_dataclass(values[name]):
                raise UserError(f"{self.name}: {name}.{text}")
            hint = "" if default in (inspect.Parameter.empty, None) else f" (default {_as_text(default)})"
            raise UserError(f"{self.name}: {name} = {_as_text(values[name])}: {text}{hint}")

    def check_inputs(self, values: Mapping[str, Any]) -> None:
        """Check the models and records of a call.

        Raises:
            UserError: a model of a kind the method cannot use, or a required file without records.
        """
        for name, need in self.needs.items():
            value = values.get(name)
            kind = getattr(value, "kind", None)
            if need["kind"] == "model" and kind in ("causal", "seq2seq", "masked") and kind not in self.kinds:
                raise UserError(f"{self.name} needs a {' or '.join(self.kinds)} model: this one is {kind}")
            if need["required"] and isinstance(value, Sequence) and not value:
                raise UserError(f"{name}: no records")


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    paper: str,
    year: int,
    source: str,
    gives: tuple[str, ...] = ("models",),
    capabilities: tuple[str, ...] = ("train",),
    kinds: tuple[str, ...] = ("causal", "seq2seq"),
    protocol: tuple[str, ...] = (),
    answers: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    baseline: bool = False,
) -> Callable[[F], F]:
    """Register a function as a method.

    Args:
        name: its name on the command line.
        paper: the paper's title.
        year: the year it appeared.
        source: where it appeared (`arXiv:...`).
        gives: parts of the `Result` it fills: models, predict, records, findings.
        capabilities: capabilities that its model must have.
        kinds: kinds of language model it works on.
        protocol: names of the protocols that score its model before and after (see `evaluate.protocols`).
        answers: the parameter of records that it answers, if it gives `predict` and no model: all of these are scored,
            none is held out, and they need no completion.
        presets: named option sets, `{"simnpo": {"loss": "simnpo", ...}}`; `method:preset` picks one.
        baseline: registered for comparison; not one of the papers.

    Its family is the package that its module is in.
    """

    def register(function: F) -> F:
        entry = Method(
            name=name, family=_package(function), function=function, paper=paper, year=year,
            source=source, gives=gives, capabilities=capabilities, kinds=kinds, protocol=protocol, answers=answers,
            presets=dict(presets or {}), baseline=baseline,
        )  # fmt: skip
        METHODS[name] = entry

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            call = inspect.signature(function).bind(*args, **options)
            call.apply_defaults()
            entry.check(call.arguments)
            entry.check_inputs(call.arguments)
            if hasattr(call.arguments.get("model"), "ready") and "fit" in call.arguments:
                call.arguments["model"] = call.arguments["model"].ready(call.arguments["fit"].lora)
            with identified(entry, call.arguments):
                result = function(*call.args, **call.kwargs)
            if isinstance(result, Result):
                _remember(result, entry, call.arguments)
            return result

        return typing.cast(F, checked)

    return register


def _remember(result: Result, entry: Method, arguments: Mapping[str, Any]) -> None:
    """Record the call in its result; metrics, if the method computed none, are then evaluated on first access."""
    result.call = Call(entry.name, dict(arguments))
    if not vars(result).get("metrics", True) and entry.protocol and (result.models or result.predict):
        del result.metrics


def _package(function: Callable[..., Any]) -> str:
    """Return the name of the package that a function's module is in, or of a module without one."""
    return function.__module__.rpartition(".")[0].rpartition(".")[2] or function.__module__


def assemble(function: Callable[..., Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a function takes them: `option.field` becomes a field of its dataclass option."""
    out: dict[str, Any] = {}
    parameters = inspect.signature(function).parameters
    for name, value in flat.items():
        option, _, inner = name.partition(".")
        if inner:
            out[option] = dataclasses.replace(out.get(option, parameters[option].default), **{inner: value})
        else:
            out[option] = value
    return out


def flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `assemble`: fields of dataclass options as `option.field`."""
    out: dict[str, Any] = {}
    for name, value in options.items():
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else ()
        out |= {f"{name}.{f.name}": getattr(value, f.name) for f in inner} or {name: value}
    return out


# --- identity --------------------------------------------------------------------------------

_CALL: contextvars.ContextVar[Callable[[], dict[str, str]] | None] = contextvars.ContextVar("call", default=None)


def identity() -> dict[str, str]:
    """Return what a checkpoint written now belongs to: digests of the running method's arguments; empty outside one."""
    call = _CALL.get()
    return call() if call else {}


@contextlib.contextmanager
def identified(entry: Method, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block checkpoints belong to this call. Digests are computed when a checkpoint first needs them."""

    @functools.cache
    def call() -> dict[str, str]:
        digests = {name: digest(value) for name, value in arguments.items() if name not in RUNTIME}
        source = Path(str(sys.modules[entry.module].__file__)).read_text(encoding="utf-8")
        return {"method": entry.name, "source": digest(source), **digests}

    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def digest(value: Any) -> str:
    """A short hash of an argument's content: records, options, models (by their weights), files and model folders
    (by what is in them), functions (by their source)."""
    return hashlib.sha256(repr(_content(value)).encode()).hexdigest()[:16]


def _content(value: Any) -> Any:
    if hasattr(value, "fingerprint"):  # a model, a server
        return value.fingerprint()
    if isinstance(value, Mapping):
        return [(key, _content(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, str):
        place = Path(value) if is_input(value) else module_file(value)
        return (str(value), files.digest(place)) if place else repr(value)
    if isinstance(value, Sequence):
        return [repr(item) if isinstance(item, Record) else _content(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, [(f.name, _content(getattr(value, f.name))) for f in dataclasses.fields(value)])
    if callable(value):
        with contextlib.suppress(OSError, TypeError):  # no source: a built-in, or defined interactively
            return inspect.getsource(value)
        return getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__name__)
    if repr(value) == object.__repr__(value):  # its repr is only a memory address
        return type(value).__module__, type(value).__qualname__
    return repr(value)


def module_file(name: str) -> Path | None:
    """Return the file of a user's `module:function`, perhaps in the working folder; None if there is none."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        return None
    sys.path.insert(0, "")
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # whatever the user's package raises: it is reported when the function is imported
        return None
    finally:
        sys.path.remove("")
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def is_input(text: str) -> bool:
    """Whether an option names a file or a model folder, whose content then counts too."""
    with contextlib.suppress(OSError, ValueError):
        place = Path(text)
        return place.is_file() or any(
            (place / name).is_file() for name in ("config.json", "adapter_config.json", "didact.json")
        )
    return False


def _input_kind(hint: Any) -> str | None:
    """Return `model` for a Model, the record's lower-case name for a sequence of records, else None."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    for option in typing.get_args(hint) if union else (hint,):
        if getattr(option, "__name__", "") == "Model":
            return "model"
        if typing.get_origin(option) in (collections.abc.Sequence, list):
            (item,) = typing.get_args(option)
            if isinstance(item, type) and issubclass(item, Record):
                return item.__name__.lower()
    return None


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
