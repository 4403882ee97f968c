"""Meta-prompting's claim with a conductor trained on the protocol: fresh experts and a tool beat answering alone.

The paper's models follow an instruction for any task; a small one cannot, so ours (0.1M weights) was trained on chains
of arithmetic modulo 5 in every form: direct answers, steps, conductor and expert, in one mixture. The test is of the
scaffold with the same weights: what experts see, what is returned, and what it costs. Rate, steps and mixture were
tuned on seeds 1000 and 1001. Not tested: whether an instruction alone makes a conductor. Whether a conductor beats
steps in one context here depends on the mixture (with four times as many chains in steps a model had .93 in steps and
.33 as a conductor): that is reported and decides nothing.

A verification is an operation after a proposed answer, which in training was right nine times in ten; all proposed
answers here are wrong. Programs run in the sandbox where there is one: a model trained just now wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from didact import prompting, registry
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate
from didact.claims.prompting import meta_prompting_example as example
from didact.infer import ask, conductor
from didact.infer.lm import Local
from didact.models.model import Model
from didact.worlds import conducted

STEPS = {"smoke": 10, "quick": example.STEPS, "full": 2 * example.STEPS}
ASKED = {"smoke": 8, "quick": 100, "full": 300}  # chains of three operations
RUN = {"smoke": 1, "quick": 6, "full": 30}  # of those, answered by programs
ARMS: dict[str, dict[str, Any]] = {
    "direct": {"scaffold": "standard"}, "steps": {"scaffold": "steps"}, "meta": {},
    "verified": {"rules.verify": True}, "votes": {"scaffold": "self-consistency"},
    "python": {"rules.python": True, "allow_code": True},
}  # fmt: skip
LONGER = 4  # operations: more than in any training chain

problem = example.problem


class Counted(Local):
    """A model that counts the tokens it generates."""

    said = 0

    def generate(self, prompts: Sequence[str], *args: Any, **how: Any) -> list[list[str]]:
        """Generate as `Local` does, and add up the tokens."""
        drawn = super().generate(prompts, *args, **how)
        self.said += sum(self.tokens([text for texts in drawn for text in texts]))
        return drawn


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), checks: bool = True) -> runner.Measured:
    """Every scaffold with the same weights on the same chains: the share right, and tokens and calls per answer."""
    model, out = _model(seed, tier), dict[str, dict[str, float]]()
    for arm in arms:
        count = RUN[tier] if arm == "python" else ASKED[tier]
        out[arm] = _evaluate(model, seed, count, 3, ARMS[arm] | _matched_draws(out, arm))
    if checks:
        out["meta"]["longer"] = _evaluate(model, seed, ASKED[tier], LONGER, {})["right"]
        out["steps"]["longer"] = _evaluate(model, seed, ASKED[tier], LONGER, ARMS["steps"])["right"]
    return out | _verification(model)


def _evaluate(model: Model, seed: int, count: int, length: int, how: dict[str, Any]) -> dict[str, float]:
    lm, questions = Counted(model), conducted.problems(count, 1000 + seed, length)
    options = registry.assemble(prompting.meta_prompting, example.OPTIONS | how)
    findings = prompting.meta_prompting(lm, questions, **options, seed=seed).findings
    return {
        "right": findings["right"], "answered": findings["answered"], "tokens": lm.said / count,
        "calls": findings["calls"] / count,
    }  # fmt: skip


def _matched_draws(out: dict[str, dict[str, float]], arm: str) -> dict[str, Any]:
    """Options that give `votes` about as many tokens per question, in answers in steps, as the conductor uses."""
    return (
        {"draws": max(1, math.ceil(out["meta"]["tokens"] / max(1.0, out["steps"]["tokens"])))} if arm == "votes" else {}
    )


def _verification(model: Model) -> dict[str, dict[str, float]]:
    """Every operation put to a fresh expert, and to one who has seen a wrong answer to it."""
    operations = conducted.every_operation()
    wrong = [str((int(result) + 1) % conducted.MODULUS) for _, result in operations]
    fresh = lab.sampled(model, [conducted.expert(*pair).prompt for pair in operations], 4, temperature=0.0)
    prompts = [conducted.verification_prompt(op, answer) for (op, _), answer in zip(operations, wrong, strict=True)]
    shared = lab.sampled(model, prompts, 4, temperature=0.0)
    return {
        "fresh": {
            "right": lab.mean(answer == result for answer, (_, result) in zip(fresh, operations, strict=True)),
            "approved": lab.mean(answer == error for answer, error in zip(fresh, wrong, strict=True)),
        },
        "shared": {"approved": lab.mean(answer == error for answer, error in zip(shared, wrong, strict=True))},
    }


@lab.shared
def _model(seed: int, tier: runner.Tier) -> Model:
    return example.taught(seed, STEPS[tier])


def _share_all(asker: Any, talks: Any, asking: Any, calls: Any, rules: Any, box: Any, first: int = 0) -> list[str]:
    """Sabotage: experts see the conversation before their instruction."""
    pairs = [(talks[i], call) for i, expert_calls in zip(asking, calls, strict=True) for call in expert_calls]
    prompts = [ask.conversation("", *talk.turns, call.instruction) for talk, call in pairs]
    return [text or "" for text in asker.ask(prompts, str, "expert")]


def _dropped(calls: Any, outputs: Sequence[str], words: Any) -> str:
    """Sabotage: the experts' answers are lost."""
    return _results(calls, [""] * len(outputs), words)


