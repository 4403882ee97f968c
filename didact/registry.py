"""`@method`: how a function becomes a method, and what the declaration carries for it.

The wrapper checks bounds, model kinds and empty inputs before the function runs, makes an adapter given as the start
ready for training, and gives every checkpoint written
inside it the identity of the call: the digest of all arguments and data and of the method's source.
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

ROUNDS = "didact.learn.rounds"  # by its name: it stands floors above
RUNTIME = ("fit", "hooks")  # a checkpoint compares the training options itself; hooks only watch


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method: its function and what the command line, `methods` and `compare` need to know."""

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
        """Where the function is defined."""
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
        """Whether it goes in rounds, each of which samples from the model that the last one made."""
        used = vars(sys.modules[self.module]).values()
        return any(getattr(part, "__name__", "") == ROUNDS for part in used)

    def check(self, values: Mapping[str, Any]) -> None:
        """Check option values against the bounds in the signature.

        Raises:
            UserError: one is out of bounds; the message names the method, the option, its value and the mend.
        """
        own = {name: value for name, value in values.items() if name not in self.needs and name not in RUNTIME}
        for name, text in bounds.violations(self.hints, own):
            default = self.parameters[name].default
            if dataclasses.is_dataclass(values[name]):
                raise UserError(f"{self.name}: {name}.{text}")
            mend = "" if default in (inspect.Parameter.empty, None) else f" (default {_shown(default)})"
            raise UserError(f"{self.name}: {name} = {_shown(values[name])}: {text}{mend}")

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
        name: on the command line.
        paper: its title.
        year: it appeared.
        source: where (`arXiv:...`).
        gives: parts of the `Result` it fills: models, predict, records, findings.
        capabilities: what its model must offer.
        kinds: of language model it works on.
        protocol: names of the protocols that score its model before and after (see `evaluate.protocols`).
        answers: the parameter of records that it answers, where it gives `predict` and no model: those are scored as
            they are, none is held out, and one needs no completion to be answered.
        presets: named option sets, `{"simnpo": {"loss": "simnpo", ...}}`; `method:preset` picks one.
        baseline: registered for comparison; not one of the papers.

    Its family is the package its module stands in.
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
                made = function(*call.args, **call.kwargs)
            if isinstance(made, Result):
                _remember(made, entry, call.arguments)
            return made

        return typing.cast(F, checked)

    return register


def _remember(result: Result, entry: Method, arguments: Mapping[str, Any]) -> None:
    """Which call gave a result; its metrics, where it has none of its own, are made of that when they are asked for."""
    result.call = Call(entry.name, dict(arguments))
    if not vars(result).get("metrics", True) and entry.protocol and (result.models or result.predict):
        del result.metrics


def _package(function: Callable[..., Any]) -> str:
    """The name of the package a function's module stands in, or of a module by itself."""
    return function.__module__.rpartition(".")[0].rpartition(".")[2] or function.__module__


def assemble(function: Callable[..., Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a function takes them: those called `option.field` become fields of its dataclass option."""
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
    """What a checkpoint written now belongs to: a digest of every argument of the method that runs; empty outside."""
    call = _CALL.get()
    return call() if call else {}


@contextlib.contextmanager
def identified(entry: Method, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block checkpoints belong to this call. Digests are made when a checkpoint first asks for them."""

    @functools.cache
    def call() -> dict[str, str]:
        given = {name: digest(value) for name, value in arguments.items() if name not in RUNTIME}
        source = Path(str(sys.modules[entry.module].__file__)).read_text(encoding="utf-8")
        return {"method": entry.name, "source": digest(source), **given}

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
        with contextlib.suppress(OSError, TypeError):  # no source at hand: a built-in, or typed at a prompt
            return inspect.getsource(value)
        return getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__name__)
    if repr(value) == object.__repr__(value):  # an address says nothing of what it is
        return type(value).__module__, type(value).__qualname__
    return repr(value)


def module_file(name: str) -> Path | None:
    """The file with the code of a user's `module:function`, perhaps in the working folder; None where there is none."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        return None
    sys.path.insert(0, "")
    try:
        found = importlib.util.find_spec(module)
    except Exception:  # whatever a package of the user's raises; it is told where the function is imported
        return None
    finally:
        sys.path.remove("")
    return Path(found.origin) if found and found.origin and Path(found.origin).is_file() else None


def is_input(text: str) -> bool:
    """Whether an option names a file or a model folder, whose content counts beside its name."""
    with contextlib.suppress(OSError, ValueError):
        place = Path(text)
        return place.is_file() or any(
            (place / n).is_file() for n in ("config.json", "adapter_config.json", "didact.json")
        )
    return False


def _input_kind(hint: Any) -> str | None:
    """`model` for a Model, the record's lower-case name for a sequence of records, else None."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    for option in typing.get_args(hint) if union else (hint,):
        if getattr(option, "__name__", "") == "Model":
            return "model"
        if typing.get_origin(option) in (collections.abc.Sequence, list):
            (item,) = typing.get_args(option)
            if isinstance(item, type) and issubclass(item, Record):
                return item.__name__.lower()
    return None


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
