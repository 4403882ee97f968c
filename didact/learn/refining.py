"""A round's records of answers refined by feedback: drafts, feedback, refinements, and the selected one.

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

MEASURED = 64  # records on which it is measured how often refinements incorporate the feedback
JOINT = "Feedback: {feedback}\nImproved: {refinement}"
SEED = 1_000_003  # between the seeds of two rounds' texts


@dataclass(frozen=True, kw_only=True)
class RefiningConfig:
    """How refinements are requested, sampled, scored and selected.

    Args:
        max_new_tokens: limit of an answer, a refinement and a feedback.
        temperature: at which they are sampled.
        top_p: nucleus they are sampled from.
        tidy: summary cuts refinements as the paper does (one line, whole sentences); strip keeps them whole.
        forbidden: a refinement with one of these strings is sampled again.
        include_initial: the initial answer is a candidate too.
        threshold: refinements with a lower score are left out.
        mean: over the judge's questions, of its probabilities (the paper) or of their logits.
        questions: of the judge: a template of {prompt}, {completion}, {feedback} and {refinement}, optionally with its
            answers, `template|Yes|No`; or a file of JSON lines, each with a `template`, and `yes` and `no`; five
            built-in ones if empty.
        refine_prompt: template of {prompt}, {completion} and {feedback}; as the next two, a built-in one if empty.
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
        """Return how the policy's own answers are sampled."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature or 1.0, top_p=self.top_p, seed=seed
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The models that refine, judge and give feedback (where no function does); None is the policy of the round."""

    config: RefiningConfig
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
        """Number of calls to servers."""
        parts = {id(p): p for p in (self.refiner, self.judge, self.adviser)}.values()
        return sum(getattr(getattr(p, "counts", None), "calls", 0) for p in parts)

    def criticised(self, current: Round, prompts: Sequence[str]) -> list[Critique]:
        """Sample drafts from the policy that the round starts from, and get feedback on them."""
        ids = [encode.prompt_ids(current.model.tokenizer, p, current.model.kind) for p in prompts]
        drafts = [c[0].text for c in current.samples(ids, 1, self.config.sampling(), "drafts")]

        def give_feedback(first: int, stop: int) -> list[Any]:
            return self._feedback(current, [str(p) for p in prompts[first:stop]], drafts[first:stop], first)

        feedback = current.chunks("feedback", len(drafts), give_feedback)
        return [Critique(prompt=p, completion=d, feedback=f) for p, d, f in zip(prompts, drafts, feedback, strict=True)]

    def _feedback(self, current: Round, prompts: Sequence[str], drafts: Sequence[str], first: int) -> list[str]:
        config = self.config
        if self.critic is None:
            lm = self.adviser if self.adviser is not None else language_models.of(current.model)
            rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, drafts, strict=True)]
            requests = [yesno.fill(config.feedback_prompt or refine.CRITICISE, row, "feedback_prompt") for row in rows]
            replies = lm.generate(
                requests, config.max_new_tokens, temperature=config.temperature, top_p=config.top_p,
                seed=current.fit.seed * SEED + first,
            )  # fmt: skip
            return [refine.tidy(texts[0], config.tidy) for texts in replies]
        texts = functions.one_each(self.critic, "feedback", "texts", prompts, drafts)
        if invalid := [t for t in texts if not isinstance(t, str)]:
            raise UserError(f"feedback gave {type(invalid[0]).__name__} where a text is expected")
        return [t.strip() for t in texts]

    def selected(self, current: Round, critiques: Sequence[Critique], reward: Reward | None) -> RoundData:
        """Refine every record, select the refinement with the highest score, and measure use of the feedback.

        A record without feedback, without any refinement, or whose best score is below the threshold, is left out
        and counted.

        Raises:
            UserError: no record is left.
        """
        config = self.config
        refiner, judge = (p if p is not None else language_models.of(current.model) for p in (self.refiner, self.judge))
        usable = [c for c in critiques if c.feedback.strip()]
        plain_template = config.plain_prompt or refine.PLAIN
        template = (config.refine_prompt or refine.REFINE) if self.with_feedback else plain_template
        prompts = [refine.filled(template, c) for c in usable]
        draws = _drawn(current, "refinements", prompts, refiner, self.n, config)
        index = [i for i, d in enumerate(draws) if d.texts]
        refined = [usable[i] for i in index]
        texts = [[*draws[i].texts, *([usable[i].completion] if config.include_initial else [])] for i in index]

        def score(first: int, stop: int) -> list[Any]:
            candidates, records = texts[first:stop], refined[first:stop]
            if self.selector == "judge":
                return selectors.judged(judge, self.questions, records, candidates, config.mean)
            if self.selector == "embedding":
                return selectors.similar(judge, records, candidates)
            if self.selector == "reward" and reward is not None:
                return selectors.rewarded(reward, records, candidates)
            if self.selector == "logp":
                return selectors.likely(refiner, [prompts[i] for i in index[first:stop]], candidates)
            if self.selector == "length":
                return selectors.longest(candidates)
            return selectors.at_random(candidates, current.fit.seed, first)

        scores = current.chunks("scores", len(refined), score)
        picked = [
            selectors.picked(c, t, s, current.number, self.selector)
            for c, t, s in zip(refined, texts, scores, strict=True)
        ]
        floor = config.threshold
        passed = [r for r in picked if floor is None or (r.extra["score"] is not None and r.extra["score"] >= floor)]
        all_scores = [s for r in picked for s in r.extra["scores"] if s is not None]
        stats: dict[str, Any] = {
            "records": len(passed), "without_feedback": len(critiques) - len(usable),
            "empty": len(usable) - len(refined), "empty_draws": sum(d.empty for d in draws),
            "forbidden_draws": sum(d.forbidden for d in draws),
            "below_threshold": len(picked) - len(passed), "unclear": sum(r.extra["score"] is None for r in picked),
            "different": float(np.mean([len(set(t)) for t in texts])) if texts else 0.0,
            "score": _mean([r.extra["score"] for r in picked if r.extra["score"] is not None]),
            "score_of_all": _mean(all_scores),
        }  # fmt: skip
        if not passed:
            raise UserError(
                f"ilf: round {current.number}: no refinement is left of {len(critiques)} records: "
                f"{stats['without_feedback']} without feedback, {stats['empty']} with empty refinements only, "
                f"{stats['below_threshold']} below the threshold"
            )
        return RoundData([], stats | self._measured(current, picked, refiner, judge, plain_template), passed)

    def _measured(
        self, current: Round, picked: Sequence[Critique], refiner: LM, judge: LM, template: str
    ) -> dict[str, Any]:
        """Measure on the first records how often feedback is incorporated: by the selected refinement, by the first
        one, and by one requested without showing the feedback. `check` decides, else the judge (P > 1/2)."""
        sample, config, check = list(picked[:MEASURED]), self.config, self.check
        if check is None and language_models.lacks(judge, "top_logprobs"):
            return {"measured": 0}
        plain_draws = _drawn(current, "plain", [refine.filled(template, r) for r in sample], refiner, 1, config)
        sides = {
            "selected": [r.refinement or "" for r in sample],
            "random": [r.extra["candidates"][0] for r in sample],
            "plain": [d.texts[0] if d.texts else r.completion for d, r in zip(plain_draws, sample, strict=True)],
        }

        def measure(first: int, stop: int) -> list[Any]:
            chunk, out = sample[first:stop], []
            for texts in sides.values():
                if check is not None:
                    columns = [r.completion for r in chunk], [r.feedback for r in chunk], texts[first:stop]
                    out.append([bool(v) for v in functions.one_each(check, "check", "values", *columns)])
                else:
                    yes = selectors.judged(judge, self.questions, chunk, [[t] for t in texts[first:stop]], config.mean)
                    out.append([p[0] > 0.5 for p in yes])
            return [list(row) for row in zip(*out, strict=True)]

        outcomes = current.chunks("incorporated", len(sample), measure)
        rates = {name: float(np.mean([row[i] for row in outcomes])) for i, name in enumerate(sides)}
        return {"measured": len(sample), "by": "check" if check else "judge", "incorporated": rates}


