"""Tree search on token ids: a policy proposes steps, an evaluator values the new nodes, PUCT selects what to expand.

Many trees grow in lockstep: each runs until it needs a node expanded, and the nodes of all trees are expanded and
evaluated in one batch. Each tree is the same as if grown alone, provided its proposer seeds draws by `Node.key`.

    score(a) = Q(s,a) + c p(a|s) sqrt(N(s)) / (1 + N(s'))            selection
    Q(s,a)   = r(s,a) + gamma V(s'),    r(s,a) = value(s') - value(s)  backup
    V(s)     = sum_a N(s'_a) Q(s,a) / sum_a N(s'_a)

Silver et al. 2017 (AlphaZero), adapted to text as in Xie et al. 2024, arXiv:2405.00451.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Rule = Literal["worst", "second", "random"]


class Step(NamedTuple):
    """A proposed step: its tokens, its prior under the policy, whether it ends the text, and its origin."""

    tokens: tuple[int, ...]
    prior: float = 1.0
    terminal: bool = False
    given: bool = False  # taken from a reference, not from the policy


START = Step(())


@dataclass(eq=False)
class Node:
    """A partial text. `value` is the evaluator's; `q` and `visits` belong to the edge that leads here; `v` is V(s)."""

    step: Step = START
    parent: Node | None = None
    tree: int = 0
    number: int = 0
    value: float = 0.0
    q: float = 0.0
    v: float = 0.0
    visits: int = 0
    expanded: bool = False
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of all steps from the root."""
        return () if self.parent is None else self.parent.tokens + self.step.tokens

    @property
    def reward(self) -> float:
        """`r(s,a)` of the edge that leads here."""
        return self.value - (self.parent.value if self.parent else 0.0)

    @property
    def worth(self) -> float:
        """The mean value of the nodes reached through this one: `value(s) + Q(s,a)`, s its parent."""
        return self.q + (self.parent.value if self.parent else 0.0)

    @property
    def key(self) -> int:
        """A seed for random draws at this node, independent of the other trees."""
        return self.tree << 32 | self.number

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


Chains = Sequence[Sequence[Step]]
Propose = Callable[[list[Node]], Sequence[Chains]]
"""`propose(nodes)`: for each node, chains of steps that may follow it; a chain becomes a path of nodes."""
Evaluate = Callable[[list[Node]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How trees are searched.

    Args:
        simulations: simulations before every decision (or in total, without decisions).
        first: factor on `simulations` before the first decision.
        depth: most steps.
        c: weight of the prior in selection; 0 is greedy in Q.
        gamma: discount of V.
        deep: a simulation expands nodes down to the end of the text; else only one, then follows existing nodes.
        decide: move to the best child and search from there, to the end of the text.
        unvisited: weight of an unvisited child in V.
    """

    simulations: int = 64
    first: int = 1
    depth: int = 3
    c: float = 1.0
    gamma: float = 1.0
    deep: bool = True
    decide: bool = True
    unvisited: int = 0


@dataclass(frozen=True)
class Tree:
    """A searched tree: its root and the nodes decided on, the root first."""

    root: Node
    path: list[Node]

    def rows(self) -> list[dict[str, Any]]:
        """The tree as JSON rows, one per node, parents first."""
        nodes = list(self.root.walk())
        place, chosen = {id(n): i for i, n in enumerate(nodes)}, {id(n) for n in self.path}
        return [
            {
                "parent": place[id(n.parent)] if n.parent else None, "tokens": list(n.step.tokens),
                "prior": n.step.prior, "terminal": n.step.terminal, "given": n.step.given,
                "value": n.value, "q": n.q, "v": n.v, "visits": n.visits, "path": id(n) in chosen,
            }
            for n in nodes
        ]  # fmt: skip

    @staticmethod
    def of(rows: Sequence[Mapping[str, Any]], tree: int = 0) -> Tree:
        """Rebuild a tree from its `rows`."""
        nodes: list[Node] = []
        for i, row in enumerate(rows):
            parent = None if row["parent"] is None else nodes[row["parent"]]
            step = Step(tuple(row["tokens"]), row["prior"], row["terminal"], row["given"])
            nodes.append(Node(step, parent, tree, i, row["value"], row["q"], row["v"], row["visits"], True))
            if parent is not None:
                parent.children.append(nodes[-1])
        return Tree(nodes[0], [n for n, row in zip(nodes, rows, strict=True) if row["path"]])


def search(numbers: Sequence[int], propose: Propose, evaluate: Evaluate, config: SearchConfig) -> list[Tree]:
    """Grow one tree for each number, all in lockstep.

    Args:
        numbers: the trees' numbers; a proposer looks up the prompt by `Node.tree`.
        propose: for nodes of different trees, the steps that may follow each. A node without any is a leaf.
        evaluate: for new nodes, the value of each.
        config: number and kind of simulations.
    """
    trees = [_Growing(Node(tree=n), config) for n in numbers]
    live = [t for t in trees if t.pending is not None]
    while live:
        fresh: list[Node] = []
        for tree, chains in zip(live, propose([t.pending_node() for t in live]), strict=True):
            fresh += tree.insert(chains)
        for node, value in zip(fresh, evaluate(fresh) if fresh else [], strict=True):
            node.value = float(value)
        for node in fresh:
            node.q = node.reward + (node.parent.v if node.parent else 0.0)
        for tree in live:
            tree.advance()
        live = [t for t in live if t.pending is not None]
    return [Tree(t.root, t.path) for t in trees]


