"""Meta-prompting: one model as conductor, experts and checker of its own work (Suzgun & Kalai 2024)."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from didact.bounds import Count
from didact.evaluate import answers
from didact.infer import ask, conductor, scaffolds
from didact.infer.lm import need
from didact.models.model import Model
from didact.registry import method
from didact.tools import sandbox
from didact.types import LM, AnswerCheck, Demo, Result

NAMES = 20  # maximum number of experts listed in the findings


@method(
    "meta-prompting",
    paper="Meta-Prompting: Enhancing Language Models with Task-Agnostic Scaffolding",
    year=2024,
    source="arXiv:2401.12954",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("answer",),
    answers="questions",
    presets={
        "no-python": {"rules.python": False},
        "verified": {"rules.verify": True},
        "official": {
            "rules.strict": False, "rules.early": True, "asking.temperature": 0.1, "asking.top_p": 0.95,
        },
        "standard": {"scaffold": "standard"},
        "steps": {"scaffold": "steps"},
        "expert-static": {"scaffold": "expert-static"},
        "expert-dynamic": {"scaffold": "expert-dynamic"},
        "multipersona": {"scaffold": "multipersona"},
        "self-consistency": {"scaffold": "self-consistency"},
    },
)  # fmt: skip
def meta_prompting(
    model: Model | LM,
    questions: Sequence[Demo] | None = None,
    *,
    scaffold: scaffolds.Scaffold = "meta",
    rules: conductor.Rules = conductor.Rules(),
    draws: Count = 8,
    check: str | AnswerCheck = "final",
    asking: ask.Asking = ask.Asking(max_new_tokens=1024),
    limits: sandbox.Limits = sandbox.Limits(),
    allow_code: bool = False,
    seed: int = 0,
) -> Result:
    """Answer with a model that conducts experts: copies of itself that see nothing but the task they are given.

    The conductor has the same instructions for every problem: break it into parts and call experts by name with
    complete instructions. Each call is a conversation of its own: an expert sees its instructions, never the problem,
    the conductor's words or another expert (fresh eyes). Outputs go back to the conductor, which continues until it
    answers

        H_0 = [system, problem];   y_t = LM(H_t);   H_{t+1} = H_t + [y_t, outputs of the calls in y_t]

    A reply with both a call and an answer is a call. Expert Python writes programs, which run in a sandbox without
    network, home or environment (`tools.sandbox`), and what they print is added to its output. The other scaffolds are
    the paper's baselines, and self-consistency, which is not in the paper: at as many calls it is the fair baseline.

    The transcript (transcript.jsonl) has the exchanges of correctly answered questions, conductor's and experts', to
    train on.

    Args:
        model: follows instructions; a local model or a server.
        questions: problems to answer; those with a completion (or `answers`) are checked.
        scaffold: how it is asked: by a conductor; plainly; in steps; as an expert, always the same or described by the
            model for the question; as several people in one conversation; or in steps several times, with a majority
            vote.
        rules: rules of conductor and experts.
        draws: samples per question for self-consistency.
        check: how an answer is checked: `final`, `number`, `game24`, `sorted-words`, or `module:function` of an answer
            and a Demo.
        asking: lengths, temperature, and the budget of all questions together.
        limits: resource limits of a program.
        allow_code: run programs with your rights if there is no sandbox; else they are refused.
        seed: random seed of the samples.

    Returns:
        `predict(prompts)`, the questions with their predictions as records, and findings: calls, rounds, the experts
        called, the share answered and right.

    Raises:
        UserError: Python is to be run and there is no sandbox.
    """
    start_time = time.monotonic()
    is_right = answers.checker(check)
    box = sandbox.opened(limits, allow_code) if scaffold == "meta" and rules.python else None
    asker = ask.Asker(need(model, "generate", by="meta-prompting"), asking, seed)
    talk_by_prompt: dict[str, conductor.Talk] = {}

    def predict(prompts: Sequence[str]) -> list[str]:
        new = [p for p in dict.fromkeys(prompts) if p not in talk_by_prompt]
        texts, first = [conductor.problem(p) for p in new], len(talk_by_prompt)
        if scaffold == "meta":
            talks = conductor.conduct(asker, texts, rules, box, first)
        else:
            replies = scaffolds.answers(asker, texts, scaffold, rules.texts, draws, first)
            talks = [conductor.Talk(q, answer=a) for q, a in zip(texts, replies, strict=True)]
        talk_by_prompt.update(zip(new, talks, strict=True))
        return [talk_by_prompt[p].answer or "" for p in prompts]

    items = list(questions or ())
    predictions = predict([q.prompt for q in items])
    checkable = [bool(q.completion or q.answers or check not in ("final", "number")) for q in items]
    right = [bool(k and a and is_right(a, q)) for k, a, q in zip(checkable, predictions, items, strict=True)]
    order = {prompt: i for i, prompt in enumerate(talk_by_prompt)}
    failed = {order[q.prompt] for q, k, r in zip(items, checkable, right, strict=True) if k and not r}
    talks = [talk_by_prompt[q.prompt] for q in items]
    records = [
        dataclasses.replace(q, extra=q.extra | {"prediction": a, "rounds": t.rounds} | ({"right": r} if k else {}))
        for q, a, t, r, k in zip(items, predictions, talks, right, checkable, strict=True)
    ]
    findings: dict[str, Any] = {
        "answered": sum(t.answer is not None for t in talks) / max(1, len(talks)),
        "right": sum(right) / sum(checkable) if any(checkable) else None,
        "rounds": sum(t.rounds for t in talks) / max(1, len(talks)),
        "experts": dict(Counter(name for t in talks for name in t.experts).most_common(NAMES)),
    }
    result = Result(
        records=list(records), predict=predict, findings=asker.findings() | findings,
        transcript=list(asker.demos(lambda exchange: exchange.item not in failed)),
        warnings=asker.warnings() + (box.warnings if box else []),
    )  # fmt: skip
    result.cost.seconds, result.cost.calls = time.monotonic() - start_time, len(asker.exchanges)
    return result
