"""MCTS-DPO: step-level preferences from a tree search with the policy itself, trained on with DPO."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from didact.bounds import Count, NonNegative, Positive
from didact.data import encode
from didact.evaluate import answers
from didact.infer import policy, steps, tree
from didact.infer.policy import StepSearch
from didact.learn import branches, critics, language, pairs
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook, NoDropout
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import AnswerCheck, Demo, Fit, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "offline": {"online": False},
    "instance": {"search.depth": 1},  # whole solutions as actions: DPO on solutions, weighted by visits
    "unhinted": {"search.include_gt": False, "critic.hint": False},  # no reference solution in search or hint
    "plain": {"smoothing": False},
    "choice": {"search.root_actions": 4, "search.depth": 4, "search.step_tokens": 32,
               "fit.lr": 2e-6, "fit.warmup": 0.2},
    "official": {"official": True},
}  # fmt: skip


@method(
    "mcts-dpo",
    paper="Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning",
    year=2024,
    source="arXiv:2405.00451",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    kinds=("causal",),
    protocol=("answer",),
    presets=PRESETS,
)
def mcts_dpo(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: Count | None = None,
    batch: Count = 64,
    online: bool = True,
    search: StepSearch = StepSearch(),
    critic: critics.Critic = critics.Critic(),
    answer: str | AnswerCheck = "final",
    filter: bool = True,
    rule: tree.Rule = "worst",
    most: Count = 8,
    loss: Literal["dpo", "ipo"] = "dpo",
    smoothing: bool = True,
    beta: Positive = 0.1,
    reference: Literal["initial", "previous"] = "initial",
    sft_weight: NonNegative = 0.0,
    official: bool = False,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=64, schedule="cosine", warmup=0.03, weight_decay=0.05),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Improve a model's step-by-step problem solving from problems with checkable answers alone.

    In every round the policy searches a tree of steps for each of `batch` prompts. A partial solution s has

        value(s) = C(s) + O(s),    O = +1, -1 at a right, wrong end and 0 before it,    C in [0, 1],

    where C is the probability that the searching model itself calls s good, with the reference solution in its prompt.
    Steps are selected by PUCT; Q and V sum the changes of value (`infer.tree`). After its simulations a search moves on
    to the best step. Each such decision gives a pair of steps, y_w of the highest Q and y_l of the lowest, visited N_w
    and N_l times, and

        L = -(1 - a) log sigmoid(z) - a log sigmoid(-z),    a = min(1/2, N_l / (N_w + N_l))
        z = beta [(logp - ref)(y_w) - (logp - ref)(y_l)],   logp: SUM over tokens from the first that differs

    whose minimum is at z = log(N_w / N_l): equal visits teach nothing. Every tree weighs the same. Then the updated
    policy searches the next prompts.

    A reference solution is a completion (with its explanation, if any) of two steps or more. Its steps are part of the
    search, and it is the hint for C; otherwise the hint is `The answer is ...`. Dropout is off. The schedule runs over
    the rounds; the rate is constant within one. Two steps are one only if their tokens are equal.

    Args:
        model: a causal model, tuned to write solutions in steps; left unchanged.
        demos: prompts and answers: `answers` if given, else the final answer of the completion.
        rounds: rounds of search and training; by default one pass over the prompts.
        batch: prompts per round, all of them if there are fewer.
        online: search with the current policy; otherwise always with the initial model.
        search: how trees are searched; `search.include_gt` adds the reference solution's steps to the tree.
        critic: what gives C: the model itself, asked in words, a reward model, or nothing.
        answer: how answers are checked: `final` (what follows #, `answer is`; or the last line), `number` (the last),
            or `module:function` of a solution and a Demo.
        filter: use only trees whose chosen solution is right.
        rule: what the best step is paired with: the worst, the second best, or any.
        most: maximum number of pairs per tree.
        loss: `ipo` is (h - 1/(2 beta))^2, h the margin of MEANS over tokens.
        smoothing: a as above; 0 otherwise.
        beta: scale of the margin.
        reference: ref is the initial model, or the model at the start of the round.
        sft_weight: weight of the demonstrations' next-token loss, added to L.
        official: as in the code: C / max(depth - 3, 1), the parent's value where that is 0, O of 5/4 for a right end
            that is not the reference's, unvisited steps count once in V, 4 times the simulations at the root.
        fit: how to train one round.
        hooks: called around every step of every round.

    Returns:
        The policy; the pairs as preferences with `n_better`, `n_worse`, `q_better`, `q_worse`, `given` and `round`;
        `findings["rounds"]`: trees, pairs, tokens, share of right solutions, share of better steps from the reference.

    Raises:
        UserError: no token ends a step; no round gave a pair; no such checker or critic.
    """
    closing = steps.closers(model.tokenizer, [s.replace("\\n", "\n") for s in search.step])
    check, rate_promise = answers.checker(answer), critics.promise(critic)
    texts = [answers.reference(d) for d in demos]
    solutions = [(d.prompt, text) for d, text in zip(demos, texts, strict=True)]
    rows = encode.rows(model.tokenizer, solutions, model.kind, model.context, "demos")
    references = [s if len(s) > 1 else [] for s in (steps.split(r.completion, closing) for r in rows)]
    examples = [t if s else answers.hint(d) for t, s, d in zip(texts, references, demos, strict=True)]
    batch = min(batch, len(demos))
    rounds = rounds or -(-len(demos) // batch)
    config = search.of_tree(first=4 if official else 1, unvisited=int(official))

    def collect(now: Round) -> RoundData:
        searcher = now.model if online else model

        def proposer(part: Sequence[int], seed: int) -> policy.Steps:
            prompts = {k: rows[i].prompt for k, i in enumerate(part)}
            reference_steps = {k: references[i] for k, i in enumerate(part) if search.include_gt}
            return policy.Steps(searcher, prompts, closing, search, seed, reference_steps)

        def value(at: list[int], nodes: list[tree.Node], texts: list[str], kv_cache: KVCache) -> list[float]:
            promises = rate_promise(searcher, [demos[i].prompt for i in at], [examples[i] for i in at], texts, kv_cache)
            return [
                critics.valued(n, x, check(t, demos[i]) if n.step.terminal else None, official, rows[i].completion)
                for n, x, t, i in zip(nodes, promises, texts, at, strict=True)
            ]

        def pick(grown: tree.Tree) -> list[tree.Pair]:
            return tree.pairs(grown.path, rule, most=most, seed=now.fit.seed, unlike=branches.differ(model))

        index = round_loop.turn(now.number, batch, len(demos), fit.seed)
        trees = branches.search_trees(now, index, proposer, value, config)
        right = branches.solved(trees, model, demos, check)
        usable = [row for row, ok in zip(trees, right, strict=True) if ok or not filter]
        picked = branches.collect(usable, model, demos, rows, pick, now.number, trimmed=True)
        alphas = torch.tensor([branches.noise(b.better.visits, b.worse.visits) if smoothing else 0.0 for b in picked])
        of_gt = torch.tensor([b.better.step.given for b in picked], dtype=torch.float64).mean()
        stats = {"right": sum(right) / len(right), "alpha": float(alphas.mean()), "share_of_gt_in_better": float(of_gt)}
        return branches.data(picked, branches.stats(trees, picked) | stats, {"unsure": alphas})

    def train(now: Round, data: RoundData) -> TrainResult:
        if not data.items:
            return round_loop.untrained(now.model)
        pair_loss = preference.pair_loss(loss, beta, label_smoothing=data.columns["unsure"])
        sft_stream = {"demos": (language.single(rows), functools.partial(language.sft, weight=sft_weight))}
        return pairs.train(
            now.model, data.items, pair_loss.loss, round_loop.constant_rate(now, fit, rounds),
            reference=model if reference == "initial" else now.model, mean=loss == "ipo",
            share=data.columns["share"], log=pairs.margins(beta), beside=sft_stream if sft_weight else {},
            hooks=[NoDropout(), *hooks], loss_name=loss,
        )  # fmt: skip

    outcome = round_loop.run_rounds(model, rounds, collect, train, fit, name="mcts-dpo", scheduled=True, hooks=hooks)
    if not outcome.records:
        shares = ", ".join(f"{data.stats['right']:.0%}" for data in outcome.data[:3])
        raise UserError(
            f"mcts-dpo: no search gave a pair; the chosen solutions were right in {shares} of the trees: tune on "
            "solutions first, check --search.step and --answer, or search longer"
        )
    return outcome.result()
