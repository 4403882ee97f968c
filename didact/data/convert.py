"""Convert records of one kind into another, so that every arm of a comparison gets the same data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from didact.types import Critique, Demo, Judged, Preference, Record, Scored, Text, UserError

Have = Mapping[str, Sequence[Any]]


def serve(kind: str, have: Have) -> Sequence[Record] | None:
    """Return records of `kind`: those present, or converted from another kind that has all it needs; else None.

    A demonstration is the chosen side of a pair, a completion judged good, or a refinement. A pair is
    the best and the worst completion of one prompt. A judged completion is either side of a pair.
    """
    if have.get(kind):
        return have[kind]
    for source, make in MAKERS.get(kind, {}).items():
        if have.get(source) and (records := make(have[source])):
            return records
    return None


def of_kind(kind: str, have: Have) -> Sequence[Record] | None:
    """Return records of `kind` among those given under any name, or converted from them; None if there are none."""
    several = [rows for rows in have.values() if isinstance(rows, Sequence) and rows]
    kinds = {type(rows[0]).__name__.lower(): rows for rows in reversed(several)}
    return serve(kind, kinds)


def inputs(name: str, needs: Mapping[str, Mapping[str, Any]], have: Have) -> dict[str, Sequence[Any]]:
    """Map each parameter of a method to the records given for it by name or kind, or converted from another kind.

    Args:
        name: name of the arm.
        needs: its parameters, as in the catalogue; models are left out.
        have: records by parameter or kind.

    Raises:
        UserError: these records cannot fill a required parameter.
    """
    out: dict[str, Sequence[Any]] = {}
    for parameter, need in needs.items():
        if (kind := need["kind"]) == "model":
            continue
        rows = have.get(parameter)
        if not rows and parameter in (kind, f"{kind}s"):  # `forget` is given by name only
            rows = serve(kind, have)
        if rows is None and need["required"]:
            present = ", ".join(have)
            raise UserError(
                f"{name} needs {parameter} ({kind}), which these records ({present}) do not give: "
                f"add --{(kind if parameter == f'{kind}s' else parameter).replace('_', '-')} FILE, or leave {name} out"
            )
        if rows is not None:
            out[parameter] = rows
    return out


def _chosen(pairs: Sequence[Preference]) -> list[Record]:
    return [Demo(prompt=p.prompt, completion=p.chosen) for p in pairs]


def _judged_good(judged: Sequence[Judged]) -> list[Record]:
    return [Demo(prompt=j.prompt, completion=j.completion) for j in judged if j.label]


def _refined(critiques: Sequence[Critique]) -> list[Record]:
    return [Demo(prompt=c.prompt, completion=c.refinement) for c in critiques if c.refinement]


def _sides(pairs: Sequence[Preference]) -> list[Record]:
    return [
        Judged(prompt=p.prompt, completion=side, label=side is p.chosen)
        for p in pairs
        for side in (p.chosen, p.rejected)
    ]


def _scored_sides(pairs: Sequence[Preference]) -> list[Record]:
    return [
        Scored(prompt=p.prompt, completion=text, score=score)
        for p in pairs
        for text, score in ((p.chosen, p.chosen_score), (p.rejected, p.rejected_score))
        if score is not None
    ]


def _extremes(scored: Sequence[Scored]) -> list[Record]:
    """Pair the best with the worst completion of every prompt; a prompt whose scores are all equal gives none."""
    by_prompt: dict[str, list[Scored]] = defaultdict(list)
    for s in scored:
        by_prompt[s.prompt].append(s)
    ends = [(max(group, key=lambda s: s.score), min(group, key=lambda s: s.score)) for group in by_prompt.values()]
    return [
        Preference(
            prompt=best.prompt, chosen=best.completion, rejected=worst.completion,
            chosen_score=best.score, rejected_score=worst.score,
        )
        for best, worst in ends
        if best.score > worst.score
    ]  # fmt: skip


def _judged_pairs(judged: Sequence[Judged]) -> list[Record]:
    return _extremes([Scored(prompt=j.prompt, completion=j.completion, score=float(j.label)) for j in judged])


def _refinement_pairs(critiques: Sequence[Critique]) -> list[Record]:
    return [Preference(prompt=c.prompt, chosen=c.refinement, rejected=c.completion) for c in critiques if c.refinement]


def _as_texts(demos: Sequence[Demo]) -> list[Record]:
    return [Text(text=f"{d.prompt} {d.completion}") for d in demos]


MAKERS: Mapping[str, Mapping[str, Any]] = {
    "demo": {"preference": _chosen, "judged": _judged_good, "critique": _refined},
    "preference": {"scored": _extremes, "judged": _judged_pairs, "critique": _refinement_pairs},
    "judged": {"preference": _sides},
    "scored": {"preference": _scored_sides},
    "text": {"demo": _as_texts},
}