def parts_of(
    start: Model, config: RefiningConfig, n: int, selector: selectors.Selector, with_feedback: bool, *,
    refiner: str | LM, judge: str | LM, feedback: str | Critic | None, check: str | Check | None,
) -> Parts:  # fmt: skip
    """Resolve names to parts: `start`, `policy`, an address, a folder or hub id; `module:function`.

    Raises:
        UserError: there is no such model or function.
    """
    is_name = isinstance(feedback, str)
    is_model = feedback in ("start", "policy") or (
        isinstance(feedback, str) and (remote.is_address(feedback) or Path(feedback).is_dir())
    )
    adviser = _model(feedback, start) if isinstance(feedback, str) and is_model else None
    critic: Any = None if is_model else functions.import_function(str(feedback), "feedback") if is_name else feedback
    checker: Check | None = functions.import_function(check, "check") if isinstance(check, str) else check
    refiner_lm, judge_lm = _model(refiner, start), _model(judge, start)
    needs = {"judge": (judge_lm, "top_logprobs"), "embedding": (judge_lm, "hidden"), "logp": (refiner_lm, "score")}
    lm, capability = needs.get(selector, (None, ""))
    if lm is not None:  # checked before any work
        language_models.need(lm, capability, by=f"selector {selector}")
    questions = selectors.questions_of(config.questions)
    return Parts(config, n, selector, with_feedback, questions, refiner_lm, judge_lm, adviser, critic, checker)


