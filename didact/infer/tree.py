"""Tree search on token ids: a policy proposes steps, an evaluator values what they lead to, PUCT chooses where to look.

Many trees grow side by side: each runs until it needs a node expanded, and what all of them need is proposed and
valued in one batch. A tree comes out as if it had grown alone, as long as its proposer draws by `Node.key`.

    score(a) = Q(s,a) + c p(a|s) sqrt(N(s)) / (1 + N(s'))            selection
    Q(s,a)   = r(s,a) + gamma V(s'),    r(s,a) = value(s') - value(s)  backup
    V(s)     = sum_a N(s'_a) Q(s,a) / sum_a N(s'_a)

Silver et al. 2017 (AlphaZero) as Xie et al. 2024, arXiv:2405.00451 have it for text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Rule = Literal["worst", "second", "random"]


class Step(NamedTuple):
    """A proposed step: its tokens, how likely the policy finds it, whether the text ends with it, whose it is."""

    tokens: tuple[int, ...]
    prior: float = 1.0
    terminal: bool = False
    given: bool = False  # taken from a reference, not from the policy


START = Step(())


@dataclass(eq=False)
class Node:
    """A text so far. `value` is the evaluator's, `q` and `visits` belong to the edge that leads here, `v` is what
    follows from here on."""

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
        """The mean value of what was reached through this node: `value(s) + Q(s,a)`."""
        return self.q + (self.parent.value if self.parent else 0.0)

    @property
    def key(self) -> int:
        """Names the node for a random draw, whatever grows beside its tree."""
        return self.tree << 32 | self.number

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


Chains = Sequence[Sequence[Step]]
Propose = Callable[[list[Node]], Sequence[Chains]]
"""`propose(nodes)`: for each node, chains of steps that may follow it; a chain of several becomes nodes in a line."""
Evaluate = Callable[[list[Node]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How trees are searched.

    Args:
        simulations: before every decision (or in all, where none is taken).
        first: times as many before the first decision.
        depth: steps at most.
        c: weight of the prior in selection; 0 is greedy in Q.
        gamma: discount of V.
        deep: a simulation expands down to the end of the text; else once, and goes on along what is there.
        decide: moves on to the child that looked best and searches from there, to the end of the text.
        unvisited: what a child without a visit counts in V.
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
        """As JSON, a row a node, parents first."""
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
        """What `rows` gave."""
        nodes: list[Node] = []
        for i, row in enumerate(rows):
            parent = None if row["parent"] is None else nodes[row["parent"]]
            step = Step(tuple(row["tokens"]), row["prior"], row["terminal"], row["given"])
            nodes.append(Node(step, parent, tree, i, row["value"], row["q"], row["v"], row["visits"], True))
            if parent is not None:
                parent.children.append(nodes[-1])
        return Tree(nodes[0], [n for n, row in zip(nodes, rows, strict=True) if row["path"]])


def search(numbers: Sequence[int], propose: Propose, evaluate: Evaluate, how: SearchConfig) -> list[Tree]:
    """Grow one tree for each number, all side by side.

    Args:
        numbers: of the trees; a proposer finds the prompt by `Node.tree`.
        propose: given nodes of different trees, what may follow each. A node with nothing to follow is an end.
        evaluate: given new nodes, the value of each.
        how: how many simulations, and of which kind.
    """
    trees = [_Growing(Node(tree=n), how) for n in numbers]
    live = [t for t in trees if t.wants is not None]
    while live:
        fresh: list[Node] = []
        for tree, chains in zip(live, propose([t.asks() for t in live]), strict=True):
            fresh += tree.insert(chains)
        for node, value in zip(fresh, evaluate(fresh) if fresh else [], strict=True):
            node.value = float(value)
        for node in fresh:
            node.q = node.reward + (node.parent.v if node.parent else 0.0)
        for tree in live:
            tree.go_on()
        live = [t for t in live if t.wants is not None]
    return [Tree(t.root, t.path) for t in trees]


class _Growing:
    """One tree of a search, halted wherever it wants a node expanded."""

    def __init__(self, root: Node, how: SearchConfig) -> None:
        self.root, self.count = root, 1
        self.path = [root]
        self.grower = _grow(self.path, how)
        self.wants: Node | None = None
        self.go_on()

    def asks(self) -> Node:
        """The node it wants expanded."""
        assert self.wants is not None
        return self.wants

    def go_on(self) -> None:
        """Search on until the next node is wanted, or to the end."""
        self.wants = next(self.grower, None)

    def insert(self, chains: Chains) -> list[Node]:
        """Put chains of steps below the wanted node; what is there already is not put twice. Returns what is new."""
        fresh = []
        for chain in chains:
            at = self.asks()
            for step in chain:
                known = next((c for c in at.children if c.step.tokens == step.tokens), None)
                if known is None:
                    known = Node(step, at, self.root.tree, self.count)
                    self.count += 1
                    at.children.append(known)
                    fresh.append(known)
                at = known
        self.asks().expanded = True
        return fresh


def _grow(path: list[Node], how: SearchConfig) -> Generator[Node, None, None]:
    """Search one tree; a node that is yielded is expanded when this goes on."""
    at = path[0]
    while not _ends(at, how):
        for _ in range(how.simulations * (how.first if len(path) == 1 else 1)):
            node, grown = at, False
            while not _ends(node, how):
                if not node.expanded and (how.deep or not grown):
                    yield node
                    grown = True
                if not node.children:
                    break
                node = select(node, how.c)
            back_up(node, at, how)
        if not how.decide or not at.children:
            break
        at = decide(at)
        path.append(at)


def _ends(node: Node, how: SearchConfig) -> bool:
    return node.step.terminal or node.depth >= how.depth


def select(node: Node, c: float = 1.0) -> Node:
    """The child that PUCT visits next; of equals the first."""
    root = c * math.sqrt(node.visits)
    return max(node.children, key=lambda n: n.q + root * n.step.prior / (1 + n.visits))


def back_up(node: Node, top: Node, how: SearchConfig) -> None:
    """One more visit of `node` and of all above it up to `top`, with Q of every edge and V of every node between."""
    node.visits += 1
    while node is not top and node.parent is not None:
        node.q = node.reward + how.gamma * node.v
        node = node.parent
        node.visits += 1
        weights = [max(child.visits, how.unvisited) for child in node.children]
        node.v = sum(w * child.q for w, child in zip(weights, node.children, strict=True)) / sum(weights)


def decide(node: Node) -> Node:
    """The child to go on from: most visits times (1 + the gap of visits among its own children), then Q, then V."""

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
    """The child of highest Q against another, for each node with two children or more.

    Args:
        nodes: whose children are compared.
        rule: the other is the one of lowest Q, the runner-up, or any at random.
        gap: least difference of Q; equals are never a pair.
        floor: least worth of the better one.
        most: pairs at most, the first nodes' first.
        seed: of the random rule, with the node's key.
        unlike: `unlike(better, worse)` says whether the two differ in what matters; all do by default.

    Returns:
        Pairs whose tokens differ before either ends.
    """
    found = []
    for node in nodes:
        if len(node.children) < 2:
            continue
        best, *rest = sorted(node.children, key=lambda n: -n.q)  # stable: of equals the first proposed
        chance = int(np.random.default_rng([seed, 51, node.key]).integers(len(rest)))
        worse = rest[{"worst": -1, "second": 0, "random": chance}[rule]]
        decided = best.q > worse.q and best.q - worse.q >= gap and best.worth >= floor
        if decided and diverges(best, worse) is not None and (unlike is None or unlike(best, worse)):
            found.append(Pair(best, worse))
    return found[:most]


def diverges(a: Node, b: Node) -> int | None:
    """How many leading tokens two steps share before they differ; None where one is the beginning of the other."""
    both = zip(a.step.tokens, b.step.tokens, strict=False)
    return next((i for i, (x, y) in enumerate(both) if x != y), None)
