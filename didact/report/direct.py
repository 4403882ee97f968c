"""Report on a method called from Python: its metrics and samples, and a result.json like that of a run."""

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

TRAINING_RECORDS = "scored on the records it was trained on, which flatters it: result.evaluate(NAME=held_out) does not"


def metrics(result: Result, records: Mapping[str, Sequence[Record]]) -> dict[str, Metric]:
    """Metrics before and after by the method's protocols, on `records` if given, else on those it was called with."""
    call = _require_call(result)
    entry, model = catalogue.entry(call.method), result.models.get("model")
    scoring = _scoring(call, records)
    applicable = [protocols.by_name(n) for n in entry["protocol"] if scoring and running.scored_by(n, scoring.records)]
    if scoring and entry["answers"] and result.predict:
        if applicable:
            procedures.add_answer_scores(entry, call.arguments["model"], result, scoring)
        return vars(result).get("metrics", {})
    if scoring is None or not isinstance(model, Model) or not applicable:
        return {}
    numbers = measures.metrics(running.scored(entry, scoring.start, scoring), running.scored(entry, model, scoring))
    on_training_records = not records and any(
        p.kind and name not in p.scored for p in applicable for name in scoring.records
    )
    warnings = (
        [TRAINING_RECORDS] * on_training_records
        + [text for protocol in applicable for text in protocol.warns(numbers)]
        + _plan_warnings(call)
    )
    result.warnings += [text for text in warnings if text not in result.warnings]
    return numbers


def _plan_warnings(call: Call) -> list[str]:
    """Warn if the plan can hardly move the model; not for documents, whose number of rows depends on the method."""
    fit, model = call.arguments.get("fit"), call.arguments.get("model")
    records = next(
        (rows for name, rows in call.arguments.items() if name != "model" and isinstance(rows, Sequence)), ()
    )
    if fit is None or not isinstance(model, Model) or not records or not isinstance(records[0], Record):
        return []
    warning = "" if isinstance(records[0], Text) else rates.plan_warning(model, fit, len(records))
    return [f"{warning} (didact.fit_for gives the rate for its size)"] * bool(warning)


def _scoring(call: Call, records: Mapping[str, Sequence[Record]]) -> Scoring | None:
    """Records and settings that the method's protocols score with; None if it was called without a local model."""
    entry, start = catalogue.entry(call.method), call.arguments.get("model")
    needs, answers = entry["needs"], entry["answers"]
    if start is None or not (isinstance(start, Model) or answers):
        return None
    called_with = {name: call.arguments[name] for name in needs if name != "model" and call.arguments.get(name)}
    if answers:  # the records to answer, where a gold answer exists
        called_with = {
            n: [r for r in rows if getattr(r, "completion", None) != ""]
            for n, rows in called_with.items()
            if n == answers
        }
    name_by_kind = {need["kind"]: name for name, need in needs.items()}
    if unknown := [name for name in records if name not in (*needs, *name_by_kind)]:
        raise UserError(f"{call.method} takes no records named {unknown[0]}: give {', '.join(called_with)}")
    others = {name if name in needs else name_by_kind[name]: rows for name, rows in records.items()}
    end = None if isinstance(start, Model) else False
    scored = {name: rows for name, rows in (called_with | others).items() if rows}
    return Scoring(records=scored, start=start, seed=_seed(call), options=_options(call), end=end)


def _samples(result: Result) -> list[dict[str, str]]:
    """Answers before and after to a few of the records, for a result that has no samples."""
    call = _require_call(result)
    scoring, model = _scoring(call, {}), result.models.get("model")
    if scoring is None or not isinstance(model, Model) or model.kind == "encoder":
        return []
    names = catalogue.entry(call.method)["protocol"]
    applicable = [protocols.by_name(n) for n in names if running.scored_by(n, scoring.records)]
    prompted = {name: rows for name, rows in scoring.records.items() if hasattr(rows[0], "prompt")}
    questions = protocols.drawn(applicable[0], scoring, prompted, tables.SAMPLES) if applicable else []
    answers = [lm.answer([q.prompt for q in questions]) if questions else [] for lm in (scoring.start, model)]
    return [
        q._asdict() | {"before": before, "after": after} for q, before, after in zip(questions, *answers, strict=True)
    ]


def summary(result: Result, written: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of result.json; metrics that were not computed yet are left out."""
    call = _require_call(result)
    entry, start = catalogue.entry(call.method), call.arguments.get("model")
    fit = call.arguments.get("fit")
    options = registry.flatten(_options(call)) | ({k: v for k, v in vars(fit).items() if k != "folder"} if fit else {})
    records = {n: {"path": "given in Python", "records": len(v)} for n, v in call.arguments.items()
               if n in entry["needs"] and n != "model" and v}  # fmt: skip
    model = None
    if isinstance(start, Model):
        model = {"path": start.base or "given in Python", "fingerprint": start.fingerprint()}
    return {
        "schema": provenance.SCHEMA, "status": "done", "verb": "run", "method": call.method, "preset": None, "argv": [],
        "options": {k: {"value": files.plain(v), "from": "Python"} for k, v in options.items()},
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


def _require_call(result: Result) -> Call:
    if result.call is None:
        raise UserError("this result does not come from a method called from Python")
    return result.call


def _options(call: Call) -> dict[str, Any]:
    names = {option["name"] for option in catalogue.entry(call.method)["options"]}
    return {name: value for name, value in call.arguments.items() if name in names}


def _seed(call: Call) -> int:
    fit = call.arguments.get("fit")
    return int(call.arguments.get("seed") or (fit.seed if fit else 0))