_results = conductor.results  # the intact function, which a sabotage wraps
OF, MORE = "of chains", "fresh experts beat one pass"
TOOL = "a tool is as good as an expert"
CONSULT, RESULTS, RUNS = (f"didact.infer.conductor:{name}" for name in ("consult", "results", "run"))
ONLY: dict[str, Any] = {"arms": ("direct", "meta"), "checks": False}

CLAIM = runner.Claim(
    method="meta-prompting",
    text=(
        "A model that breaks a problem into calls of fresh instances of itself answers more of them rightly than the "
        "same weights in one pass; a tool in place of an expert does as well, a second expert no harm, and one who has "
        "not seen an answer approves fewer wrong ones. (Here: a small model that was taught the protocol.)"
    ),
    run=run,
    gates=(
        gate("an expert knows single operations", "fresh.right", at_least=0.9, unit="of operations"),
    ),
    tests=(
        # Not a gate: a sabotage may leave conversations without an answer, which is how it is noticed.
        bound("conversations come to an answer", "meta.answered", 0.8, OF),
        difference(MORE, "meta.right", "direct.right", OF, null=0.3),
        difference("more than in steps in one context", "meta.right", "steps.right", OF, reported=True),
        difference("more than as many tokens of them, by vote", "meta.right", "votes.right", OF, reported=True),
        difference(TOOL, "python.right", "meta.right", OF, null=-0.1),
        difference("a second expert does no harm", "verified.right", "meta.right", OF, null=-0.05),
        difference("fresh eyes approve fewer wrong answers", "shared.approved", "fresh.approved", "of wrong answers"),
        bound("a conducted answer costs more calls", "meta.calls", 1.0, "calls", reported=True),
        difference("longer chains than were taught", "meta.longer", "steps.longer", OF, reported=True),
    ),
    sabotages=(
        runner.Sabotage("experts see the conversation", MORE, "meta.right", {CONSULT: _share_all}, ONLY),
        runner.Sabotage("what experts say is lost", MORE, "meta.right", {RESULTS: _dropped}, ONLY),
        runner.Sabotage(
            "what programs print is lost", TOOL, "python.right", {RUNS: lambda text, box: text},
            {"arms": ("meta", "python"), "checks": False},
        ),
    ),
)  # fmt: skip
