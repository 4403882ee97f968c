"""Run a claim: one seed after another, then the same seeds sabotaged, and one JSON card for the scoreboard."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from didact import files, folders
from didact.claims import real, sources, verdict
from didact.learn import episodes
from didact.models import cache
from didact.progress import Bar
from didact.types import UserError

Tier = Literal["smoke", "quick", "full", "real"]
Measured = Mapping[str, Mapping[str, float]]
"""Result of one seed: `{arm: {metric: value}}`."""

FEWEST: Mapping[str, int] = {"smoke": 1, "quick": 5, "full": 10, "real": 3}


@dataclass(frozen=True)
class Sabotage:
    """A way to break the method that its claim must detect.

    Args:
        name: what is broken, in a few words.
        breaks: the test that must detect it.
        metric: `arm.metric` that must get worse where the intact test does not hold (see `verdict.detect`).
        patch: `{"package.module:attribute": replacement}`, in force while the claim runs.
        options: keyword arguments for the claim's `run`.
    """

    name: str
    breaks: str
    metric: str | None = None
    patch: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper's central claim as an experiment.

    Args:
        method: method of the claim.
        text: the claim in a sentence or two, in the paper's terms.
        run: `run(seed, tier, **options)`: every arm trained and measured on one seed, pure in its arguments;
            a function of the claim's own module. The runner calls it on one thread, with a private cache.
        tests: what the seeds decide.
        gates: competence gates, made by `lab.gate`.
        sabotages: at least two, from the paper's card.
        seeds: number of seeds per tier, if more than `FEWEST`: 0, 1, 2 ... (tune on seeds from 1000 on).
    """

    method: str
    text: str
    run: Callable[..., Measured]
    tests: tuple[verdict.Test, ...]
    gates: tuple[verdict.Test, ...] = ()
    sabotages: tuple[Sabotage, ...] = ()
    seeds: Mapping[str, int] = field(default_factory=lambda: FEWEST)

    def __post_init__(self) -> None:
        tests = [t.name for t in self.tests]
        names = tests + [g.name for g in self.gates] + [s.name for s in self.sabotages]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.method}: two tests, gates or sabotages share a name: {names}")
        for sabotage in self.sabotages:
            if sabotage.breaks not in tests:
                raise ValueError(f"{self.method}: sabotage '{sabotage.name}' breaks no test: '{sabotage.breaks}'")
        for tier, fewest in FEWEST.items():
            if self.seeds.get(tier, fewest) < fewest:
                raise ValueError(f"{self.method}: {tier} needs {fewest} seeds, has {self.seeds[tier]}")

    @property
    def modules(self) -> tuple[str, str]:
        """The method's and the claim's own module."""
        own = self.run.__module__
        return own.replace("didact.claims.", "didact.methods.").removesuffix("_real"), own


class Job(NamedTuple):
    """One seed of a claim, intact or under a sabotage of this name, saved in a folder."""

    method: str
    tier: Tier
    folder: str
    sabotage: str | None
    seed: int

    @property
    def name(self) -> str:
        """Name of the job in messages."""
        return f"{self.method}, {self.sabotage or 'intact'}, seed {self.seed}"


def jobs(claim: Claim, tier: Tier, sabotage: bool, folder: str) -> list[Job]:
    """Return the jobs that `run` would measure."""
    variants = [None, *(s.name for s in claim.sabotages if sabotage and tier != "smoke")]
    return [Job(claim.method, tier, folder, name, seed) for name in variants for seed in _seeds(claim, tier)]


def do(job: Job) -> dict[str, Any]:
    """Measure a job and save it for a `run` on its folder. Errors are ignored: `run` meets them again, and reports."""
    claim = load(job.method, job.tier)
    broken = next((s for s in claim.sabotages if s.name == job.sabotage), None)
    with contextlib.suppress(Exception), cache.private():
        _unit(claim, broken, job.seed, job.tier, job.folder, _identity(claim, job.tier))
    return {}


def _seeds(claim: Claim, tier: Tier) -> range:
    return range(claim.seeds.get(tier, FEWEST[tier]))


