"""MCTS-DPO: a tree search with the policy itself says which step of a solution is better, and DPO moves the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.data import encode
from didact.data.encode import Row
from didact.data.streams import Item, Micro
from didact.evaluate import answers, judges
from didact.infer import policy, rank, steps, tree
from didact.infer.tree import Node, Tree
from didact.learn import language, schedules
from didact.learn import rounds as loop
from didact.learn.checkpoint import State
from didact.learn.fit import Hook, Term
from didact.learn.language import Taught
from didact.learn.rounds import Round
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Cost, Demo, Fit, Preference, Result, Reward, UserError

PRESETS: dict[str, dict[str, object]] = {
    "offline": {"online": False},
    "instance": {"depth": 1},  # whole solutions are the actions: DPO on solutions, weighed by visits
    "unhinted": {"include_gt": False},  # no reference solution, neither among the steps nor in what C is asked
    "plain": {"smoothing": False},
    "choice": {"root_actions": 4, "depth": 4, "step_tokens": 32, "fit.lr": 2e-6, "fit.warmup": 0.2},
    "official": {"official": True},
}
ASKED = (
    "QUESTION: {question}\n\n{example}PROPOSED SOLUTION: {solution}\n\n"
    "Does the proposed solution go in the right direction, as far as it goes?\n(A) incorrect\n(B) correct\n\nAnswer:"
)
LABELS = ("A", "B")
BESIDE = 64  # trees that grow side by side


class Mined(NamedTuple):
    """A round's pairs (better, worse), how sure each is, its share of the loss, as records, and what they are like."""

    items: list[Item]
    alpha: Tensor
    weight: Tensor
    records: list[Preference]
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

    with C what the model says of it, the reference solution before it. Steps are visited by PUCT; Q and V add up the
    gains of value (`infer.tree`). After `simulations` the search goes on from the best step. Each decision gives a
    pair of steps, y_w of the highest Q and y_l of the lowest, N_w and N_l times visited, and

        L = -(1 - a) log sigmoid(z) - a log sigmoid(-z),    a = min(1/2, N_l / (N_w + N_l))
        z = beta [(logp - ref)(y_w) - (logp - ref)(y_l)],   logp: SUM over tokens from the first that differs

    whose minimum is at z = log(N_w / N_l): visits that are equal teach nothing. Every tree weighs the same.
    Then the moved policy searches the next prompts.

    A reference solution is the completion (after the explanation, if there is one) of two steps or more. It
    serves as a step and as the hint of C. Dropout is off. The schedule runs over the rounds; the rate is constant
    within one. Two steps are one only if their tokens are equal: near-duplicates stay.

    Args:
        model: a causal model, tuned to write solutions in steps; it stays as it was.
        demos: prompts and answers: `answers` if given, else what the completion comes to.
        rounds: searches, each followed by training; as many as one pass over the prompts takes, if not given.
        batch: prompts of a round.
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
        include_gt: the reference solution's next step is one of the steps, and C is asked with it in sight.
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
        The policy; the pairs as preferences with `n_better`, `n_worse`, `q_better`, `q_worse` and `round`;
        `findings["rounds"]`: trees, pairs, how often the chosen solution was right, how often the better step
        was the reference's, tokens generated.

    Raises:
        UserError: an option is out of range; the model is not causal; no token ends a step; no round gave a pair.
    """
    if min(batch, simulations, root_actions, actions, depth, step_tokens, most) < 1 or (
        rounds is not None and rounds < 1
    ):
        raise UserError("mcts-dpo needs rounds, batch, simulations, actions, depth, step_tokens and most of 1 or more")
    if min(temperature, beta) <= 0 or min(c, gamma, prior_power, sft_weight) < 0 or not step:
        raise UserError("mcts-dpo needs temperature and beta above 0, c, gamma and the like of 0 or more, and a step")
    if model.kind != "causal":
        raise UserError("mcts-dpo needs a causal model: it goes on from the middle of an answer")
    closing, checks = (
        steps.closers(model.tokenizer, [s.replace("\\n", "\n") for s in step]),
        answer_ok or answers.checker(answer),
    )
    worked = [f"{d.explanation}\n{d.completion}" if d.explanation else d.completion for d in demos]
    rows = encode.rows(
        model.tokenizer, list(zip([d.prompt for d in demos], worked, strict=True)), model.kind, model.context, "demos"
    )
    references = [steps.split(r.completion, closing) for r in rows]
    hints = [w if include_gt and len(r) > 1 else "" for w, r in zip(worked, references, strict=True)]
    rounds = rounds or -(-len(demos) // batch)
    order = np.concatenate([np.random.default_rng([fit.seed, 55, e]).permutation(len(demos))
                            for e in range(1 + rounds * batch // len(demos))])  # fmt: skip
    how = tree.How(
        simulations=simulations, first=4 if official else 1, depth=depth, c=c, gamma=gamma, unvisited=int(official)
    )
    reward = None if critic in ("self", "none") else judges.reward_of(critic, "critic")

    def searched(now: Round, start: int, stop: int) -> list[Any]:
        """Trees of the round's prompts from `start` to `stop`, as JSON."""
        index = [int(i) for i in order[now.number * batch :][start:stop]]
        actor = policy.Steps(
            now.model if online else model, {k: rows[i].prompt for k, i in enumerate(index)}, closing,
            (root_actions, actions), depth, step_tokens, temperature, prior_power, last, now.fit.seed + start,
            {k: references[i] for k, i in enumerate(index) if hints[i]},
        )  # fmt: skip

        def evaluate(nodes: list[Node]) -> list[float]:
            mine = [index[n.tree] for n in nodes]
            texts = [steps.text(model.tokenizer, n) for n in nodes]
            likely = _likely(actor.model, reward, critic, [demos[i] for i in mine], [hints[i] for i in mine], texts)
            right = [
                checks(t, demos[i]) if n.step.terminal else None for n, t, i in zip(nodes, texts, mine, strict=True)
            ]
            return [
                _value(n, x, ok, official, rows[i].completion)
                for n, x, ok, i in zip(nodes, likely, right, mine, strict=True)
            ]

        grown = tree.search(range(len(index)), actor.propose, evaluate, how)
        ends = [t.path[-1] for t in grown]
        return [
            {"demo": i, "tree": t.rows(), "tokens": actor.spent[k],
             "right": end.step.terminal and checks(steps.text(model.tokenizer, end), demos[i])}
            for k, (i, t, end) in enumerate(zip(index, grown, ends, strict=True))
        ]  # fmt: skip

    def mine(now: Round) -> Mined:
        told = now.chunks("trees", batch, lambda start, stop: searched(now, start, stop), BESIDE)
        return _mined(told, model, demos, rows, rule, most, filter, smoothing, now)

    def train(now: Round, mined: Mined) -> Taught:
        if not mined.items:  # nothing was decided: the policy stays
            return Taught(now.model, [], Cost(), State())
        against = model if reference == "initial" else now.model
        ref = language.reference_logp(against, mined.items).to(model.device)
        alpha, weight = mined.alpha.to(ref), mined.weight.to(ref)

        def terms(student: Model, micro: Micro) -> Mapping[str, Term]:
            if micro.stream == "demos":
                return {"sft": language.cross_entropy(student, micro, weight=sft_weight)}
            logp, count = language.sequence_logp(student, micro)
            was, mean = ref[micro.index], count if loss == "ipo" else torch.ones_like(count)
            (y_w, y_l), (was_w, was_l) = (logp / mean).unbind(1), (was / mean).unbind(1)
            if loss == "ipo":
                losses = preference.ipo(y_w, y_l, was_w, was_l, beta)
            else:
                losses = preference.dpo(y_w, y_l, was_w, was_l, beta, alpha[micro.index])
            margin = beta * preference.margin(y_w, y_l, was_w, was_l).detach()
            return {
                loss: Term((weight[micro.index] * losses).sum(), "pairs.rows"),
                "margin": Term(margin.sum(), "pairs.rows", 0.0),
                "accuracy": Term((margin > 0).to(margin).sum(), "pairs.rows", 0.0),
            }

        streams: dict[str, Sequence[Item]] = {"pairs": mined.items}
        if sft_weight:
            streams["demos"] = language.single(rows)
        warm = min(round(fit.warmup * rounds), rounds - 1) if fit.warmup_steps is None else fit.warmup_steps
        rate = fit.lr * schedules.factor(fit.schedule, now.number, rounds, warm)
        steady = now.fit.replace(lr=rate, schedule="constant", warmup_steps=0)
        return language.teach(now.model, streams, terms, steady, hooks=[loop.Calm(), *hooks], name="train")

    chosen: dict[str, Any] = {
        "search": [batch, online, simulations, root_actions, actions, depth, c, gamma, prior_power, temperature],
        "steps": [list(step), last, step_tokens], "critic": [critic, include_gt, official],
        "answer": [answer, getattr(answer_ok, "__qualname__", None)], "pairs": [filter, rule, most],
        "loss": [loss, smoothing, beta, reference, sft_weight], "schedule": rounds,
        "data": hashlib.sha256(repr((rows, [d.answers for d in demos])).encode()).hexdigest()[:16],
    }  # fmt: skip
    played = loop.play(model, rounds, mine, train, fit, name="mcts-dpo", identity=chosen, hooks=hooks)
    if not any(m.items for m in played.mined):
        shares = ", ".join(f"{m.facts['right']:.0%}" for m in played.mined[:3])
        raise UserError(
            f"mcts-dpo: no search gave a pair; the chosen solutions were right in {shares} of the trees: tune the "
            "model on solutions first, check --step and --answer, or search longer"
        )
    return Result(
        models={"model": played.model},
        records=[r for m in played.mined for r in m.records],
        findings={"rounds": [{"round": n, **m.facts} for n, m in enumerate(played.mined)]},
        history=played.history,
        cost=played.cost,
    )


