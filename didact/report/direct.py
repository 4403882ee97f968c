"""What is told of a method that was called from Python: its numbers and samples, and a result.json as a run has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, registry, untrusted
from didact.evaluate import measures, protocols
from didact.evaluate.protocols import Scoring
from didact.learn import rates
from didact.models.model import Model
from didact.report import page, tables
from didact.types import Call, Metric, Record, Result, Text, UserError
from didact.verbs import procedures, provenance, running

FLATTERED = "scored on the records it was trained on, which flatters it: result.evaluate(NAME=held_out) does not"


def metrics(result: Result, records: Mapping[str, Sequence[Record]]) -> dict[str, Metric]:
    """Numbers before and after by the method's protocols, on these records, else on those it was called with."""
    call = _call(result)
    entry, model = catalogue.entry(call.method), result.models.get("model")
    scoring = _scoring(call, records)
    used = [protocols.named(n) for n in entry["protocol"] if scoring and running.scored_by(n, scoring.records)]
    if scoring and entry["answers"] and result.predict:
        if used:
            procedures.told(entry, call.arguments["model"], result, scoring)
        return vars(result).get("metrics", {})
    if scoring is None or not isinstance(model, Model) or not used:
        return {}
    out = measures.metrics(running.scored(entry, scoring.start, scoring), running.scored(entry, model, scoring))
    flattering = not records and any(p.kind and name not in p.scored for p in used for name in scoring.records)
    told = [FLATTERED] * flattering + [text for protocol in used for text in protocol.warns(out)] + _doubts(call)
    result.warnings += [text for text in told if text not in result.warnings]
    return out


def _doubts(call: Call) -> list[str]:
    """That the plan could hardly move the model, where it could not; of documents the method says what a row is."""
    fit, model = call.arguments.get("fit"), call.arguments.get("model")
    first = next((rows for name, rows in call.arguments.items() if name != "model" and isinstance(rows, Sequence)), ())
    if fit is None or not isinstance(model, Model) or not first or not isinstance(first[0], Record):
        return []
    doubt = "" if isinstance(first[0], Text) else rates.told(model, fit, len(first))
    return [f"{doubt} (didact.fit_for gives the rate for its size)"] * bool(doubt)


def _scoring(call: Call, records: Mapping[str, Sequence[Record]]) -> Scoring | None:
    """What the method's protocols score on; None where it had no model here."""
    entry, start = catalogue.entry(call.method), call.arguments.get("model")
    needs, answers = entry["needs"], entry["answers"]
    if start is None or not (isinstance(start, Model) or answers):
        return None
    given = {name: call.arguments[name] for name in needs if name != "model" and call.arguments.get(name)}
    if answers:  # those it is to answer, where the answer is known
        given = {
            n: [r for r in rows if getattr(r, "completion", None) != ""] for n, rows in given.items() if n == answers
        }
    kinds = {need["kind"]: name for name, need in needs.items()}
    if wrong := [name for name in records if name not in (*needs, *kinds)]:
        raise UserError(f"{call.method} has no records {wrong[0]}: give {', '.join(given)}")
    other = {name if name in needs else kinds[name]: rows for name, rows in records.items()}
    end = None if isinstance(start, Model) else False
    scored = {name: rows for name, rows in (given | other).items() if rows}
    return Scoring(records=scored, start=start, seed=_seed(call), options=_options(call), end=end)


def _samples(result: Result) -> list[dict[str, str]]:
    """Answers before and after to a few of the records, where the result has none of its own."""
    call = _call(result)
    scoring, model = _scoring(call, {}), result.models.get("model")
    if scoring is None or not isinstance(model, Model) or model.kind == "encoder":
        return []
    names = catalogue.entry(call.method)["protocol"]
    used = [protocols.named(n) for n in names if running.scored_by(n, scoring.records)]
    parts = {name: rows for name, rows in scoring.records.items() if hasattr(rows[0], "prompt")}
    asked = protocols.drawn(used[0], scoring, parts, tables.SAMPLES) if used else []
    sides = [one.answer([a.prompt for a in asked]) if asked else [] for one in (scoring.start, model)]
    return [a._asdict() | {"before": was, "after": now} for a, was, now in zip(asked, *sides, strict=True)]


def told(result: Result, written: Mapping[str, str]) -> dict[str, Any]:
    """What result.json says of it; numbers that nobody asked for yet are not made."""
    call = _call(result)
    entry, start = catalogue.entry(call.method), call.arguments.get("model")
    fit = call.arguments.get("fit")
    shown = registry.flatten(_options(call)) | ({k: v for k, v in vars(fit).items() if k != "folder"} if fit else {})
    records = {n: {"path": "given in Python", "records": len(v)} for n, v in call.arguments.items()
               if n in entry["needs"] and n != "model" and v}  # fmt: skip
    model = None
    if isinstance(start, Model):
        model = {"path": start.base or "given in Python", "fingerprint": start.fingerprint()}
    return {
        "schema": provenance.SCHEMA, "status": "done", "verb": "run", "method": call.method, "preset": None, "argv": [],
        "options": {k: {"value": files.plain(v), "from": "Python"} for k, v in shown.items()},
        "model": model,
        "data": records, "metrics": vars(result).get("metrics", {}), "findings": result.findings, "cost": result.cost,
        "files": dict(written), "warnings": result.warnings, "versions": provenance.versions(),
        "device": str(start.device) if isinstance(start, Model) else "cpu", "seed": _seed(call),
    }  # fmt: skip


def report(result: Result, folder: str | Path | None) -> None:
    """See `Result.report`."""
    console = untrusted.console(120)
    sides = tables.sides(catalogue.read().get(result.call.method, {}) if result.call else {})
    if result.metrics:
        console.print(tables.metrics(files.plain(result.metrics), sides), "")
    result.samples = result.samples or _samples(result)
    if result.samples:
        console.print(tables.samples(result.samples, sides), "")
    for warning in result.warnings:
        console.print(f"warning: {warning}")
    if folder is not None:
        result.save(folder)
        console.print(f"page: {page.write(folder)}")


def _call(result: Result) -> Call:
    if result.call is None:
        raise UserError("this result is not that of a method called from Python")
    return result.call


def _options(call: Call) -> dict[str, Any]:
    own = {option["name"] for option in catalogue.entry(call.method)["options"]}
    return {name: value for name, value in call.arguments.items() if name in own}


def _seed(call: Call) -> int:
    fit = call.arguments.get("fit")
    return int(call.arguments.get("seed") or (fit.seed if fit else 0))
