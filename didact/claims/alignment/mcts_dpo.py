"""MCTS-DPO's claim on chains of arithmetic: step preferences from tree search teach more than further fine-tuning.

Training sees final answers alone; steps are checked only to measure. All arms search, sample or tune on the same
problems from the same start model, which errs in some steps. The arms that sample draw about as many tokens (reported).
Every arm was tuned over eight settings on seeds 1000 to 1002 and has the one with most right answers there: preferences
over rates of 1e-4 and 3e-4, beta .1 and .5, passes 1 and 4 (.80 to .98 right); tuning on own right solutions (.99 to
1.00) and on demonstrations (.56 to .62) over rates from 1e-4 to 3e-3, 100 and 200 steps.
After 450 steps some seeds' start models were still learning, which hid the arms' effects; after 750 all err alike.
With the paper's beta of .1 the target margin is five times as wide, and the policy's other steps drift.
Demonstrations get three in ten operations wrong, more often than not, and so does the start, however long it is tuned.

C is 1 throughout: a model of this size cannot judge itself, and self-evaluation is not tested here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact import alignment, registry
from didact.claims import lab, runner
from didact.claims.alignment import mcts_dpo_example as example
from didact.claims.lab import bound, difference, gate
from didact.infer import generate, tree
from didact.models.model import Model
from didact.types import Demo, Fit, Preference, Result
from didact.worlds import arithmetic

ROUNDS = {"smoke": 1, "quick": 4, "full": 8}
BATCH = {"smoke": 8, "quick": 128, "full": 256}
ASKED = {"smoke": 64, "quick": 512, "full": 2048}
TUNING = {"smoke": 20, "quick": 750, "full": 750}
STEPS = {"smoke": (2, 2), "quick": (100, 200), "full": (200, 400)}  # of `sft` and of `star`
DRAWS = 5  # whole solutions per problem: about as many tokens as a tree
RATES = {"sft": 3e-3, "star": 1e-3, "online": 1e-4, "instance": 1e-4}
PASSES, BETA = 4, 0.5
ARMS: dict[str, dict[str, Any]] = {
    "online": {},
    "instance": {"search.depth": 1, "search.root_actions": DRAWS, "search.step_tokens": example.SOLUTION},
}

problem = example.problem


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), **broken: Any) -> runner.Measured:
    """The start, its fine-tuned baselines, and the preference arms; `broken`: options that a sabotage changes."""
    start, out = _start(seed, tier), dict(_baselines(seed, tier))
    problems = example.chains(seed, 1, ROUNDS[tier] * BATCH[tier])
    for arm in arms:
        fit = Fit(lr=RATES[arm], epochs=PASSES, rows=16, schedule="constant", seed=seed)
        options = registry.assemble(alignment.mcts_dpo, example.SEARCH | {"beta": BETA} | ARMS[arm] | broken)
        result = alignment.mcts_dpo(start, problems, rounds=ROUNDS[tier], batch=BATCH[tier], **options, fit=fit)
        out[arm] = _measures(lab.model_of(result), seed, tier) | _pairs(result)
    return out


def _start(seed: int, tier: runner.Tier) -> Model:
    return example.tuned(seed, teach=example.TEACH.replace(steps=TUNING[tier]))


@lab.shared
def _baselines(seed: int, tier: runner.Tier) -> dict[str, dict[str, float]]:
    """The start, further tuned on demonstrations, and on its own right solutions (Zelikman et al., 2022), if any."""
    start = _start(seed, tier)
    out = {"start": _measures(start, seed, tier)}
    problems = example.chains(seed, 1, ROUNDS[tier] * BATCH[tier])
    config = generate.SamplingConfig(max_new_tokens=example.SOLUTION, temperature=1.0, seed=seed, rows=512)
    solutions = [
        Demo(prompt=d.prompt, completion=text)
        for d, texts in zip(problems, generate.sample(start, [d.prompt for d in problems], DRAWS, config), strict=True)
        for text in dict.fromkeys(texts)
        if _right(d, text)
    ]
    for name, demos, steps in zip(("sft", "star"), (example.flawed(seed), solutions), STEPS[tier], strict=True):
        fit = Fit(lr=RATES[name], steps=steps, rows=32, schedule="linear", seed=seed + 1)
        out[name] = _measures(lab.tuned(start, demos, fit) if demos else start, seed, tier)
    out["sft"]["gain"] = out["sft"]["right"] - out["start"]["right"]
    return out


def _right(problem: Demo, solution: str) -> bool:
    return solution.rpartition("#")[2].strip() == (problem.answers or [""])[0]


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On held-out problems, greedily: shares of right answers, and of sound steps among those written."""
    problems = example.chains(seed, 2, ASKED[tier])
    texts = lab.sampled(model, [d.prompt for d in problems], example.SOLUTION, temperature=0.0, rows=512)
    steps = [ok for d, t in zip(problems, texts, strict=True) for ok in arithmetic.sound(d.prompt, t, example.MODULUS)]
    return {"right": lab.mean(map(_right, problems, texts)), "sound": lab.mean(steps) if steps else 0.0}


