"""A round's searched trees of steps, and the pairs of steps they give to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup
from didact.infer import steps, tree
from didact.infer.policy import Pieces, Steps
from didact.infer.tree import Node, Tree
from didact.learn.rounds import Round, RoundData
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.types import AnswerCheck, Demo, Preference

BESIDE = 64  # trees that grow side by side, and are lost to a kill together

Value = Callable[[list[int], list[Node], list[str], KVCache], Sequence[float]]
"""`value(demos, nodes, texts, memory)`: what each new node is worth, given its prompt's number, its text so far and
what the searching model has read."""


class Branch(NamedTuple):
    """Two steps that follow the same tokens, as rows (better, worse), as nodes and as a record.

    `share` is one over the number of branches of its tree: summed with it, every tree counts once.
    """

    item: ExampleGroup
    better: Node
    worse: Node
    record: Preference
    share: float


def searched(
    now: Round,
    index: Sequence[int],
    proposer: Callable[[Sequence[int], int], Steps | Pieces],
    value: Value,
    how: tree.SearchConfig,
) -> list[dict[str, Any]]:
    """One tree a prompt, kept in the round's folder: what an earlier start finished is not searched again.

    Args:
        now: the round.
        index: the prompts, by their numbers.
        proposer: `proposer(numbers, seed)` proposes steps for these prompts' trees, numbered from 0.
        value: of new nodes.
        how: to search.

    Returns:
        For each prompt its number (`demo`), its `tree` (see `tree.Tree.rows`) and the `tokens` it cost.
    """

    def make(start: int, stop: int) -> list[dict[str, Any]]:
        part = index[start:stop]
        actor = proposer(part, now.fit.seed * 1_000_003 + start)

        def evaluate(nodes: list[Node]) -> Sequence[float]:
            texts = [steps.text(now.model.tokenizer, node) for node in nodes]
            return value([part[node.tree] for node in nodes], nodes, texts, actor.kv_cache)

        grown = tree.search(range(len(part)), actor.propose, evaluate, how)
        return [
            {"demo": i, "tree": t.rows(), "tokens": actor.spent[k]}
            for k, (i, t) in enumerate(zip(part, grown, strict=True))
        ]

    return now.chunks("trees", len(index), make, BESIDE)


def collected(
    trees: Iterable[Mapping[str, Any]],
    model: Model,
    demos: Sequence[Demo],
    rows: Sequence[TokenizedExample],
    pick: Callable[[Tree], Sequence[tree.Pair]],
    number: int = 0,
    trimmed: bool = False,
) -> list[Branch]:
    """The branches of trees.

    Args:
        trees: what `searched` gave, or some of it.
        model: its tokenizer reads the steps.
        demos: all prompts.
        rows: the same, encoded.
        pick: which pairs of a tree.
        number: of the round; the records say it.
        trimmed: rows begin where the two differ: tokens both begin with cancel in a margin of sums.

    Returns:
        Records have `q_better`, `q_worse`, `n_better`, `n_worse` (visits), `given` (the better step is the reference's)
        and `round`; their scores are the mean values of what was reached through each side.
    """
    out = []
    for place, row in enumerate(trees):
        demo, body = demos[row["demo"]], rows[row["demo"]].prompt
        found = pick(Tree.of(row["tree"], place))
        for better, worse in found:
            before = better.parent.tokens if better.parent else ()
            k = (tree.diverges(better, worse) or 0) if trimmed else 0
            head = (*body, *before, *better.step.tokens[:k])
            opening = text(model, before)
            record = Preference(
                prompt=demo.prompt + encode.join(demo.prompt, opening, model.kind) if opening else demo.prompt,
                chosen=text(model, better.step.tokens), rejected=text(model, worse.step.tokens),
                chosen_score=better.worth, rejected_score=worse.worth,
                extra={"q_better": better.q, "q_worse": worse.q, "n_better": better.visits, "n_worse": worse.visits,
                       "given": better.step.given, "round": number},
            )  # fmt: skip
            item = (TokenizedExample(head, better.step.tokens[k:]), TokenizedExample(head, worse.step.tokens[k:]))
            out.append(Branch(item, better, worse, record, 1 / len(found)))
    return out


def data(found: Sequence[Branch], about: Mapping[str, Any], columns: Mapping[str, Tensor] | None = None) -> RoundData:
    """Branches as what a round trains on, with a `share` of each by which every tree counts once, 1 on average."""
    share = torch.tensor([b.share for b in found])
    tensors = {"share": share * len(found) / share.sum(), **(columns or {})}
    return RoundData([b.item for b in found], dict(about), [b.record for b in found], tensors)


def solved(trees: Sequence[Mapping[str, Any]], model: Model, demos: Sequence[Demo], check: AnswerCheck) -> list[bool]:
    """Whether the text that each search decided on comes to an end, and to the right answer."""
    ends = [(Tree.of(row["tree"]).path[-1], demos[row["demo"]]) for row in trees]
    return [end.step.terminal and check(steps.text(model.tokenizer, end), demo) for end, demo in ends]


def unsure(better: int, worse: int) -> float:
    """How unsure a pair is by the visits of its steps: `min(1/2, N_l / (N_w + N_l))`."""
    return min(0.5, worse / (better + worse)) if better + worse else 0.5


def stats(trees: Sequence[Mapping[str, Any]], found: Sequence[Branch]) -> dict[str, float]:
    """How many trees and branches, nodes of a tree, and the tokens all have cost."""
    return {
        "trees": len(trees), "pairs": len(found), "nodes": sum(len(row["tree"]) for row in trees) / len(trees),
        "tokens": sum(row["tokens"] for row in trees),
    }  # fmt: skip


def differ(model: Model, read: Callable[[str], object] = str) -> Callable[[Node, Node], bool]:
    """Whether two steps are different things to read, not just different tokens."""
    return lambda a, b: read(text(model, a.step.tokens)) != read(text(model, b.step.tokens))


def text(model: Model, tokens: Sequence[int]) -> str:
    """Tokens without the special ones."""
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))
