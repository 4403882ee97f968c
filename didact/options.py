"""A method's options on the command line, by their types and bounds in the catalogue: the method is not imported.

`--config` is applied before flags, at whatever position; bare flags mean true; lists take spaces or commas; there are
no abbreviations; errors are one line with the option, the given value and what it must be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, flags, values
from didact.requests import Request
from didact.types import UserError

COMMON = {
    "model": ("DIR", None, "model folder, hub id, or a served model: http://host:port/v1#name"),
    "budget_calls": ("N", None, "maximum number of calls to a served model; the same command continues from the cache"),
    "budget_tokens": ("N", None, "maximum number of tokens of a served model, prompts and answers"),
    "parallel_calls": ("N", None, "concurrent calls to a server (4; 32 if it samples in rounds)"),
    "generate_with": (
        "URL",
        None,
        "vLLM server that samples in the rounds; it is sent the new weights: http://host:port/v1",
    ),
    "preset": ("NAME", None, "a named set of options; the same as METHOD:PRESET"),
    "out": ("DIR", None, "output folder (runs/METHOD)"),
    "seed": ("N", 0, "seed of the data order and of all other randomness"),
    "device": ("NAME", None, "cpu, cuda, ...; by default the accelerator, if there is one"),
    "dtype": ("TYPE", "float32", "data type of the weights: float32, bfloat16, float16 or float64"),
    "quantize": ("TYPE", None, "hold the model's matrices in nf4 or int8 (bitsandbytes), for LoRA on top: --lora 8"),
    "map": ("FIELD=YOURS", None, "rename a field of your files, --map prompt=question; may be repeated"),
    "skip_bad": ("", False, "drop and count bad lines"),
    "chat": ("HOW", "auto", "how conversations become prompts: auto, template (the tokenizer's own) or plain"),
    "chat_template": ("FILE", None, "a chat template (Jinja) in place of the tokenizer's own; saved with the model"),
    "turns": ("WHICH", "last", "assistant turns of `messages` to train on: last, or all (one record each)"),
    "max_length": ("N", None, "maximum tokens of prompt and completion together (by default the model's context)"),
    "truncate": ("SIDE", "left", "side on which long prompts are cut: left (their beginning) or right"),
    "track": ("TOOL", None, "log the curves to tensorboard or wandb (offline) too, in --out"),
    "holdout": ("SHARE", 0.2, "share of the records that is held out from training, for scoring"),
    "score_on": ("FILE", None, "records to score on before and after, in place of the held-out share"),
    "group_by": ("FIELD", None, "records with the same value of it are held out together (by default the prompt)"),
    "final_answer": (
        "HOW",
        None,
        "score final answers too: number, choice, or regex:PATTERN with the answer as its group",
    ),
    "stops": (
        "TEXT",
        (),
        "stop string: answers, shown or scored, end before it (`\\n`: a line break); may be repeated",
    ),
    "evaluate_every": ("N", None, "evaluate on the held-out records every N steps; the curves are on the page"),
    "keep_best": (
        "",
        False,
        "keep the model of the best evaluation, not of the last step (needs --evaluate-every)",
    ),
    "retention": ("FILE", None, "general text that shows what training damaged (a small one is embedded)"),
    "metric": (
        "M:F",
        None,
        "your own metric, module:function, which scores an answer to a record; several by commas",
    ),
    "gold": ("DIR", None, "a model trained without the forget set, to compare with"),
    "function_timeout": ("SECONDS", 3600.0, "time limit of one call of your own function: a reward, a judge, a check"),
    "keep_checkpoints": ("", False, "keep checkpoints in --out after the end; an interrupted run keeps them anyway"),
    "overwrite": ("", False, "replace the results in --out"),
    "config": ("FILE", None, "options from a YAML file; flags win over it"),
    "print_config": ("", False, "print the options as YAML and stop"),
    "dry_run": ("", False, "estimate memory, disk, time, steps and truncated rows, and whether it fits; train nothing"),
}
# Options of `run` alone, for a single method or a server; `compare` takes all others too.
OF_RUN = (
    "preset",
    "evaluate_every",
    "keep_best",
    "keep_checkpoints",
    "budget_calls",
    "budget_tokens",
    "parallel_calls",
    "generate_with",
    "holdout",
    "score_on",
    "config",
    "print_config",
)
SHARED = tuple(name for name in COMMON if name not in OF_RUN)
OF_ANSWERS = ("device", "dtype", "chat", "stops")  # the common options that `try` takes
OF_SCORES = (*OF_ANSWERS, "map", "skip_bad", "turns", "max_length", "truncate", "final_answer", "metric", "gold")
WHOLE = ("seed", "max_length", "evaluate_every", "budget_calls", "budget_tokens", "parallel_calls")
REPEATED = ("map", "stops")
FLAGS = {name for name, (meta, _, _) in COMMON.items() if not meta}


class Options:
    """The option parser of one method; `parse` expects option names spelled as in `names`."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.entry = entry
        self.records = [n for n, need in entry["needs"].items() if need["kind"] != "model"]
        self.method = flat(entry)
        self.training = {o["name"]: o for o in entry["fit"]}
        if clash := set(self.method) & set(self.training):
            raise ValueError(f"{entry['name']}: option {clash} has the name of a training option")
        self.common = [name for name in COMMON if name not in self.method]  # a method's own option wins

    def names(self) -> list[str]:
        """Return every option, as `--name`."""
        return [f"--{n}" for n in (*self.records, *self.method, *self.training, *self.common)]

    def parse(self, words: Sequence[str], preset: str | None = None) -> Request:
        """Parse words to values, checked against the signature; flags override `--config`."""
        arguments = self._split(words)
        parsed: dict[str, Any] = {}
        origins: dict[str, str] = {}
        path: str | None = None
        if "config" in arguments:
            path = arguments.pop("config")[-1]
            for name, value in _checked_names(path, lines(path), [n[2:] for n in self.names()]).items():
                parsed[name], origins[name] = value, f"file {path}"
        for name, args in arguments.items():
            parsed[name], origins[name] = self._value(name, args), "flag"
        name = self.entry["name"]
        request = Request(
            method=name, out=f"runs/{name}", argv=["run", f"{name}:{preset}" if preset else name, *words], preset=preset
        )
        request.config = path
        request.provenance = {k: v for k, v in origins.items() if k in self.method or k in self.training}
        typed = self._typed({k: v for k, v in parsed.items() if k in self.method or k in self.training})
        request.options = {k: v for k, v in typed.items() if k in self.method}
        request.fit = {k: v for k, v in typed.items() if k in self.training}
        request.data = {k: str(parsed[k]) for k in self.records if k in parsed}
        request.rename = renames(parsed.get("map", []))
        for name in set(self.common) & set(parsed) - {"config", "map"}:
            setattr(request, name, common(name, parsed[name]))
        return request

    def arm(self, path: str, arguments: Mapping[str, Any]) -> Request:
        """Parse the options of a comparison's arm from a file: the method's own and those of training, no others."""
        typed = self._typed(_checked_names(path, arguments, (*self.method, *self.training)))
        request = Request(method=self.entry["name"])
        request.options = {k: v for k, v in typed.items() if k in self.method}
        request.fit = {k: v for k, v in typed.items() if k in self.training}
        return request

    def config(self, request: Request) -> str:
        """Return the options in force as YAML that `--config` reads back."""
        import yaml

        options: dict[str, Any] = {o["name"]: o["default"] for o in (*self.method.values(), *self.training.values())}
        if request.preset:
            options["preset"] = request.preset
            changed = self.entry["presets"].get(request.preset, {})
            options |= {k.removeprefix("fit."): v for k, v in changed.items()}
        if "fit.lr" not in self.entry["presets"].get(request.preset or "", {}):
            options.pop("lr", None)  # written down, it would replace the default by the model's size
        options |= request.options | request.fit | request.data | {"seed": request.seed}
        if request.model:
            options["model"] = request.model
        plain = json.loads(json.dumps({k: v for k, v in options.items() if v is not None}))
        return str(yaml.safe_dump(plain, sort_keys=False))

    def describe(self) -> str:
        """Return the help text."""
        e = self.entry
        lines = [f"usage: didact run {e['name']}[:PRESET] [options]", "", e["help"], "", "data"]
        lines += [_line(n, v["kind"].upper(), v["help"]) for n, v in e["needs"].items()]
        for title, options in (("options", self.method), ("training", self.training)):
            lines += ["", title]
            lines += [_line(n, o["type"], _help(o)) for n, o in options.items()]
        shared = [n for n in self.common if n != "model" and (n != "generate_with" or e["rounds"])]
        lines += ["", "everything else"] + [_line(n, COMMON[n][0], COMMON[n][2]) for n in shared]
        if e["presets"]:
            lines += ["", f"presets: {', '.join(e['presets'])}"]
        return "\n".join(lines)

    def _split(self, words: Sequence[str]) -> dict[str, list[str]]:
        """Return `{option: its words}`; a bare flag has none."""
        out: dict[str, list[str]] = {}
        name = None
        for word in words:
            if word.startswith("--") and len(word) > 2:
                name, eq, value = word[2:].partition("=")
                out[name] = out.get(name, []) if name in REPEATED else []  # of other repeated flags the last counts
                if eq:
                    out[name].append(value)
            elif name is None:
                raise UserError(f"'{word}': options begin with --")
            else:
                out[name].append(word)
        return out

    def _value(self, name: str, words: list[str]) -> Any:
        """Return the value of one flag from its words; lists take spaces or commas."""
        if name in REPEATED and words:
            return words
        option = self.method.get(name) or self.training.get(name)
        kind = option["type"] if option else ("bool" if name in FLAGS else "str")
        if not words:
            if kind == "bool":
                return True
            raise UserError(f"option --{name} needs a value")
        if option and takes_several(option):
            return [part for word in words for part in word.split(",") if part]
        if len(words) > 1:
            raise UserError(f"option --{name} takes one value, not {len(words)}: {' '.join(words)}")
        return words[0]

    def _typed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Convert values to their options' types and check their bounds."""
        out: dict[str, Any] = {}
        for name, raw in arguments.items():
            option = self.method.get(name) or self.training[name]
            try:
                out[name] = values.value(option["type"], raw)
            except ValueError:
                raise UserError(f"option --{name}: {_as_text(raw)}: must be {_expected(option['type'])}") from None
            if values.breaks(option["bounds"], out[name]):
                default = "" if option["default"] is None else f" (default {_as_text(option['default'])})"
                raise UserError(f"option --{name}: {_as_text(raw)}: must be {option['bounds']}{default}")
        return out