def _identity(claim: Claim, tier: Tier) -> dict[str, Any]:
    model = {"model": real.identity()} if tier == "real" else {}
    return {"method": claim.method, "tier": tier, "code": _code(claim), "versions": _versions(), **model}


def run(
    claim: Claim, tier: Tier = "quick", sabotage: bool = False, folder: str | Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Measure every seed, decide the tests, then repeat the seeds under each sabotage.

    Args:
        claim: what to run.
        tier: smoke has one short seed and gives no verdict (and runs no sabotage); real is for claims on a pre-trained
            model (`load(method, "real")`), whose fingerprint stands in the card.
        sabotage: whether to run the sabotages too.
        folder: where every finished seed is saved; the same call after a kill reads them from there.
        quiet: show no progress.

    Returns:
        The scoreboard's card. `seconds` is processor time of the intact claim, without sabotages. A sabotage that
        crashed, gave NaN or missed a competence gate is not detected and has its `error`.
    """
    if tier not in get_args(Tier):
        raise UserError(f"tier '{tier}': choose from {', '.join(get_args(Tier))}")
    seeds = _seeds(claim, tier)
    sabotages = claim.sabotages if sabotage and tier != "smoke" else ()
    if folder:
        folders.enter(folder, "claim")
    identity = _identity(claim, tier)
    seconds = 0.0
    with cache.private(), Bar(f"claim {claim.method}", len(seeds) * (1 + len(sabotages)), quiet=quiet) as bar:

        def measure(broken: Sabotage | None) -> dict[str, dict[str, list[float]]]:
            nonlocal seconds
            columns: dict[str, dict[str, list[float]]] = {}
            for seed in seeds:
                unit = _unit(claim, broken, seed, tier, folder, identity)
                for arm, metrics in unit["arms"].items():
                    for metric, value in metrics.items():
                        number = math.nan if value is None else float(value)
                        columns.setdefault(arm, {}).setdefault(metric, []).append(number)
                seconds += 0 if broken else unit["seconds"]
                bar.advance()
            return columns

        arms = measure(None)
        tests = [t.row(arms) for t in (*claim.gates, *claim.tests)]
        sabotage_rows = [_sabotaged(claim, s, arms, measure) for s in sabotages]
    return {
        "method": claim.method,
        "tier": tier,
        "claim": claim.text,
        "arms": arms,
        "tests": tests,
        "sabotage": sabotage_rows,
        "verdict": None if tier == "smoke" else verdict.verdict(tests),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "versions": identity["versions"],
        "measured": _timestamp(),
        **({"model": identity["model"]} if tier == "real" else {}),
        **identity["code"],
    }


def write(card: Mapping[str, Any], folder: str | Path = "scoreboard") -> Path:
    """Put a card on the scoreboard, `folder/<method>.json`.

    Raises:
        UserError: there is a file of that name that is not a card.
    """
    path = place(card["method"], folder, card["tier"])
    files.write_json(path, card)
    return path


def place(method: str, folder: str | Path, tier: Tier = "quick") -> Path:
    """Path of a method's card, existing or not; cards of the tier real have their own folder.

    Raises:
        UserError: there is a file of that name that is not a card.
    """
    path = Path(folder) / ("real" if tier == "real" else "") / f"{method}.json"
    try:
        is_card = not path.exists() or "sources_sha256" in files.read_json(path)
    except (UserError, OSError, LookupError, TypeError):
        is_card = False
    if not is_card:
        raise UserError(f"{path}: not a card that didact wrote, so it is not replaced: choose another --scoreboard")
    return path


def verify(method: str, folder: str | Path = "scoreboard", against: str | Path | None = None) -> list[str]:
    """Measure the first seed of a card again, intact. If it is equal bit for bit, the card holds for the current code.

    The card then gets today's hashes and `verified: {seed, date, versions}`, and keeps its numbers and its date.

    Args:
        method: method of the card.
        folder: folder of the cards.
        against: for a processor that rounds differently from the card's: a folder with the seed as the card's own code
            measured it on this machine (`didact claim METHOD --keep FOLDER`). The seed is then compared with that one.

    Returns:
        The differences: every number that changed, and tests that are now decided differently. With any, the card is
        not changed.

    Raises:
        UserError: there is no card of the method, or `against` does not have the seed as the card's code measured it.
    """
    path, claim = Path(folder) / f"{method}.json", load(method)
    if not path.exists():
        raise UserError(f"{path}: no card to verify; run: didact claim {method} --sabotage")
    card = files.read_json(path)
    seed = card["seeds"][0]
    with cache.private():
        arms = files.plain(_unit(claim, None, seed, card["tier"], None, {})["arms"])
    first = {arm: {m: column[0] for m, column in columns.items()} for arm, columns in card["arms"].items()}
    expected = {
        f"{arm}.{m}": v for arm, columns in _reference(card, against, first).items() for m, v in columns.items()
    }
    measured = {f"{arm}.{metric}": value for arm, columns in arms.items() for metric, value in columns.items()}
    differences = _differences(expected, measured)
    if not differences:
        stored = {arm: {m: [math.nan if v is None else v for v in column] for m, column in columns.items()}
                 for arm, columns in card["arms"].items()}  # fmt: skip
        rows = [t.row(stored) for t in (*claim.gates, *claim.tests)]
        differences = _differences(*({row["name"]: {k: row[k] for k in DECIDES} for row in table}
                                 for table in (card["tests"], rows)))  # fmt: skip
    if not differences:
        verified = {"seed": seed, "date": _timestamp(), "versions": _versions()}
        if against:
            verified["against"] = "the card's code on this machine"
        write(card | _code(claim) | {"verified": verified}, folder)
    return differences


def _reference(card: Mapping[str, Any], against: str | Path | None, first: Any) -> Any:
    """The arms of the card's first seed: from the card, or as its code measured them on this machine."""
    if against is None:
        return first
    path = Path(against) / card["method"] / f"intact-{card['seeds'][0]}.json"
    if not path.exists():
        raise UserError(f"{path}: missing; at the card's commit run: didact claim {card['method']} --keep {against}")
    saved = files.read_json(path)
    if saved["identity"]["code"]["sources_sha256"] != card["sources_sha256"]:
        raise UserError(f"{path}: not measured by the code of the card")
    if saved["arms"].keys() != first.keys():
        raise UserError(f"{path}: has other arms than the card")
    return saved["arms"]


DECIDES = ("kind", "null", "direction", "margin", "level", "gates", "outcome")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys((*before, *after))
    return [
        f"{name}: was {before.get(name, 'missing')}, is {after.get(name, 'missing')}"
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    ]


def stale(path: str | Path) -> bool:
    """Whether code of the method or the claim (see `sources`) changed since this card was measured or verified."""
    card = files.read_json(path)
    return bool(card["sources_sha256"] != _code(load(card["method"], card["tier"]))["sources_sha256"])


def drifted(path: str | Path) -> bool:
    """Whether only shared code changed since: the method's own code is still the one that was measured."""
    card = files.read_json(path)
    code = _code(load(card["method"], card["tier"]))
    return card["sources_sha256"] == code["sources_sha256"] and card.get("core_sha256") != code["core_sha256"]


def stalest(count: int, folder: str | Path = "scoreboard") -> list[str]:
    """Methods to measure again first: without a card, then stale, then measured longest ago."""

    def age(method: str) -> tuple[bool, bool, str]:
        path = Path(folder) / f"{method}.json"
        exists = path.exists()
        return exists, exists and not stale(path), files.read_json(path)["measured"] if exists else ""

    return sorted(claims(), key=age)[:count]


def state(method: str, folder: str | Path = "scoreboard") -> dict[str, Any]:
    """A row of the list of claims: verdict, tier, date of the measurement, and whether the code changed since."""
    path = Path(folder) / f"{method}.json"
    if not path.exists():
        return {"method": method, "verdict": None, "tier": None, "measured": None, "code": "not measured"}
    code = "stale" if stale(path) else "core changed since" if drifted(path) else "the same"
    return {k: files.read_json(path)[k] for k in ("method", "verdict", "tier", "measured")} | {"code": code}


def claims() -> dict[str, str]:
    """`{method: module of its claim}`: every `didact.claims.<family>.<method>` with a method; others are helpers."""
    root, methods = Path(__file__).parent, Path(__file__).parent.parent / "methods"
    places = [p.relative_to(root) for p in sorted(root.glob("*/[!_]*.py"))]
    places = [p for p in places if (methods / p).exists()]
    return {p.stem.replace("_", "-"): f"didact.claims.{p.parent}.{p.stem}" for p in places}


def load(method: str, tier: str = "quick") -> Claim:
    """Import the `CLAIM` of a method; for the tier real the one on a pre-trained model.

    Raises:
        UserError: the method has no claim, or none of the tier.
    """
    modules = claims()
    if method not in modules:
        raise UserError(f"no claim for '{method}'; there is one for each of: {', '.join(modules)}")
    if tier == "real":
        if method not in (available := real.claims(modules)):
            raise UserError(
                f"{method} has no claim on a pre-trained model; there is one for each of: {', '.join(available)}"
            )
        return importlib.import_module(f"{modules[method]}_real").CLAIM
    return importlib.import_module(modules[method]).CLAIM


def exit_code(card: Mapping[str, Any]) -> int:
    """Exit code of `didact claim`: 0 holds (or smoke), 1 fails, 3 inconclusive.

    A claim that holds but does not detect a sabotage is inconclusive.
    """
    code = verdict.EXIT[card["verdict"]]
    return code or (0 if all(row["detected"] for row in card["sabotage"]) else verdict.EXIT["inconclusive"])


def sources_sha256(*modules: str) -> str:
    """Return the hash of the own code of a method's and a claim's modules."""
    return sources.sha256(*modules)[0]


@contextlib.contextmanager
def patched(patch: Mapping[str, Any]) -> Iterator[None]:
    """Replace each `package.module:attribute` inside the block. Works because callers write `module.function(...)`.

    Raises:
        AttributeError: there is no attribute of that name.
    """
    with contextlib.ExitStack() as undo:
        for target, replacement in patch.items():
            name, _, attribute = target.partition(":")
            module = importlib.import_module(name)
            undo.callback(setattr, module, attribute, getattr(module, attribute))
            setattr(module, attribute, replacement)
        yield


def _unit(
    claim: Claim, broken: Sabotage | None, seed: int, tier: Tier, folder: str | Path | None, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """One seed, intact or broken: read if it was finished before under the same code, else measured and saved."""
    variant = broken.name.replace(" ", "-") if broken else "intact"
    path = Path(folder) / f"{variant}-{seed}.json" if folder else None
    if path and path.exists():
        saved = files.read_json(path)
        if isinstance(saved, dict) and saved.get("identity") == identity:
            return saved
    start = time.process_time()
    with patched(broken.patch if broken else {}), episodes.one_thread():
        arms = claim.run(seed, tier, **(broken.options if broken else {}))
    unit = {"identity": identity, "arms": arms, "seconds": time.process_time() - start}
    if path:
        files.write_json(path, unit)
    return unit


def _sabotaged(
    claim: Claim, broken: Sabotage, intact: verdict.Arms, measure: Callable[[Sabotage], verdict.Arms]
) -> dict[str, Any]:
    """A sabotage's row of the card. A sabotaged run that raises is not detected: the test never saw its numbers."""
    row = {"name": broken.name, "breaks": broken.breaks}
    test = next(t for t in claim.tests if t.name == broken.breaks)
    try:
        arms = measure(broken)
        for gate in claim.gates:  # of the arms that ran: a sabotage may leave out arms that it does not affect
            if (
                gate.a.rpartition(".")[0] in arms
                and gate.row(intact)["outcome"] == "holds" != gate.row(arms)["outcome"]
            ):
                raise ArithmeticError(f"missed the gate '{gate.name}'")
        return row | verdict.detect(test, intact, arms, broken.metric)
    except Exception as error:
        error_line = f"{type(error).__name__}: {error}"
        empty = dict.fromkeys(("estimate", "interval", "intact", "sabotaged"))
        return row | empty | {"detected": False, "error": error_line}


def _code(claim: Claim) -> dict[str, str]:
    return dict(zip(("sources_sha256", "core_sha256"), sources.sha256(*claim.modules), strict=True))


def _timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    packages = ("didact", "torch", "transformers", "numpy", "scipy")
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
