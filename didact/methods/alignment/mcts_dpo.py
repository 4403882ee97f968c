"""MCTS-DPO: a tree search with the policy itself says which step of a solution is better, and DPO moves the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from didact.data import encode
from didact.evaluate import answers
from didact.infer import policy, rank, steps, tree, yesno
from didact.infer.tree import Node, Tree
from didact.learn import branches, preferences, reward_functions
from didact.learn import rounds as loop
from didact.learn.branches import Branch
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.learn.rounds import Round
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "offline": {"online": False},
    "instance": {"depth": 1},  # whole solutions are the actions: DPO on solutions, weighed by visits
    "unhinted": {"include_gt": False, "hint": False},  # no reference solution, neither among the steps nor before C
    "plain": {"smoothing": False},
    "choice": {"root_actions": 4, "depth": 4, "step_tokens": 32, "fit.lr": 2e-6, "fit.warmup": 0.2},
    "official": {"official": True},
}
QUESTION, EXAMPLE = "QUESTION: {question}\n\n", "EXAMPLE ANSWER: {example}\n\n"
ASKED = (
    "PROPOSED SOLUTION: {solution}\n\n"
    "Does the proposed solution go in the right direction, as far as it goes?\n(A) incorrect\n(B) correct\n\nAnswer:"
)
GOOD = ("B", "correct")
FIELDS = ("question", "example", "solution")


class RoundData(NamedTuple):
    """A round's branches, how unsure each is `(N,)`, and what its trees are like."""

    branches: list[Branch]
    unsure: Tensor
    facts: dict[str, float]