def _mined(
    told: Sequence[Mapping[str, Any]],
    model: Model,
    demos: Sequence[Demo],
    rows: Sequence[Row],
    rule: tree.Rule,
    most: int,
    filter: bool,
    smoothing: bool,
    now: Round,
) -> Mined:
    """Pairs of searched trees, each at the decisions its search took."""
    items: list[Item] = []
    alpha, weight, records, given = [], [], [], 0
    decode = model.tokenizer.decode

    def unlike(a: Node, b: Node) -> bool:
        return bool(decode(list(a.step.tokens)) != decode(list(b.step.tokens)))

    for number, row in enumerate(told):
        if filter and not row["right"]:
            continue
        grown, at = Tree.of(row["tree"], number), row["demo"]
        found = tree.pairs(grown.path, rule, most=most, seed=now.fit.seed, unlike=unlike)
        for better, worse in found:
            k, before = tree.diverges(better, worse) or 0, better.parent.said if better.parent else ()
            head = (*rows[at].prompt, *before, *better.step.tokens[:k])
            items.append((Row(head, better.step.tokens[k:]), Row(head, worse.step.tokens[k:])))
            alpha.append(smoothed(better.visits, worse.visits) if smoothing else 0.0)
            weight.append(1 / len(found))
            given += better.step.given
            told_of = {"n_better": better.visits, "n_worse": worse.visits, "q_better": better.q, "q_worse": worse.q}
            records.append(
                Preference(
                    prompt=_joined(demos[at].prompt, str(decode(list(before))), model.kind),
                    chosen=str(decode(list(better.step.tokens), skip_special_tokens=True)),
                    rejected=str(decode(list(worse.step.tokens), skip_special_tokens=True)),
                    extra={**told_of, "given": better.step.given, "round": now.number},
                )
            )  # fmt: skip
    facts = {
        "trees": len(told),
        "right": sum(row["right"] for row in told) / len(told),
        "pairs": len(items),
        "alpha": float(np.mean(alpha)) if alpha else float("nan"),
        "share_of_gt_in_better": given / len(items) if items else float("nan"),
        "nodes": sum(len(row["tree"]) for row in told) / len(told),
        "tokens": sum(row["tokens"] for row in told),
    }
    shares = torch.tensor(weight, dtype=torch.float64)
    return Mined(items, torch.tensor(alpha), shares * len(items) / shares.sum().clamp(min=1), records, facts)