def reference_refinements(critiques: Sequence[Critique], target: str) -> list[Critique]:
    """Return records whose refinement is their own answer (target initial), or the human-written one (gold).

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
    """Return the prompt, which shows no feedback, and the completion to train on."""
    refinement = record.refinement or ""
    joint = target == "feedback+refinement"
    return record.prompt, JOINT.format(feedback=record.feedback, refinement=refinement) if joint else refinement


def warnings(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warn, from the rounds' stats, of records that were left out and of feedback without effect."""
    out = []
    for number, stats in enumerate(rounds):
        prefix = f"round {number}"
        counts = {
            "without_feedback": "records have no feedback",
            "empty": "records got nothing but empty refinements",
            "below_threshold": "records are below the threshold",
            "unclear": "records on which the selector gave no verdict: their first refinement was taken",
        }
        out += [f"{prefix}: {stats[key]} {text}" for key, text in counts.items() if stats.get(key)]
        rates = stats.get("incorporated")
        if stats.get("measured") == 0:
            out.append(f"{prefix}: use of the feedback was not measured: the judge returns no log-probs; give --check")
        elif rates and rates["selected"] <= rates["plain"]:
            out.append(
                f"{prefix}: {rates['selected']:.0%} of the selected refinements incorporate the feedback, and "
                f"{rates['plain']:.0%} made without it: this refiner cannot follow feedback; use a stronger --refiner"
            )
    return out


def _model(name: str | LM, start: Model) -> LM | None:
    if not isinstance(name, str):
        return name
    if name == "policy":
        return None
    if name == "start":
        return language_models.of(start)
    return remote.open_lm(name)


def _drawn(
    current: Round, name: str, prompts: Sequence[str], refiner: LM, n: int, config: RefiningConfig
) -> list[refine.Drawn]:
    """Sample refinements, saved in the round's folder chunk by chunk."""

    def make(first: int, stop: int) -> list[Any]:
        drawn = refine.draw(
            refiner, prompts[first:stop], n, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            top_p=config.top_p, seed=current.fit.seed * SEED + first, how=config.tidy, forbidden=config.forbidden,
        )  # fmt: skip
        return [list(d) for d in drawn]

    return [refine.Drawn(*d) for d in current.chunks(name, len(prompts), make)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
