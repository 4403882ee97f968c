"""Tree search over solution steps in a round, and the preference pairs of steps that the trees give."""

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

CHUNK = 64  # trees searched in one batch: a kill loses at most these

Value = Callable[[list[int], list[Node], list[str], KVCache], Sequence[float]]
"""`value(demos, nodes, texts, kv_cache)`: the value of each new node, given the index of its prompt, the node, its text
so far and the key-value cache of the searching model."""


class Branch(NamedTuple):
    """Two steps that follow the same tokens, as rows (better, worse), as nodes and as a record.

    `share` is 1 / (number of branches of its tree): with this weight every tree counts once.
    """

    item: ExampleGroup
    better: Node
    worse: Node
    record: Preference
    share: float


def search_trees(
    current: Round,
    index: Sequence[int],
    proposer: Callable[[Sequence[int], int], Steps | Pieces],
    value: Value,
    config: tree.SearchConfig,
) -> list[dict[str, Any]]:
    """Search one tree per prompt; trees saved in the round's folder by an earlier start are not searched again.

    Args:
        current: the round.
        index: indices of the prompts.
        proposer: `proposer(index, seed)` returns what proposes steps for these prompts' trees, numbered from 0.
        value: evaluates new nodes.
        config: settings of the search.

    Returns:
        For each prompt its index (`demo`), its `tree` (see `tree.Tree.rows`) and the `tokens` spent on it.
    """

    def make(start: int, stop: int) -> list[dict[str, Any]]:
        chunk = index[start:stop]
        policy = proposer(chunk, current.fit.seed * 1_000_003 + start)

        def evaluate(nodes: list[Node]) -> Sequence[float]:
            texts = [steps.text(current.model.tokenizer, node) for node in nodes]
            return value([chunk[node.tree] for node in nodes], nodes, texts, policy.kv_cache)

        trees = tree.search(range(len(chunk)), policy.propose, evaluate, config)
        return [
            {"demo": i, "tree": t.rows(), "tokens": policy.spent[k]}
            for k, (i, t) in enumerate(zip(chunk, trees, strict=True))
        ]

    return current.chunks("trees", len(index), make, CHUNK)


def collect(
    trees: Iterable[Mapping[str, Any]],
    model: Model,
    demos: Sequence[Demo],
    rows: Sequence[TokenizedExample],
    pick: Callable[[Tree], Sequence[tree.Pair]],
    number: int = 0,
    trimmed: bool = False,
) -> list[Branch]:
    """Collect the branches of trees.

    Args:
        trees: rows from `searched`.
        model: its tokenizer decodes the steps.
        demos: all prompts.
        rows: the prompts, encoded, in the same order.
        pick: chooses the pairs of a tree.
        number: number of the round, for the records.
        trimmed: move the tokens that both steps begin with into the prompt: they cancel in a margin of sums.

    Returns:
        Records have `q_better`, `q_worse`, `n_better`, `n_worse` (visits), `given` (the better step is the reference's)
        and `round`; their scores are the mean values of the nodes reached through each step.
    """
    out = []
    for position, row in enumerate(trees):
        demo, body = demos[row["demo"]], rows[row["demo"]].prompt
        pairs = pick(Tree.of(row["tree"], position))
        for better, worse in pairs:
            before = better.parent.tokens if better.parent else ()
            k = (tree.diverges(better, worse) or 0) if trimmed else 0
            head = (*body, *before, *better.step.tokens[:k])
            prefix = text(model, before)
            record = Preference(
                prompt=demo.prompt + encode.join(demo.prompt, prefix, model.kind) if prefix else demo.prompt,
                chosen=text(model, better.step.tokens), rejected=text(model, worse.step.tokens),
                chosen_score=better.worth, rejected_score=worse.worth,
                extra={"q_better": better.q, "q_worse": worse.q, "n_better": better.visits, "n_worse": worse.visits,
                       "given": better.step.given, "round": number},
            )  # fmt: skip
            item = (TokenizedExample(head, better.step.tokens[k:]), TokenizedExample(head, worse.step.tokens[k:]))
            out.append(Branch(item, better, worse, record, 1 / len(pairs)))
    return out


def data(
    branches: Sequence[Branch], stats: Mapping[str, Any], columns: Mapping[str, Tensor] | None = None
) -> RoundData:
    """Return branches as training data of a round, with weights `share` (mean 1) by which every tree counts once."""
    share = torch.tensor([b.share for b in branches])
    tensors = {"share": share * len(branches) / share.sum(), **(columns or {})}
    return RoundData([b.item for b in branches], dict(stats), [b.record for b in branches], tensors)


def solved(trees: Sequence[Mapping[str, Any]], model: Model, demos: Sequence[Demo], check: AnswerCheck) -> list[bool]:
    """Whether the text that each search decided on is complete and has the right answer."""
    ends = [(Tree.of(row["tree"]).path[-1], demos[row["demo"]]) for row in trees]
    return [end.step.terminal and check(steps.text(model.tokenizer, end), demo) for end, demo in ends]


def noise(better: int, worse: int) -> float:
    """Uncertainty of a pair from the visits of its steps: `min(1/2, N_l / (N_w + N_l))`."""
    return min(0.5, worse / (better + worse)) if better + worse else 0.5


def stats(trees: Sequence[Mapping[str, Any]], branches: Sequence[Branch]) -> dict[str, float]:
    """Numbers of trees, branches, nodes per tree, and tokens spent in all."""
    return {
        "trees": len(trees), "pairs": len(branches), "nodes": sum(len(row["tree"]) for row in trees) / len(trees),
        "tokens": sum(row["tokens"] for row in trees),
    }  # fmt: skip


def differ(model: Model, read: Callable[[str], object] = str) -> Callable[[Node, Node], bool]:
    """Return a predicate: do two steps differ as text (after `read`), and not only in their tokens?"""
    return lambda a, b: read(text(model, a.step.tokens)) != read(text(model, b.step.tokens))


def text(model: Model, tokens: Sequence[int]) -> str:
    """Decode tokens, without the special ones."""
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))