def _pairs(result: Result) -> dict[str, float]:
    """Number of pairs, and the share in which the preferred step is the sound one, among pairs with one sound step."""
    sides = [
        [_sound(r, side) for side in (r.chosen, r.rejected)] for r in result.records or [] if isinstance(r, Preference)
    ]
    decided = [a for a, b in sides if a != b]
    rounds = result.findings["rounds"]
    return {
        "pairs": float(len(sides)),
        "decided": len(decided) / len(sides),
        "better_sound": lab.mean(decided) if decided else 0.5,
        "tokens": float(sum(row["tokens"] for row in rounds)),
        "searched_right": float(rounds[-1]["right"]),
    }


def _sound(record: Preference, side: str) -> bool:
    """Whether one side's step, or all steps of a whole solution, are sound given the steps in the prompt."""
    question, _, before = record.prompt.partition("=")
    n_before = len(arithmetic.sound(question, before, example.MODULUS))
    steps = arithmetic.sound(question, before.strip() + side.strip(), example.MODULUS)[n_before:]
    return bool(steps) and all(steps)


def _reward_wrong(node: tree.Node, likely: float, right: bool | None, *rest: Any) -> float:
    return likely + (0.0 if right is None else -1.0 if right else 1.0)


def _by_prior(node: tree.Node, top: tree.Node, how: tree.SearchConfig) -> None:
    """Sabotage of `tree.back_up`: count visits only; Q is the prior, whatever the search finds."""
    while True:
        node.visits += 1
        if node is top or node.parent is None:
            return
        node.q = node.step.prior
        node = node.parent


PROBLEMS, ONLY = "of problems", {"arms": ("online",)}
UNFILTERED = {"arms": ("online",), "filter": False}
MORE, SOUND = "more right than at the start", "the better step is the sound one"

CLAIM = runner.Claim(
    method="mcts-dpo",
    text=(
        "Preferences between single steps, found by a tree search with the policy and the final answer alone, teach a "
        "model that works in steps more than going on fine-tuning does, on demonstrations or its own right solutions."
    ),
    run=run,
    gates=(
        gate("the start solves some problems", "start.right", at_least=0.3, unit=PROBLEMS),
        gate("fine-tuning has stopped helping", "sft.gain", at_most=0.05, unit=PROBLEMS),
        gate("and not all", "start.right", at_most=0.9, unit=PROBLEMS),
    ),
    tests=(
        difference("more right than tuning on", "online.right", "sft.right", PROBLEMS),
        difference("more right than tuning on own right solutions", "online.right", "star.right", PROBLEMS),
        difference(MORE, "online.right", "start.right", PROBLEMS),
        bound(SOUND, "online.better_sound", 0.9, "of pairs with one sound step"),
        difference("more right than preferences between solutions", "online.right", "instance.right", PROBLEMS,
                   reported=True),
        difference("more sound steps than tuning on", "online.sound", "sft.sound", "of steps", reported=True),
    ),
    sabotages=(
        runner.Sabotage("better and worse swapped", SOUND, "online.better_sound",
                        {"didact.infer.tree:pairs": lab.turned}, ONLY),
        runner.Sabotage("wrong answers are rewarded, and no tree is dropped", MORE, "online.right",
                        {"didact.learn.critics:valued": _reward_wrong}, UNFILTERED),
        runner.Sabotage("Q is the prior, and no tree is dropped", SOUND, "online.better_sound",
                        {"didact.infer.tree:back_up": _by_prior}, UNFILTERED),
    ),
)  # fmt: skip