@method(
    "mcts-dpo",
    paper="Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning",
    year=2024,
    source="arXiv:2405.00451",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    protocol="answer",
    presets=PRESETS,
)
def mcts_dpo(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: int | None = None,
    batch: int = 64,
    online: bool = True,
    simulations: int = 64,
    root_actions: int = 2,
    actions: int = 2,
    depth: int = 3,
    c: float = 1.0,
    gamma: float = 1.0,
    prior_power: float = 1.25,
    temperature: float = 1.0,
    step: Sequence[str] = ("\\n",),
    last: str = "answer is",
    step_tokens: int = 128,
    critic: str = "self",
    include_gt: bool = True,
    hint: bool = True,
    asked: str = "",
    good: Sequence[str] = GOOD,
    answer: str = "final",
    answer_ok: Callable[[str, Demo], bool] | None = None,
    filter: bool = True,
    rule: Literal["worst", "second", "random"] = "worst",
    most: int = 8,
    loss: Literal["dpo", "ipo"] = "dpo",
    smoothing: bool = True,
    beta: float = 0.1,
    reference: Literal["initial", "previous"] = "initial",
    sft_weight: float = 0.0,
    official: bool = False,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=64, schedule="cosine", warmup=0.03, weight_decay=0.05),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make a model that works problems out in steps better at it, from problems with checkable answers alone.

    In every round the policy searches a tree of steps for each of `batch` prompts. Of a partial solution s

        value(s) = C(s) + O(s),    O = +1, -1 for a right, wrong end and 0 before it,    C in [0, 1],

    with C the probability that the searching model itself calls it good, the reference solution before it. Steps are
    visited by PUCT; Q and V add up the gains of value (`infer.tree`). After `simulations` the search goes on from the
    best step. Each decision gives a pair of steps, y_w of the highest Q and y_l of the lowest, N_w and N_l times
    visited, and

        L = -(1 - a) log sigmoid(z) - a log sigmoid(-z),    a = min(1/2, N_l / (N_w + N_l))
        z = beta [(logp - ref)(y_w) - (logp - ref)(y_l)],   logp: SUM over tokens from the first that differs

    whose minimum is at z = log(N_w / N_l): visits that are equal teach nothing. Every tree weighs the same.
    Then the moved policy searches the next prompts.

    A reference solution is the completion (after the explanation, if there is one) of two steps or more. Its steps
    are among those that are searched, and it is the hint before C; without one the hint is `The answer is ...`.
    Dropout is off. The schedule runs over the rounds; the rate is constant within one. Two steps are one only if
    their tokens are equal: near-duplicates stay.

    Args:
        model: a causal model, tuned to write solutions in steps; it stays as it was.
        demos: prompts and answers: `answers` if given, else what the completion comes to.
        rounds: searches, each followed by training; as many as one pass over the prompts takes, if not given.
        batch: prompts of a round, all of them if there are fewer.
        online: the policy as it is searches; otherwise always the first.
        simulations: before each decision.
        root_actions: steps sampled at the root.
        actions: steps sampled elsewhere.
        depth: steps of a solution at most; the last one is sampled to the end.
        c: weight of the prior in PUCT.
        gamma: discount.
        prior_power: a step's prior is exp(logp / tokens^power); more favours long steps.
        temperature: at which steps are sampled.
        step: texts a step ends with; backslash and n is a line break.
        last: a step in which this stands is the last; empty for none.
        step_tokens: of a step, and of the last one to the end.
        critic: who gives C: `self`, `none` (C = 1), a reward model's folder or module:function (its sigmoid).
        include_gt: the reference solution's next step is one of the steps.
        hint: C is asked with the reference solution in sight.
        asked: how C is asked, with {question}, {example} (the hint) and {solution}; the paper's question if empty.
        good: the answers that mean yes; C is the probability of all of them.
        answer: who checks answers: `final` (what follows #, `answer is`; or the last line), `number` (the last) or
            `module:function` of a solution and a Demo.
        answer_ok: the same as a function.
        filter: use only trees whose chosen solution is right.
        rule: whom the best step is compared with: the worst, the second best, or any.
        most: pairs of a tree at most.
        loss: `ipo` is (h - 1/(2 beta))^2, h the margin of MEANS over tokens.
        smoothing: a as above; 0 otherwise.
        beta: scale of the margin.
        reference: ref is the model as it came, or as the round began.
        sft_weight: weight of the demonstrations' next-token loss beside L.
        official: as the code: C / max(depth - 3, 1), the parent's value where that is 0, O of 5/4 for a right end
            that is not the reference's, unvisited steps count once in V, 4 times the simulations at the root.
        fit: how to train one round.
        hooks: called around every step of every round.

    Returns:
        The policy; the pairs as preferences with `n_better`, `n_worse`, `q_better`, `q_worse`, `given` and `round`;
        `findings["rounds"]`: trees, pairs, how often the chosen solution was right, how often the better step
        was the reference's, tokens generated.

    Raises:
        UserError: an option is out of range; the model is not causal; no token ends a step; no round gave a pair.
    """
    if min(batch, simulations, root_actions, actions, depth, step_tokens, most) < 1 or (
        rounds is not None and rounds < 1
    ):
        raise UserError("mcts-dpo needs rounds, batch, simulations, actions, depth, step_tokens and most of 1 or more")
    if min(temperature, beta) <= 0 or min(c, gamma, prior_power, sft_weight) < 0:
        raise UserError("mcts-dpo needs temperature and beta above 0, c, gamma, prior_power, sft_weight of 0 or more")
    if not step or not good:
        raise UserError("mcts-dpo needs a text that ends a step, and an answer that is good")
    if model.kind != "causal":
        raise UserError("mcts-dpo needs a causal model: it goes on from the middle of an answer")
    closing = steps.closers(model.tokenizer, [s.replace("\\n", "\n") for s in step])
    checks = answer_ok or answers.checker(answer)
    reward = None if critic in ("self", "none") else reward_functions.reward_of(critic, "critic")
    worked = [f"{d.explanation}\n{d.completion}" if d.explanation else d.completion for d in demos]
    pairs = list(zip([d.prompt for d in demos], worked, strict=True))
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "demos")
    references = [s if len(s) > 1 else [] for s in (steps.split(r.completion, closing) for r in rows)]
    examples = [
        w if s else f"The answer is {(d.answers or [answers.final(w)])[0]}."
        for w, s, d in zip(worked, references, demos, strict=True)
    ]
    form = asked or QUESTION + (EXAMPLE if hint else "") + ASKED
    batch = max(1, min(batch, len(demos)))
    rounds = rounds or -(-len(demos) // batch)
    how = tree.SearchConfig(
        simulations=simulations, first=4 if official else 1, depth=depth, c=c, gamma=gamma, unvisited=int(official)
    )

    def collect(now: Round) -> RoundData:
        searcher = now.model if online else model

        def proposer(part: Sequence[int], seed: int) -> policy.Steps:
            return policy.Steps(
                searcher, {k: rows[i].prompt for k, i in enumerate(part)}, closing, (root_actions, actions), depth,
                step_tokens, temperature, prior_power, last, seed,
                {k: references[i] for k, i in enumerate(part) if include_gt},
            )  # fmt: skip

        def value(at: list[int], nodes: list[Node], texts: list[str], kv_cache: KVCache) -> list[float]:
            if critic == "self":
                about = [(demos[i].prompt, examples[i], t) for i, t in zip(at, texts, strict=True)]
                prompts = [yesno.fill(form, dict(zip(FIELDS, told, strict=True)), "asked") for told in about]
                likely = rank.expected(searcher, prompts, dict.fromkeys(good, 1.0), kv_cache)
            elif reward is not None:
                given = torch.tensor(reward([demos[i].prompt for i in at], texts), dtype=torch.float64)
                likely = given.sigmoid().tolist()
            else:
                likely = [1.0] * len(at)
            return [
                valued(n, x, checks(t, demos[i]) if n.step.terminal else None, official, rows[i].completion)
                for n, x, t, i in zip(nodes, likely, texts, at, strict=True)
            ]

        def solved(row: dict[str, Any]) -> bool:
            """Whether the solution that was chosen in the end is right."""
            end = Tree.of(row["tree"]).path[-1]
            return end.step.terminal and checks(steps.text(model.tokenizer, end), demos[row["demo"]])

        def pick(grown: Tree) -> list[tree.Pair]:
            return tree.pairs(grown.path, rule, most=most, seed=now.fit.seed, unlike=branches.differ(model))

        told = branches.searched(now, loop.turn(now.number, batch, len(demos), fit.seed), proposer, value, how)
        right = [solved(row) for row in told]
        used = [row for row, ok in zip(told, right, strict=True) if ok or not filter]
        found = branches.mined(used, model, demos, rows, pick, now.number, apart=True)
        unsure = torch.tensor([smoothed(b.better.visits, b.worse.visits) if smoothing else 0.0 for b in found])
        given = [b.better.step.given for b in found]
        facts = branches.facts(told, found) | {
            "right": sum(right) / len(right), "alpha": float(unsure.mean()),
            "share_of_gt_in_better": sum(given) / len(given) if given else float("nan"),
        }  # fmt: skip
        return RoundData(found, unsure, facts)

    def train(now: Round, data: RoundData) -> TrainResult:
        found = data.branches
        if not found:
            return loop.untrained(now.model)
        share = torch.tensor([b.share for b in found])
        return preferences.train_rows(
            now.model, [b.item for b in found], loop.constant_rate(now, fit, rounds), loss=loss, beta=beta,
            label_smoothing=data.unsure, per_token=loss == "ipo", weight=share * len(found) / share.sum(),
            against=model if reference == "initial" else now.model, demos=rows, sft_weight=sft_weight,
            hooks=[loop.NoDropout(), *hooks], name="train",
        )  # fmt: skip

    chosen: dict[str, Any] = {
        "search": [batch, online, simulations, root_actions, actions, depth, c, gamma, prior_power, temperature],
        "steps": [list(step), last, step_tokens], "critic": [critic, include_gt, hint, form, list(good)],
        "official": official, "answer": [answer, getattr(answer_ok, "__qualname__", None)],
        "pairs": [filter, rule, most], "loss": [loss, smoothing, beta, reference, sft_weight], "schedule": rounds,
        "data": hashlib.sha256(repr((rows, [d.answers for d in demos])).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(model, rounds, collect, train, fit, name="mcts-dpo", identity=chosen, hooks=hooks)
    if not any(m.branches for m in rounds_result.data):
        shares = ", ".join(f"{m.facts['right']:.0%}" for m in rounds_result.data[:3])
        raise UserError(
            f"mcts-dpo: no search gave a pair; the chosen solutions were right in {shares} of the trees: tune the "
            "model on solutions first, check --step and --answer, or search longer"
        )
    return Result(
        models={"model": rounds_result.model},
        records=[b.record for m in rounds_result.data for b in m.branches],
        findings={"rounds": [{"round": n, **m.facts} for n, m in enumerate(rounds_result.data)]},
        history=rounds_result.history,
        cost=rounds_result.cost,
    )


def smoothed(better: int, worse: int) -> float:
    """How unsure a pair is by its visits: `min(1/2, N_l / (N_w + N_l))`."""
    return min(0.5, worse / (better + worse)) if better + worse else 0.5


def valued(node: Node, likely: float, right: bool | None, official: bool, reference: tuple[int, ...]) -> float:
    """C + O of a new node, `right` being None before the end; `official` as the code has them."""
    value = likely
    if official and node.parent is not None:
        value = likely / max(node.parent.depth - 3, 1) or node.parent.value
    if right is None:
        return value
    own = official and right and node.said != reference
    return value + (1.25 if own else 1.0 if right else -1.0)