class _Growing:
    """One tree of a search, paused whenever it needs a node expanded."""

    def __init__(self, root: Node, config: SearchConfig) -> None:
        self.root, self.count = root, 1
        self.path = [root]
        self.grower = _grow(self.path, config)
        self.pending: Node | None = None
        self.advance()

    def pending_node(self) -> Node:
        """The node to expand next."""
        assert self.pending is not None
        return self.pending

    def advance(self) -> None:
        """Search until the next node must be expanded, or to the end."""
        self.pending = next(self.grower, None)

    def insert(self, chains: Chains) -> list[Node]:
        """Add chains of steps below the pending node, reusing existing children; return the new nodes."""
        fresh = []
        for chain in chains:
            at = self.pending_node()
            for step in chain:
                child = next((c for c in at.children if c.step.tokens == step.tokens), None)
                if child is None:
                    child = Node(step, at, self.root.tree, self.count)
                    self.count += 1
                    at.children.append(child)
                    fresh.append(child)
                at = child
        self.pending_node().expanded = True
        return fresh


def _grow(path: list[Node], config: SearchConfig) -> Generator[Node, None, None]:
    """Search one tree; a yielded node must be expanded before the generator resumes."""
    at = path[0]
    while not _is_end(at, config):
        for _ in range(config.simulations * (config.first if len(path) == 1 else 1)):
            node, grown = at, False
            while not _is_end(node, config):
                if not node.expanded and (config.deep or not grown):
                    yield node
                    grown = True
                if not node.children:
                    break
                node = select(node, config.c)
            back_up(node, at, config)
        if not config.decide or not at.children:
            break
        at = decide(at)
        path.append(at)


def _is_end(node: Node, config: SearchConfig) -> bool:
    return node.step.terminal or node.depth >= config.depth


def select(node: Node, c: float = 1.0) -> Node:
    """The child that PUCT visits next; ties go to the first."""
    root = c * math.sqrt(node.visits)
    return max(node.children, key=lambda n: n.q + root * n.step.prior / (1 + n.visits))


def back_up(node: Node, top: Node, config: SearchConfig) -> None:
    """Add a visit to `node` and its ancestors up to `top`, updating Q of the edges and V of the nodes between."""
    node.visits += 1
    while node is not top and node.parent is not None:
        node.q = node.reward + config.gamma * node.v
        node = node.parent
        node.visits += 1
        weights = [max(child.visits, config.unvisited) for child in node.children]
        node.v = sum(w * child.q for w, child in zip(weights, node.children, strict=True)) / sum(weights)


def decide(node: Node) -> Node:
    """The child to continue from: largest visits times (1 + the range of its children's visits), then Q, then V."""

    def rank(child: Node) -> tuple[float, float, float]:
        counts = [c.visits for c in child.children]
        return child.visits * (1 + (max(counts) - min(counts) if counts else 0)), child.q, child.v

    return max(node.children, key=rank)


class Pair(NamedTuple):
    """Two steps after one node, the first with the higher Q."""

    better: Node
    worse: Node


def pairs(
    nodes: Sequence[Node],
    rule: Rule = "worst",
    gap: float = 0.0,
    floor: float = -math.inf,
    most: int | None = None,
    seed: int = 0,
    unlike: Callable[[Node, Node], bool] | None = None,
) -> list[Pair]:
    """Pair the child of highest Q with another one, for each node with at least two children.

    Args:
        nodes: whose children are compared.
        rule: the other child: lowest Q, the runner-up, or a random one.
        gap: least difference of Q; children of equal Q are never paired.
        floor: least worth of the better one.
        most: most pairs, taken in the order of `nodes`.
        seed: of the random rule, together with the node's key.
        unlike: `unlike(better, worse)`: whether the two differ in what matters; all do by default.

    Returns:
        Pairs whose tokens differ before either ends.
    """
    out = []
    for node in nodes:
        if len(node.children) < 2:
            continue
        best, *others = sorted(node.children, key=lambda n: -n.q)  # stable: ties go to the first proposed
        random = int(np.random.default_rng([seed, 51, node.key]).integers(len(others)))
        worse = others[{"worst": -1, "second": 0, "random": random}[rule]]
        separated = best.q > worse.q and best.q - worse.q >= gap and best.worth >= floor
        if separated and diverges(best, worse) is not None and (unlike is None or unlike(best, worse)):
            out.append(Pair(best, worse))
    return out[:most]


def diverges(a: Node, b: Node) -> int | None:
    """How many leading tokens two steps share before they differ; None where one is a prefix of the other."""
    both = zip(a.step.tokens, b.step.tokens, strict=False)
    return next((i for i, (x, y) in enumerate(both) if x != y), None)