def flat(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a method's own options by name; the fields of a dataclass option as `option.field`."""
    out: dict[str, dict[str, Any]] = {}
    for option in entry["options"]:
        inner = {f"{option['name']}.{f['name']}": f for f in option.get("fields", ())}
        out |= {name: f | {"name": name} for name, f in inner.items()} or {option["name"]: option}
    return out


def training() -> list[dict[str, Any]]:
    """Return the training options of every method with a `fit`, except those that a comparison sets itself.

    `parallel` is left out too: an arm runs in a single process.
    """
    entry = next(e for e in catalogue.read().values() if e["fit"])
    return [o for o in entry["fit"] if o["name"] not in ("lr", "steps", "epochs", "parallel")]


def fit_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training options among `arguments`, converted to their types."""
    of_one = Options(next(e for e in catalogue.read().values() if e["fit"]))
    words = {o["name"]: arguments[o["name"]] for o in training() if arguments.get(o["name"]) is not None}
    return of_one.arm("--", {n: of_one._value(n, w if isinstance(w, list) else [w]) for n, w in words.items()}).fit


def takes_several(option: Mapping[str, Any]) -> bool:
    """Whether an option's value is a list."""
    return values.several(option["type"])


def numbers(name: str, words: Sequence[str]) -> list[float]:
    """Parse a list of numbers, separated by spaces or commas.

    Raises:
        UserError: a word is not a number.
    """
    try:
        return [float(part) for word in words for part in word.split(",") if part]
    except ValueError:
        raise UserError(f"option --{name}: {' '.join(words)}: must be numbers") from None


def parser(entry: Mapping[str, Any]) -> Options:
    """Return the option parser of a catalogue entry."""
    return Options(entry)


def renames(pairs: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Parse `["prompt=question"]` to `{"prompt": "question"}`."""
    if isinstance(pairs, Mapping):
        return dict(pairs)
    out = {}
    for word in pairs:
        for pair in word.split(","):
            field, eq, name = pair.partition("=")
            if not eq or not field or not name:
                raise UserError(f"--map {pair}: FIELD=YOURS is expected, as in prompt=question")
            out[field] = name
    return out


YAML_BYTES = 1 << 20  # most of a file of options
CHOICES = {
    "chat": ("auto", "template", "plain"),
    "truncate": ("left", "right"),
    "turns": ("last", "all"),
    "track": ("tensorboard", "wandb"),
    "quantize": ("nf4", "int8"),
}


def common(name: str, value: Any) -> Any:
    """Parse the value of a common option.

    Raises:
        UserError: it is not valid.
    """
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"option --{name}: {value}: must be one of {', '.join(CHOICES[name])}")
    if name in ("out", "model", "gold") and any("\ud800" <= c <= "\udfff" for c in str(value)):
        raise UserError(f"option --{name}: {value}: a name that is not UTF-8, which safetensors cannot open; rename it")
    if name == "stops":
        return tuple(text.replace("\\n", "\n") for text in ([value] if isinstance(value, str) else value))
    if name in FLAGS:
        return value is True or str(value).lower() in ("true", "yes", "1")
    if name in ("holdout", "function_timeout", *WHOLE):
        try:
            number = int(value) if name in WHOLE else float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"option --{name}: {value}: must be {'a whole number' if name in WHOLE else 'a number'}"
            ) from None
        if name == "function_timeout" and not 0 < number < 1e8:
            raise UserError(f"option --{name}: {value}: must be above 0")
        if name == "max_length" and number < 2:
            raise UserError(f"option --max-length: {value}: must be 2 or more")
        if number < 0 or (name == "holdout" and not number < 1):
            raise UserError(f"option --{name}: {value}: must be {'0 or more' if name in WHOLE else 'in [0, 1)'}")
        return number
    return str(value)


def lines(path: str) -> dict[str, Any]:
    """Read the `option: value` lines of a YAML file, names with underscores.

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    import yaml

    try:
        if Path(path).stat().st_size > YAML_BYTES or not Path(path).is_file():
            raise UserError(f"{path}: not a regular file, or more than {YAML_BYTES >> 10} KiB: not a file of options")
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _words_loader())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) if isinstance(error, yaml.constructor.ConstructorError) else None
        raise UserError(f"{path}{f':{mark.line + 1}' if mark else ''}: {problem or 'not valid YAML'}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: 'option: value' lines are expected")
    return {str(k).replace("-", "_"): v for k, v in content.items()}


