"""A round's records of answers refined by feedback: drafts, feedback, refinements, and the one that is kept.

Source: Scheurer et al. 2023, arXiv:2303.16755.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from didact.bounds import Count, NonNegative, PositiveShare
from didact.data import encode
from didact.infer import functions, refine, remote, selectors, yesno
from didact.infer import lm as language_models
from didact.infer.generate import SamplingConfig
from didact.infer.yesno import Question
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.types import LM, Check, Critic, Critique, Reward, UserError

MEASURED = 64  # records on which it is looked whether feedback is taken up
JOINT = "Feedback: {feedback}\nImproved: {refinement}"
SEED = 1_000_003  # between the seeds of two rounds' texts


@dataclass(frozen=True, kw_only=True)
class RefiningConfig:
    """How refinements are asked for, drawn, scored and kept.

    Args:
        max_new_tokens: of an answer, a refinement, a feedback.
        temperature: at which they are drawn.
        top_p: nucleus they are drawn from.
        tidy: summary cuts refinements as the paper does (one line, whole sentences); strip keeps them whole.
        forbidden: a refinement with one of these strings is drawn again.
        include_initial: the initial answer is a candidate too.
        threshold: refinements with a lower score are left out.
        mean: of the judge's probabilities over its questions (the paper), or of their logits.
        questions: of the judge: a template of {prompt}, {completion}, {feedback} and {refinement}, perhaps with its
            answers, `template|Yes|No`; or a file of JSON lines, each with a `template`, and `yes` and `no`; five of
            our own where empty.
        refine_prompt: template of {prompt}, {completion} and {feedback}; our own where empty, as the next ones.
        plain_prompt: the same without feedback.
        feedback_prompt: template of {prompt} and {completion} for a model that gives feedback.
    """

    max_new_tokens: Count = 48
    temperature: NonNegative = 1.0
    top_p: PositiveShare = 0.95
    tidy: refine.Tidy = "summary"
    forbidden: Sequence[str] = ()
    include_initial: bool = False
    threshold: float | None = None
    mean: yesno.Mean = "probability"
    questions: str | Sequence[str] = ""
    refine_prompt: str = ""
    plain_prompt: str = ""
    feedback_prompt: str = ""

    def sampling(self, seed: int = 0) -> SamplingConfig:
        """How the policy's own answers are drawn."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature or 1.0, top_p=self.top_p, seed=seed
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Who refines, judges and gives feedback (where no function does); None is the policy of the round."""

    how: RefiningConfig
    n: int
    selector: selectors.Selector
    with_feedback: bool
    questions: Sequence[Question]
    refiner: LM | None
    judge: LM | None
    adviser: LM | None
    critic: Critic | None
    check: Check | None

    def calls(self) -> int:
        """Calls to servers."""
        parts = {id(p): p for p in (self.refiner, self.judge, self.adviser)}.values()
        return sum(getattr(getattr(p, "counts", None), "calls", 0) for p in parts)

    def criticised(self, now: Round, prompts: Sequence[str]) -> list[Critique]:
        """Drafts of the policy as the round begins, with feedback on them."""
        ids = [encode.prompt_ids(now.model.tokenizer, p, now.model.kind) for p in prompts]
        drafts = [c[0].text for c in now.samples(ids, 1, self.how.sampling(), "drafts")]

        def ask(first: int, stop: int) -> list[Any]:
            return self._feedback(now, [str(p) for p in prompts[first:stop]], drafts[first:stop], first)

        feedback = now.chunks("feedback", len(drafts), ask)
        return [Critique(prompt=p, completion=d, feedback=f) for p, d, f in zip(prompts, drafts, feedback, strict=True)]

    def _feedback(self, now: Round, prompts: Sequence[str], drafts: Sequence[str], first: int) -> list[str]:
        how = self.how
        if self.critic is None:
            lm = self.adviser if self.adviser is not None else language_models.of(now.model)
            shown = [{"prompt": p, "completion": c} for p, c in zip(prompts, drafts, strict=True)]
            asked = [yesno.fill(how.feedback_prompt or refine.CRITICISE, fields, "feedback_prompt") for fields in shown]
            replies = lm.generate(
                asked, how.max_new_tokens, temperature=how.temperature, top_p=how.top_p,
                seed=now.fit.seed * SEED + first,
            )  # fmt: skip
            return [refine.tidy(texts[0], how.tidy) for texts in replies]
        texts = functions.one_each(self.critic, "feedback", "texts", prompts, drafts)
        if wrong := [t for t in texts if not isinstance(t, str)]:
            raise UserError(f"feedback gave {type(wrong[0]).__name__} where a text is expected")
        return [t.strip() for t in texts]

    def selected(self, now: Round, critiques: Sequence[Critique], reward: Reward | None) -> RoundData:
        """Refinements of every record, the one with the highest score, and how many of them take up the feedback.

        A record without feedback, without any refinement, or whose best score is below the threshold, is left out
        and counted.

        Raises:
            UserError: no record is left.
        """
        how = self.how
        refiner, judge = (p if p is not None else language_models.of(now.model) for p in (self.refiner, self.judge))
        asked = [c for c in critiques if c.feedback.strip()]
        plain = how.plain_prompt or refine.PLAIN
        template = (how.refine_prompt or refine.REFINE) if self.with_feedback else plain
        prompts = [refine.filled(template, c) for c in asked]
        drawn = _drawn(now, "refinements", prompts, refiner, self.n, how)
        some = [i for i, d in enumerate(drawn) if d.texts]
        kept = [asked[i] for i in some]
        texts = [[*drawn[i].texts, *([asked[i].completion] if how.include_initial else [])] for i in some]

        def score(first: int, stop: int) -> list[Any]:
            candidates, of = texts[first:stop], kept[first:stop]
            if self.selector == "judge":
                return selectors.judged(judge, self.questions, of, candidates, how.mean)
            if self.selector == "embedding":
                return selectors.similar(judge, of, candidates)
            if self.selector == "reward" and reward is not None:
                return selectors.rewarded(reward, of, candidates)
            if self.selector == "logp":
                return selectors.likely(refiner, [prompts[i] for i in some[first:stop]], candidates)
            if self.selector == "length":
                return selectors.longest(candidates)
            return selectors.at_random(candidates, now.fit.seed, first)

        scores = now.chunks("scores", len(kept), score)
        picked = [
            selectors.picked(c, t, s, now.number, self.selector) for c, t, s in zip(kept, texts, scores, strict=True)
        ]
        least = how.threshold
        left = [r for r in picked if least is None or (r.extra["score"] is not None and r.extra["score"] >= least)]
        known = [s for r in picked for s in r.extra["scores"] if s is not None]
        stats: dict[str, Any] = {
            "records": len(left), "without_feedback": len(critiques) - len(asked), "empty": len(asked) - len(kept),
            "empty_draws": sum(d.empty for d in drawn), "forbidden_draws": sum(d.forbidden for d in drawn),
            "below_threshold": len(picked) - len(left), "unclear": sum(r.extra["score"] is None for r in picked),
            "different": float(np.mean([len(set(t)) for t in texts])) if texts else 0.0,
            "score": _mean([r.extra["score"] for r in picked if r.extra["score"] is not None]),
            "score_of_all": _mean(known),
        }  # fmt: skip
        if not left:
            raise UserError(
                f"ilf: round {now.number}: no refinement is left of {len(critiques)} records: "
                f"{stats['without_feedback']} without feedback, {stats['empty']} with empty refinements only, "
                f"{stats['below_threshold']} below the threshold"
            )
        return RoundData([], stats | self._measured(now, picked, refiner, judge, plain), left)

    def _measured(
        self, now: Round, picked: Sequence[Critique], refiner: LM, judge: LM, template: str
    ) -> dict[str, Any]:
        """How often feedback is taken up, on the first records: by what was selected, by the first draw, and by a
        refinement that was asked for without showing the feedback. By `check`, else by the judge (P > 1/2)."""
        some, how, check = list(picked[:MEASURED]), self.how, self.check
        if check is None and language_models.lacks(judge, "top_logprobs"):
            return {"measured": 0}
        plain = _drawn(now, "plain", [refine.filled(template, r) for r in some], refiner, 1, how)
        sides = {
            "selected": [r.refinement or "" for r in some],
            "random": [r.extra["candidates"][0] for r in some],
            "plain": [d.texts[0] if d.texts else r.completion for d, r in zip(plain, some, strict=True)],
        }

        def look(first: int, stop: int) -> list[Any]:
            of, out = some[first:stop], []
            for texts in sides.values():
                if check is not None:
                    columns = [r.completion for r in of], [r.feedback for r in of], texts[first:stop]
                    out.append([bool(v) for v in functions.one_each(check, "check", "values", *columns)])
                else:
                    yes = selectors.judged(judge, self.questions, of, [[t] for t in texts[first:stop]], how.mean)
                    out.append([p[0] > 0.5 for p in yes])
            return [list(row) for row in zip(*out, strict=True)]

        looks = now.chunks("incorporated", len(some), look)
        rates = {name: float(np.mean([row[i] for row in looks])) for i, name in enumerate(sides)}
        return {"measured": len(some), "by": "check" if check else "judge", "incorporated": rates}


def parts_of(
    start: Model, how: RefiningConfig, n: int, selector: selectors.Selector, with_feedback: bool, *,
    refiner: str | LM, judge: str | LM, feedback: str | Critic | None, check: str | Check | None,
) -> Parts:  # fmt: skip
    """The parts that names stand for: `start`, `policy`, an address, a folder or hub id; `module:function`.

    Raises:
        UserError: there is no such model or function.
    """
    named = isinstance(feedback, str)
    served = feedback in ("start", "policy") or (
        isinstance(feedback, str) and (remote.is_address(feedback) or Path(feedback).is_dir())
    )
    adviser = _model(feedback, start) if isinstance(feedback, str) and served else None
    critic: Any = None if served else functions.imported(str(feedback), "feedback") if named else feedback
    checker: Check | None = functions.imported(check, "check") if isinstance(check, str) else check
    refiner_lm, judge_lm = _model(refiner, start), _model(judge, start)
    needs = {"judge": (judge_lm, "top_logprobs"), "embedding": (judge_lm, "hidden"), "logp": (refiner_lm, "score")}
    part, capability = needs.get(selector, (None, ""))
    if part is not None:  # checked before any work
        language_models.need(part, capability, by=f"selector {selector}")
    questions = selectors.questions_of(how.questions)
    return Parts(how, n, selector, with_feedback, questions, refiner_lm, judge_lm, adviser, critic, checker)


def given(critiques: Sequence[Critique], target: str) -> list[Critique]:
    """Records whose refinement is their own answer (target initial), or the one people gave (gold).

    Raises:
        UserError: a record has none.
    """
    if target == "initial":
        return [dataclasses.replace(c, refinement=c.completion) for c in critiques]
    for number, c in enumerate(critiques, 1):
        if not (c.refinement or "").strip():
            raise UserError(f"critiques: record {number}: field 'refinement' is missing; target gold trains on it")
    return list(critiques)


def pair(record: Critique, target: str) -> tuple[str, str]:
    """The prompt, which shows no feedback, and what is trained on after it."""
    refinement = record.refinement or ""
    joint = target == "feedback+refinement"
    return record.prompt, JOINT.format(feedback=record.feedback, refinement=refinement) if joint else refinement


def warnings(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """From the rounds' stats: records that were left out, and whether the feedback was worth having."""
    out = []
    for number, stats in enumerate(rounds):
        where = f"round {number}"
        counts = {
            "without_feedback": "records have no feedback",
            "empty": "records got nothing but empty refinements",
            "below_threshold": "records are below the threshold",
            "unclear": "records on which the selector gave no verdict: their first refinement was taken",
        }
        out += [f"{where}: {stats[key]} {text}" for key, text in counts.items() if stats.get(key)]
        rates = stats.get("incorporated")
        if stats.get("measured") == 0:
            out.append(
                f"{where}: not measured whether feedback is taken up: the judge shows no log-probs; give --check"
            )
        elif rates and rates["selected"] <= rates["plain"]:
            out.append(
                f"{where}: of what was selected {rates['selected']:.0%} take up the feedback, of refinements made "
                f"without it {rates['plain']:.0%}: this refiner cannot follow feedback; use a stronger one (--refiner)"
            )
    return out


def _model(who: str | LM, start: Model) -> LM | None:
    if not isinstance(who, str):
        return who
    if who == "policy":
        return None
    if who == "start":
        return language_models.of(start)
    return remote.named(who)


def _drawn(
    now: Round, name: str, prompts: Sequence[str], refiner: LM, n: int, how: RefiningConfig
) -> list[refine.Drawn]:
    """Refinements, kept in the round's folder as they come."""

    def make(first: int, stop: int) -> list[Any]:
        drawn = refine.draw(
            refiner, prompts[first:stop], n, max_new_tokens=how.max_new_tokens, temperature=how.temperature,
            top_p=how.top_p, seed=now.fit.seed * SEED + first, how=how.tidy, forbidden=how.forbidden,
        )  # fmt: skip
        return [list(d) for d in drawn]

    return [refine.Drawn(*d) for d in now.chunks(name, len(prompts), make)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
