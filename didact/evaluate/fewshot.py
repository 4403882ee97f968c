"""Few-shot evaluation: K demonstrations before every item, scored by GPT-3's rules, with clustered intervals.

Every item is scored at every K and every draw of demonstrations; the mean of each K's matrix (items, draws) has an
interval clustered by both.

Source: Brown et al. 2020, arXiv:2005.14165, section 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from didact.data import contamination, demonstrations
from didact.evaluate import fewshot_findings, fewshot_scores, statistics
from didact.evaluate.fewshot_prompts import Setup
from didact.evaluate.fewshot_scores import Asker, Outcome
from didact.infer import lm as language_models
from didact.infer import rank
from didact.models.model import Model
from didact.types import LM, Demo, Record, Result, Text, UserError, as_row

Chosen = Literal["token", "sum", "character", "unconditional", "auto"]
SHOWN = 3  # sample answers in the result
AUTO: tuple[rank.Rule, ...] = ("token", "unconditional")  # the paper chose between these, on dev sets


def evaluate(
    model: Model | LM,
    items: Sequence[Demo],
    train: Sequence[Demo] | None,
    dev: Sequence[Demo] | None,
    corpus: Sequence[Text] | None,
    setup: Setup,
    rule: Chosen,
    by: str,
) -> Result:
    """Run the evaluation: choose K and rule on `dev`, score the items, report intervals, warnings, contamination.

    Demonstrations come from `train`, else `dev`, else the items themselves, each left out of its own prompt.
    """
    if not items:
        raise UserError("test: no records")
    choice = fewshot_scores.choices(items)
    lm = language_models.need(model, "score" if choice else "generate", by=by)
    if rule == "auto" and not (dev and choice):
        raise UserError("rule auto chooses between token and unconditional on dev: give --dev, and items with choices")
    asker = Asker(lm, train or dev or items, setup)
    result = Result()
    rules = [rule] if choice and rule != "auto" else list(AUTO) if choice else [setup.metric]
    k, name = max(setup.shots), rules[0]
    if dev:
        if fewshot_scores.choices(dev) != choice:
            raise UserError("dev and test: either both have choices or neither")
        dev_outcomes = asker.outcomes(dev)
        # Ties go to fewer demonstrations and to the default rule.
        candidates = [(k, r) for k in sorted(setup.shots) for r in rules]
        k, name = max(candidates, key=lambda pair: dev_outcomes[pair[0]].right[pair[1]].mean())
        result.findings["dev"] = {
            r: {str(k): float(dev_outcomes[k].right[r].mean()) for k in setup.shots} for r in rules
        }
    outcomes = asker.outcomes(items)
    fewshot_findings.report(result, len(items), outcomes, k, name)
    on = "dev" if dev else "nothing: the most demonstrations"
    result.findings |= {
        "setup": {**vars(setup), "shots": list(setup.shots)},
        "demonstrations": "train" if train else "dev" if dev else "test, each item left out of its own",
        "chosen": {"shots": k, "rule": name, "on": on},
    }
    result.warnings += _warnings(items, outcomes, k, name, setup, train, lm)
    result.samples = [
        {"part": "test", "prompt": r.prompt, "wanted": r.completion, "after": answer}
        for r, answer in list(zip(items, outcomes[k].answers[name], strict=True))[:SHOWN]
    ]
    if choice:
        fewshot_findings.guessing(result, items, outcomes[k].answers[name])
    dirty = None
    if corpus:
        audit = contamination.audit([f"{r.prompt} {r.completion}" for r in items], (t.text for t in corpus))
        fewshot_findings.contaminated(result, outcomes[k].right[name], audit)
        dirty = audit.dirty
    result.records = _records(items, outcomes, k, name, dirty)
    result.cost = asker.cost
    return result


def predictor(model: Model | LM, demos: Sequence[Demo], shots: int, setup: Setup, rule: rank.Rule, by: str) -> Any:
    """`predict(prompts, choices=None) -> answers`: each prompt after its own draw of demonstrations."""

    def predict(prompts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[str]:
        lm = language_models.need(model, "score" if choices else "generate", by=by)
        asker = Asker(lm, demos, setup)
        items = [
            Demo(prompt=p, completion=c[0] if c else "-", choices=list(c) or None)
            for p, c in zip(prompts, choices or [()] * len(prompts), strict=True)
        ]
        if not items:
            return []
        answers = asker.ask(items, shots).answers
        return answers[rule if rule in answers else setup.metric]

    return predict


def _warnings(
    items: Sequence[Demo], outcomes: Mapping[int, Outcome], best: int, name: str, setup: Setup,
    train: Sequence[Demo] | None, lm: LM,
) -> list[str]:  # fmt: skip
    out = []
    for k, outcome in sorted(outcomes.items()):
        if share := float((outcome.used < k).mean()):
            fewest = int(outcome.used.min())
            out.append(f"K = {k}: {share:.0%} of the prompts have fewer demonstrations (down to {fewest}): "
                       "no more fit the context, or there are no more")  # fmt: skip
    if cut := outcomes[min(outcomes)].cut:
        out.append(f"{cut} items do not fit the context even without demonstrations and are truncated on the left")
    test_keys = {demonstrations.key(r) for r in items}
    if shared := sum(demonstrations.key(r) in test_keys for r in train or ()):
        out.append(f"{shared} records of train repeat a test item's prompt: never shown to it, but the sets overlap")
    chosen = outcomes[best]
    for rule, right in chosen.right.items():
        gap = statistics.two_way(chosen.right[name] - right)
        differ = np.mean([a != b for a, b in zip(chosen.answers[name], chosen.answers[rule], strict=True)])
        if rule != name and gap.excludes(0.0):
            out.append(f"rules disagree at K = {best}: {rule} would give {right.mean():.3f}, {name} gives "
                       f"{chosen.right[name].mean():.3f} ({differ:.0%} of the answers differ)")  # fmt: skip
    if setup.draws == 1 and max(outcomes) > 0 and not setup.fresh:
        out.append("one draw shared by all items: the interval leaves out the variance over demonstrations")
    if not fewshot_scores.choices(items) and setup.beams > 1 and not isinstance(lm, language_models.Local):
        out.append(f"{lm.name} has no beam search: answers are greedy")
    return out


def _records(
    items: Sequence[Demo], outcomes: Mapping[int, Outcome], best: int, name: str, dirty: NDArray[np.bool_] | None
) -> list[Record]:
    """One record an item: its answer, its scores by every rule, and whether it is right at every K."""
    out: list[Record] = []
    chosen = outcomes[best]
    for i, record in enumerate(items):
        details: dict[str, Any] = {
            "shots": best,
            "rule": name,
            "said": chosen.answers[name][i],
            "right": float(chosen.right[name][i].mean()),
            "right_by_shots": {str(k): float(o.right[name][i].mean()) for k, o in sorted(outcomes.items())},
            "shots_used": [int(u) for u in chosen.used[i]],
        }
        if chosen.scores:
            details["scores"] = {rule: rows[i] for rule, rows in chosen.scores.items()}
        if dirty is not None:
            details["clean"] = not bool(dirty[i])
        fields = {k: v for k, v in as_row(record).items() if k not in record.extra}
        out.append(Demo(**fields, extra=record.extra | details))
    return out
