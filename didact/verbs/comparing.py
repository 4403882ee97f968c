"""`didact compare`: several methods on one model and one set of files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, options
from didact.claims import compare
from didact.data import formats
from didact.data.read import read
from didact.evaluate import judges
from didact.infer import remote
from didact.models import load
from didact.types import RECORDS, UserError
from didact.verbs import provenance


def comparison(
    names: Sequence[str],
    model: str,
    data: Mapping[str, str],
    *,
    budget: str,
    out: str,
    seeds: int = 5,
    lrs: Sequence[float] = (),
    folds: int = 0,
    group: str | None = None,
    gold: str | None = None,
    judge: str | None = None,
    protocol: compare.Protocol | None = None,
    keep: bool = True,
    device: str | None = None,
    dtype: str = "float32",
    rename: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    argv: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare methods on the user's model and data; everything is kept in `out`, where a stopped one goes on.

    Args:
        names: arms, `METHOD[:PRESET]` or a YAML file with `method:` and options.
        model: where all arms start.
        data: files by record kind or by parameter (`forget`, `retain`).
        budget: what each arm may use, `20M-tokens`, `1e15-flops` or `90-seconds`.
        out: the folder.
        seeds: how many test seeds.
        lrs: learning rates every arm is tuned over; a grid by the model's size where none are given.
        folds: cross-validation in place of one split, seed k on fold k.
        group: a field whose equal values are never on both sides of a split.
        gold: a model that never saw what must be forgotten.
        judge: `module:function`, a reward model's folder, or `http://host/v1#name`.
        protocol: how arms are scored; by the records where not given.
        keep: save the taught model of every arm's first seed.
        device: cpu, cuda, ...
        dtype: of the weights.
        rename: fields of the files.
        skip_bad: drop bad lines.
        argv: the command line, shown on the page.

    Raises:
        UserError: an arm, a file or the budget is wrong, or `out` holds another comparison.
    """
    arms = [_arm(name) for name in names]
    if len({arm.name for arm in arms}) < len(arms):
        raise UserError("an arm is named twice")
    allowed = compare.Budget.parse(budget)
    kinds = {p: need["kind"] for arm in arms for p, need in arm.entry["needs"].items()} | {k: k for k in RECORDS}
    records = {name: read(path, kinds[name], dict(rename or {}), skip_bad) for name, path in data.items()}
    if not records:
        raise UserError("no data: give a file by its kind, as in --preference pairs.jsonl")
    start = load.load(model, device, dtype)
    how = protocol or compare.protocol_for(records)
    setting = compare.Setting(
        model=start, records=records, protocol=how, budget=allowed,
        seeds=range(1, seeds + 1), rates=tuple(lrs) or tuple(compare.rates(start)), folds=folds, group=group,
        gold=load.load(gold, device, dtype) if gold else None, judge=_judge(judge), folder=Path(out), keep=keep,
    )  # fmt: skip
    identity = files.plain(
        {
            "arms": [[arm.name, arm.options, arm.fit] for arm in arms], "model": start.fingerprint(),
            "data": {name: formats.fingerprint(path) for name, path in data.items()}, "budget": budget, "seeds": seeds,
            "rates": setting.rates, "folds": folds, "group": group,
            "gold": gold, "judge": judge, "protocol": how, "dtype": dtype,
            "map": dict(rename or {}), "skip_bad": skip_bad,
        }
    )  # fmt: skip
    _same_comparison(Path(out), identity)
    board = compare.run(arms, setting, lambda line: print(line, file=sys.stderr, flush=True))
    sources = {n: {"path": p, "sha256": formats.fingerprint(p), "records": len(records[n])} for n, p in data.items()}
    board |= {"schema": provenance.SCHEMA, "status": "done", "verb": "compare", "argv": list(argv), "model": model}
    board |= {
        "data": sources,
        "identity": identity,
        "versions": provenance.versions(),
        "device": str(start.device),
        "didact_commit": provenance.commit(),
    }
    files.write_json(Path(out) / "leaderboard.json", board)
    return board


ALIKE = {"lr": "--lrs are searched", "steps": "--budget decides", "epochs": "--budget decides"}


def _arm(name: str) -> compare.Arm:
    """An arm from `METHOD[:PRESET]` or a YAML file that names its method."""
    written: dict[str, Any] = {}
    if name.endswith((".yaml", ".yml")):
        written = options.lines(name)
        if "method" not in written:
            raise UserError(f"{name}: field 'method' is missing")
        for option in ALIKE.keys() & written:
            raise UserError(f"{name}: '{option}' is the same for every arm: {ALIKE[option]}")
        method = str(written.pop("method"))
        label = f"{method} ({Path(name).stem})"
    else:
        method = label = name
    method, _, preset = method.partition(":")
    entry = catalogue.entry(method)
    if preset and preset not in entry["presets"]:
        raise UserError(f"unknown preset '{preset}' of {method}: {', '.join(entry['presets']) or 'none'}")
    given = options.parser(entry).arm(name, written)
    changed = dict(entry["presets"].get(preset, {}))
    fit = {k.removeprefix("fit."): changed.pop(k) for k in list(changed) if k.startswith("fit.")}
    return compare.Arm(name=label, entry=entry, options=changed | given.options, fit=fit | given.fit)


def _judge(name: str | None) -> judges.Judge | None:
    if name is None:
        return None
    if remote.is_address(name):
        return judges.Asked(remote.connect(name))
    return judges.named(name)


def _same_comparison(out: Path, identity: Any) -> None:
    """Begin a comparison in `out`, or go on with the same one, perhaps with other arms beside those it had.

    Raises:
        UserError: another comparison stands there, or an arm of the same name with other options.
    """
    place = out / "comparison.json"
    arms = {arm[0]: arm for arm in identity["arms"]}
    try:
        if place.exists():
            kept = files.read_json(place)
            known = {arm[0]: arm for arm in kept["arms"]}
            changed = [k for k, v in identity.items() if k != "arms" and kept.get(k) != v]
            changed += [name for name, arm in arms.items() if known.get(name, arm) != arm]
            if changed:
                raise UserError(f"{out} holds another comparison ({', '.join(changed)} differ): choose another --out")
            arms = known | arms
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(place, identity | {"arms": list(arms.values())})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