def _joined(prompt: str, said: str, kind: str) -> str:
    """A prompt and what was said after it."""
    return prompt + encode.join(prompt, said, kind) if said else prompt


def smoothed(better: int, worse: int) -> float:
    """How unsure a pair is by its visits: `min(1/2, N_l / (N_w + N_l))`."""
    return min(0.5, worse / (better + worse)) if better + worse else 0.5


def _likely(
    model: Model,
    reward: Reward | None,
    critic: str,
    demos: Sequence[Demo],
    hints: Sequence[str],
    texts: Sequence[str],
) -> list[float]:
    """C of partial solutions."""
    if critic == "none":
        return [1.0] * len(texts)
    if reward is not None:
        given = torch.tensor(reward([d.prompt for d in demos], texts), dtype=torch.float64)
        return [float(x) for x in given.sigmoid()]
    asked = [
        ASKED.format(question=d.prompt, example=f"EXAMPLE ANSWER: {h}\n\n" if h else "", solution=t)
        for d, h, t in zip(demos, hints, texts, strict=True)
    ]
    return [p[1] for p in rank.probabilities(model, asked, LABELS)]


def _value(node: Node, likely: float, right: bool | None, official: bool, reference: tuple[int, ...]) -> float:
    """C + O of a new node; `official` as the code has them."""
    parent = node.parent
    value = likely
    if official and parent is not None:
        value = likely / max(parent.depth - 3, 1) or parent.value
    if right is None:
        return value
    own = official and right and node.said != reference
    return value + (1.25 if own else 1.0 if right else -1.0)