def _words_loader() -> Any:
    """Return a YAML loader for options: values are words, like those of flags, so that no `no`, `1:30` or date becomes
    another value; no aliases (alias bombs fill the memory), no tags, and no option twice."""
    import yaml

    class Words(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012  (as the base class has it)
            first: [(tag, form) for tag, form in resolvers if tag == "tag:yaml.org,2002:null"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or (getattr(event, "tag", None) or "!") != "!":
                raise yaml.constructor.ConstructorError(
                    problem="aliases (*name) and tags (!name) are not supported", problem_mark=event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names: set[str] = set()
            for key, _ in node.value:
                name = str(key.value).replace("-", "_")
                if not isinstance(key, yaml.ScalarNode) or name in names:
                    raise yaml.constructor.ConstructorError(
                        problem=f"'{name}' is given twice" if name in names else "an option's name is expected",
                        problem_mark=key.start_mark,
                    )
                names.add(name)
            return super().construct_mapping(node, deep)

    return Words


def _checked_names(path: str, arguments: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    for name, value in arguments.items():
        if name == "fit" and isinstance(value, Mapping):
            raise UserError(f"{path}: training options go at the top level: '{next(iter(value), 'rows')}: ...'")
        if name not in allowed:
            raise UserError(f"{path}: unknown option '{name}'{flags.suggestion(name, allowed).replace('--', '')}")
    return dict(arguments)


def _expected(kind: str) -> str:
    names = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "None": "none"}
    if "|" in kind and " | " not in kind:
        return "one of " + ", ".join(kind.split("|"))
    return " or ".join(names.get(part, part) for part in kind.split(" | "))


def _line(name: str, meta: str, text: str) -> str:
    from textwrap import fill

    head = f"  --{name.replace('_', '-')} {meta}".rstrip()
    return head + "\n" + fill(text, 96, initial_indent="      ", subsequent_indent="      ")


def _help(option: Mapping[str, Any]) -> str:
    limits = f" ({option['bounds']})" if option["bounds"] else ""
    return f"{option['help'].rstrip('.')}{limits} [{_as_text(option['default'])}]"


def _as_text(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
