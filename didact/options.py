"""A method's options on the command line, by their types and bounds in the catalogue: nothing imports the method.

`--config` is applied before flags wherever it stands; bare flags mean true; lists take spaces or commas; there are no
abbreviations; errors are one line that names the option, what was given and what it takes.
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
    "budget_calls": ("N", None, "calls to a served model at most; the same command goes on from the cache"),
    "budget_tokens": ("N", None, "tokens of a served model at most, prompts and answers"),
    "parallel_calls": ("N", None, "calls to a server under way at once (4; 32 where it samples in rounds)"),
    "generate_with": (
        "URL",
        None,
        "a vLLM server samples in the rounds, by weights that it is given: http://host:port/v1",
    ),
    "preset": ("NAME", None, "a named option set; METHOD:PRESET says the same"),
    "out": ("DIR", None, "where everything is written (runs/METHOD)"),
    "seed": ("N", 0, "order of the data, and everything drawn"),
    "device": ("NAME", None, "cpu, cuda, ...; the accelerator where there is one"),
    "dtype": ("TYPE", "float32", "of the weights: float32, bfloat16, float16 or float64"),
    "quantize": ("TYPE", None, "hold the model's matrices in nf4 or int8 (bitsandbytes), for LoRA on top: --lora 8"),
    "map": ("FIELD=YOURS", None, "rename a field of your files, --map prompt=question; may be repeated"),
    "skip_bad": ("", False, "drop and count bad lines"),
    "chat": ("HOW", "auto", "conversations to the model: auto, template (the tokenizer's own) or plain"),
    "chat_template": ("FILE", None, "a chat template (Jinja) in place of the tokenizer's own; saved with the model"),
    "turns": ("WHICH", "last", "assistant turns of `messages` that are learnt: last, or all (a record each)"),
    "max_length": ("N", None, "tokens of prompt and completion at most, where less than the model's context"),
    "truncate": ("SIDE", "left", "where prompts lose what is too much: left (their beginning) or right"),
    "track": ("TOOL", None, "curves to tensorboard or wandb (offline) too, in --out"),
    "holdout": ("SHARE", 0.2, "of the records, kept from training and used for scoring"),
    "score_on": ("FILE", None, "records to score on before and after, in place of a share of those trained on"),
    "group_by": ("FIELD", None, "records with one value of it are all kept or all trained on; by default their prompt"),
    "final_answer": (
        "HOW",
        None,
        "score final answers too: number, choice, or regex:PATTERN with the answer as its group",
    ),
    "stops": (
        "TEXT",
        (),
        "answers that are shown or scored end before this text (`\\n`: a line break); may be repeated",
    ),
    "evaluate_every": ("N", None, "score on the held-out records every N steps too; the curves are on the page"),
    "keep_best": (
        "",
        False,
        "the result is the model of the step that scored best, not of the last (--evaluate-every)",
    ),
    "retention": ("FILE", None, "general text, on which it is seen what training broke; a little is embedded"),
    "metric": (
        "M:F",
        None,
        "a metric of yours, module:function, a number from a record and the answer; more by commas",
    ),
    "gold": ("DIR", None, "a model trained without the forget set, to compare with"),
    "function_timeout": ("SECONDS", 3600.0, "for one call of a function of yours: a reward, a judge, a check"),
    "keep_checkpoints": ("", False, "keep them in --out after the end; what was interrupted keeps them anyway"),
    "overwrite": ("", False, "replace what stands in --out"),
    "config": ("FILE", None, "options from a YAML file; flags win over it"),
    "print_config": ("", False, "print the options as YAML and stop"),
    "dry_run": ("", False, "memory, disk, time, steps and truncated rows, and whether it fits; trains nothing"),
}
# What `compare` takes too: everything but what is of one method alone, or of a server.
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
OF_ANSWERS = ("device", "dtype", "chat", "stops")  # what `try` takes of them
OF_SCORES = (*OF_ANSWERS, "map", "skip_bad", "turns", "max_length", "truncate", "final_answer", "metric", "gold")
WHOLE = ("seed", "max_length", "evaluate_every", "budget_calls", "budget_tokens", "parallel_calls")
REPEATED = ("map", "stops")
FLAGS = {name for name, (meta, _, _) in COMMON.items() if not meta}


class Options:
    """The parser of one method. Use `parse` on words already spelled as `names` has them."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.entry = entry
        self.records = [n for n, need in entry["needs"].items() if need["kind"] != "model"]
        self.method = flat(entry)
        self.training = {o["name"]: o for o in entry["fit"]}
        if clash := set(self.method) & set(self.training):
            raise ValueError(f"{entry['name']}: option {clash} has the name of a training option")
        self.common = [name for name in COMMON if name not in self.method]  # of one name its own is meant

    def names(self) -> list[str]:
        """Every option, as `--name`."""
        return [f"--{n}" for n in (*self.records, *self.method, *self.training, *self.common)]

    def parse(self, words: Sequence[str], preset: str | None = None) -> Request:
        """Words to values, checked against the signature; `--config` first, flags over it."""
        given = self._split(words)
        found: dict[str, Any] = {}
        origin: dict[str, str] = {}
        path: str | None = None
        if "config" in given:
            path = given.pop("config")[-1]
            for name, value in _known(path, lines(path), [n[2:] for n in self.names()]).items():
                found[name], origin[name] = value, f"file {path}"
        for name, said in given.items():
            found[name], origin[name] = self._value(name, said), "flag"
        name = self.entry["name"]
        told = Request(
            method=name, out=f"runs/{name}", argv=["run", f"{name}:{preset}" if preset else name, *words], preset=preset
        )
        told.config = path
        told.provenance = {k: v for k, v in origin.items() if k in self.method or k in self.training}
        typed = self._typed({k: v for k, v in found.items() if k in self.method or k in self.training})
        told.options = {k: v for k, v in typed.items() if k in self.method}
        told.fit = {k: v for k, v in typed.items() if k in self.training}
        told.data = {k: str(found[k]) for k in self.records if k in found}
        told.rename = renames(found.get("map", []))
        for name in set(self.common) & set(found) - {"config", "map"}:
            setattr(told, name, common(name, found[name]))
        return told

    def arm(self, path: str, given: Mapping[str, Any]) -> Request:
        """Options of the method and of training as a file gives them, where nothing else may be said."""
        typed = self._typed(_known(path, given, (*self.method, *self.training)))
        told = Request(method=self.entry["name"])
        told.options = {k: v for k, v in typed.items() if k in self.method}
        told.fit = {k: v for k, v in typed.items() if k in self.training}
        return told

    def config(self, told: Request) -> str:
        """The options in force as YAML that `--config` reads back."""
        import yaml

        shown: dict[str, Any] = {o["name"]: o["default"] for o in (*self.method.values(), *self.training.values())}
        if told.preset:
            shown["preset"] = told.preset
            changed = self.entry["presets"].get(told.preset, {})
            shown |= {k.removeprefix("fit."): v for k, v in changed.items()}
        if "fit.lr" not in self.entry["presets"].get(told.preset or "", {}):
            shown.pop("lr", None)  # written down it would be given; where none is, one by the model's size acts
        shown |= told.options | told.fit | told.data | {"seed": told.seed}
        if told.model:
            shown["model"] = told.model
        plain = json.loads(json.dumps({k: v for k, v in shown.items() if v is not None}))
        return str(yaml.safe_dump(plain, sort_keys=False))

    def describe(self) -> str:
        """The help text."""
        e = self.entry
        lines = [f"usage: didact run {e['name']}[:PRESET] [options]", "", e["help"], "", "data"]
        lines += [_line(n, v["kind"].upper(), v["help"]) for n, v in e["needs"].items()]
        for title, options in (("options", self.method), ("training", self.training)):
            lines += ["", title]
            lines += [_line(n, o["type"], _help(o)) for n, o in options.items()]
        beside = [n for n in self.common if n != "model" and (n != "generate_with" or e["rounds"])]
        lines += ["", "everything else"] + [_line(n, COMMON[n][0], COMMON[n][2]) for n in beside]
        if e["presets"]:
            lines += ["", f"presets: {', '.join(e['presets'])}"]
        return "\n".join(lines)

    def _split(self, words: Sequence[str]) -> dict[str, list[str]]:
        """`{option: its words}`; a bare flag has none."""
        out: dict[str, list[str]] = {}
        name = None
        for word in words:
            if word.startswith("--") and len(word) > 2:
                name, eq, value = word[2:].partition("=")
                out[name] = out.get(name, []) if name in REPEATED else []  # of other flags the last one counts
                if eq:
                    out[name].append(value)
            elif name is None:
                raise UserError(f"'{word}': options begin with --")
            else:
                out[name].append(word)
        return out

    def _value(self, name: str, given: list[str]) -> Any:
        """The words of one flag as a value; lists take spaces or commas."""
        if name in REPEATED and given:
            return given
        option = self.method.get(name) or self.training.get(name)
        kind = option["type"] if option else ("bool" if name in FLAGS else "str")
        if not given:
            if kind == "bool":
                return True
            raise UserError(f"option --{name} needs a value")
        if option and takes_several(option):
            return [part for word in given for part in word.split(",") if part]
        if len(given) > 1:
            raise UserError(f"option --{name} takes one value, not {len(given)}: {' '.join(given)}")
        return given[0]

    def _typed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Values as their options' types, within their bounds."""
        out: dict[str, Any] = {}
        for name, said in given.items():
            option = self.method.get(name) or self.training[name]
            try:
                out[name] = values.value(option["type"], said)
            except ValueError:
                raise UserError(f"option --{name}: {_shown(said)}: must be {_wanted(option['type'])}") from None
            if values.breaks(option["bounds"], out[name]):
                default = "" if option["default"] is None else f" (default {_shown(option['default'])})"
                raise UserError(f"option --{name}: {_shown(said)}: must be {option['bounds']}{default}")
        return out


