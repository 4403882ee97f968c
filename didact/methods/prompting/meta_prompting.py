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

NAMES = 20  # of experts that findings name


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
    """Have a model conduct experts, which are itself with nothing but the task they are given, and answer then.

    The conductor is told, alike for every problem, to break it into parts and call experts by name with complete
    instructions. Each call is a conversation of its own: an expert sees its instructions, never the problem, the
    conductor's words or another expert (fresh eyes). Outputs go back to the conductor, which goes on until it answers

        H_0 = [system, problem];   y_t = LM(H_t);   H_{t+1} = H_t + [y_t, outputs of the calls in y_t]

    A reply with a call and an answer is a call. Expert Python writes programs, which are run in a sandbox without
    network, home or environment (`tools.sandbox`), and what they print is added to its output. The other scaffolds are
    what the paper compares with, and self-consistency, which it does not: at as many calls it is the fair baseline.

    The transcript (transcript.jsonl) has the exchanges of questions that were answered rightly, conductor's and
    experts', to train on.

    Args:
        model: follows instructions; a local model or a server.
        questions: problems to answer; those with a completion (or `answers`) are checked.
        scaffold: how it is asked: by a conductor; plainly; in steps; as an expert, always the same or described by
            the model for the question; as several people in one conversation; or in steps several times, of which
            the commonest answer counts.
        rules: of conductor and experts.
        draws: answers to a question for self-consistency.
        check: who says that an answer is right: `final`, `number`, `game24`, `sorted-words`, or `module:function` of
            an answer and a Demo.
        asking: lengths, temperature and budget of all questions.
        limits: of a program.
        allow_code: where there is no sandbox run programs with your rights; else they are refused.
        seed: of draws.

    Returns:
        `predict(prompts)`, the questions with their predictions as records, and findings: calls, rounds, the experts
        called, the share answered and right.

    Raises:
        UserError: Python is to be run and there is no sandbox.
    """
    began = time.monotonic()
    verdict = answers.checker(check)
    box = sandbox.opened(limits, allow_code) if scaffold == "meta" and rules.python else None
    asker = ask.Asker(need(model, "generate", by="meta-prompting"), asking, seed)
    found: dict[str, conductor.Talk] = {}

    def predict(prompts: Sequence[str]) -> list[str]:
        new = [p for p in dict.fromkeys(prompts) if p not in found]
        texts, first = [conductor.problem(p) for p in new], len(found)
        if scaffold == "meta":
            talks = conductor.conduct(asker, texts, rules, box, first)
        else:
            given = scaffolds.answers(asker, texts, scaffold, rules.texts, draws, first)
            talks = [conductor.Talk(q, answer=a) for q, a in zip(texts, given, strict=True)]
        found.update(zip(new, talks, strict=True))
        return [found[p].answer or "" for p in prompts]

    asked = list(questions or ())
    given = predict([q.prompt for q in asked])
    known = [bool(q.completion or q.answers or check not in ("final", "number")) for q in asked]
    right = [bool(k and a and verdict(a, q)) for k, a, q in zip(known, given, asked, strict=True)]
    order = {prompt: i for i, prompt in enumerate(found)}
    wrong = {order[q.prompt] for q, k, r in zip(asked, known, right, strict=True) if k and not r}
    talks = [found[q.prompt] for q in asked]
    records = [
        dataclasses.replace(q, extra=q.extra | {"prediction": a, "rounds": t.rounds} | ({"right": r} if k else {}))
        for q, a, t, r, k in zip(asked, given, talks, right, known, strict=True)
    ]
    findings: dict[str, Any] = {
        "answered": sum(t.answer is not None for t in talks) / max(1, len(talks)),
        "right": sum(right) / sum(known) if any(known) else None,
        "rounds": sum(t.rounds for t in talks) / max(1, len(talks)),
        "experts": dict(Counter(name for t in talks for name in t.experts).most_common(NAMES)),
    }
    result = Result(
        records=list(records), predict=predict, findings=asker.findings() | findings,
        transcript=list(asker.demos(lambda exchange: exchange.item not in wrong)),
        warnings=asker.warnings() + (box.warnings if box else []),
    )  # fmt: skip
    result.cost.seconds, result.cost.calls = time.monotonic() - began, len(asker.exchanges)
    return result