def flat(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A method's own options by name; the fields of one that is a dataclass as `option.field`."""
    out: dict[str, dict[str, Any]] = {}
    for option in entry["options"]:
        inner = {f"{option['name']}.{f['name']}": f for f in option.get("fields", ())}
        out |= {name: f | {"name": name} for name, f in inner.items()} or {option["name"]: option}
    return out


def training() -> list[dict[str, Any]]:
    """The training options that every method with a `fit` has, but those that a comparison decides itself.

    Its arms are for single processes, so that none lies over several.
    """
    entry = next(e for e in catalogue.read().values() if e["fit"])
    return [o for o in entry["fit"] if o["name"] not in ("lr", "steps", "epochs", "parallel")]


def fit_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The training options among `given` as their types."""
    of_one = Options(next(e for e in catalogue.read().values() if e["fit"]))
    words = {o["name"]: given[o["name"]] for o in training() if given.get(o["name"]) is not None}
    return of_one.arm("--", {n: of_one._value(n, w if isinstance(w, list) else [w]) for n, w in words.items()}).fit


def takes_several(option: Mapping[str, Any]) -> bool:
    """Whether an option's value is a list."""
    return values.several(option["type"])


def numbers(name: str, words: Sequence[str]) -> list[float]:
    """A list of numbers, by spaces or commas.

    Raises:
        UserError: a word is none.
    """
    try:
        return [float(part) for word in words for part in word.split(",") if part]
    except ValueError:
        raise UserError(f"option --{name}: {' '.join(words)}: must be numbers") from None


def parser(entry: Mapping[str, Any]) -> Options:
    """The option parser of a catalogue entry."""
    return Options(entry)


def renames(pairs: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """`["prompt=question"]` to `{"prompt": "question"}`."""
    if isinstance(pairs, Mapping):
        return dict(pairs)
    out = {}
    for word in pairs:
        for pair in word.split(","):
            mine, eq, theirs = pair.partition("=")
            if not eq or not mine or not theirs:
                raise UserError(f"--map {pair}: FIELD=YOURS is expected, as in prompt=question")
            out[mine] = theirs
    return out


YAML_BYTES = 1 << 20  # of a file of options
CHOICES = {
    "chat": ("auto", "template", "plain"),
    "truncate": ("left", "right"),
    "turns": ("last", "all"),
    "track": ("tensorboard", "wandb"),
    "quantize": ("nf4", "int8"),
}


def common(name: str, value: Any) -> Any:
    """A common option's words as its value.

    Raises:
        UserError: they are none.
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
    """A YAML file's `option: value` lines, names with underscores.

    Raises:
        UserError: it cannot be read, or has something else.
    """
    import yaml

    try:
        if Path(path).stat().st_size > YAML_BYTES or not Path(path).is_file():
            raise UserError(f"{path}: not a file, or more than {YAML_BYTES >> 10} KiB: these are no options")
        told = yaml.load(Path(path).read_text(encoding="utf-8"), _words_loader())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) if isinstance(error, yaml.constructor.ConstructorError) else None
        raise UserError(f"{path}{f':{mark.line + 1}' if mark else ''}: {why or 'not valid YAML'}") from None
    if not isinstance(told, dict):
        raise UserError(f"{path}: 'option: value' lines are expected")
    return {str(k).replace("-", "_"): v for k, v in told.items()}


def _words_loader() -> Any:
    """A YAML loader of options: values are words, as flags have them, so that no `no`, `1:30` or date becomes another
    value; no aliases, whose bombs fill any memory, no tags, and nothing said twice."""
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
                    problem="aliases (*name) and tags (!name) are not taken", problem_mark=event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                name = str(key.value).replace("-", "_")
                if not isinstance(key, yaml.ScalarNode) or name in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"'{name}' is said twice" if name in seen else "an option's name is expected",
                        problem_mark=key.start_mark,
                    )
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Words


def _known(path: str, given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    for name, value in given.items():
        if name == "fit" and isinstance(value, Mapping):
            raise UserError(f"{path}: options of training stand by themselves: '{next(iter(value), 'rows')}: ...'")
        if name not in known:
            raise UserError(f"{path}: unknown option '{name}'{flags.meant(name, known).replace('--', '')}")
    return dict(given)


def _wanted(kind: str) -> str:
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
    return f"{option['help'].rstrip('.')}{limits} [{_shown(option['default'])}]"


def _shown(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
