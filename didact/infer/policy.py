"""A language model as the proposer of a tree search: it continues the texts of nodes, all in one batch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from didact.bounds import Count, NonNegative, Positive
from didact.infer import generate, steps
from didact.infer.generate import Completion, SamplingConfig
from didact.infer.tree import Node, SearchConfig, Step
from didact.models.kv_cache import KVCache
from didact.models.model import Model

ROWS = 256  # continued side by side: texts are short, and their beginnings are shared


class Policy:
    """Samples continuations of nodes; `spent` counts the tokens each tree has cost, `memory` is what was read.

    A draw follows from the seed, the tree's number and the node's, so that no tree sees what grows beside it.

    Args:
        model: causal.
        prompts: token ids of each tree's prompt.
        seed: of all draws.
    """

    def __init__(self, model: Model, prompts: Mapping[int, Sequence[int]], seed: int) -> None:
        self.model, self.prompts, self.seed = model, prompts, seed
        self.ends = generate.ends(model)
        self.spent: Counter[int] = Counter()
        self.kv_cache = KVCache()

    def prompt(self, node: Node) -> tuple[int, ...]:
        """All tokens before what follows a node."""
        return (*self.prompts[node.tree], *node.tokens)

    def sampled(self, nodes: Sequence[Node], n: Sequence[int], how: SamplingConfig) -> list[list[Completion]]:
        """`n[i]` continuations of node i, of at most `how.max_new_tokens`; none where the context is full."""
        out: list[list[Completion]] = [[] for _ in nodes]
        room = [min(how.max_new_tokens, self.model.context - len(self.prompt(node))) for node in nodes]
        for key in sorted(set(zip(room, n, strict=True))):
            if key[0] < 1:
                continue
            these = [i for i, k in enumerate(zip(room, n, strict=True)) if k == key]
            asked = dataclasses.replace(how, max_new_tokens=key[0], seed=self.seed, rows=ROWS)
            made = generate.completions(
                self.model, [self.prompt(nodes[i]) for i in these], key[1], asked,
                keys=[nodes[i].key for i in these], kv_cache=self.kv_cache,
            )  # fmt: skip
            for i, row in zip(these, made, strict=True):
                out[i] = row
                self.spent[nodes[i].tree] += sum(len(c.tokens) for c in row)
        return out


@dataclass(frozen=True, kw_only=True)
class StepSearch:
    """How a tree of steps is searched.

    Args:
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
        include_gt: the reference solution's next step is one of the steps.
    """

    simulations: Count = 64
    root_actions: Count = 2
    actions: Count = 2
    depth: Count = 3
    c: NonNegative = 1.0
    gamma: NonNegative = 1.0
    prior_power: NonNegative = 1.25
    temperature: Positive = 1.0
    step: Annotated[Sequence[str], MinLen(1)] = ("\\n",)
    last: str = "answer is"
    step_tokens: Count = 128
    include_gt: bool = True

    def of_tree(self, **more: Any) -> SearchConfig:
        """As `tree.search` takes it, with `more` of its fields."""
        return SearchConfig(simulations=self.simulations, depth=self.depth, c=self.c, gamma=self.gamma, **more)


class Steps(Policy):
    """Proposes one step at a time, and the reference's next one where the text so far is the reference's.

    A step in which `last` stands is given an end token.

    Args:
        model: as for `Policy`; so are prompts and seed.
        prompts: as for `Policy`.
        closing: tokens that end a step.
        search: how many steps of which length, and how they are sampled.
        seed: of all draws.
        references: the steps of a tree's reference, where it has one.
    """

    def __init__(
        self,
        model: Model,
        prompts: Mapping[int, Sequence[int]],
        closing: Collection[int],
        search: StepSearch,
        seed: int,
        references: Mapping[int, Sequence[tuple[int, ...]]] | None = None,
    ) -> None:
        super().__init__(model, prompts, seed)
        self.closing, self.search, self.references = closing, search, references or {}
        self.sampling = SamplingConfig(max_new_tokens=search.step_tokens, temperature=search.temperature)

    def propose(self, nodes: list[Node]) -> list[list[list[Step]]]:
        """Steps that may follow each node."""
        out: list[list[list[Step]]] = [[] for _ in nodes]
        for final in (False, True):
            these = [i for i, node in enumerate(nodes) if (node.depth + 1 == self.search.depth) == final]
            how = self.sampling if final else dataclasses.replace(self.sampling, closing=self.closing)
            counts = [self.search.actions if nodes[i].depth else self.search.root_actions for i in these]
            for i, made in zip(these, self.sampled([nodes[i] for i in these], counts, how), strict=True):
                out[i] = [[self._step(c, final)] for c in made]
        given = [(i, step) for i, node in enumerate(nodes) if (step := self._given(node)) is not None]
        valued = steps.with_priors(
            self.model,
            [self.prompt(nodes[i]) for i, _ in given],
            [[step] for _, step in given],
            self.search.prior_power,
            self.kv_cache,
        )
        for (i, _), (step,) in zip(given, valued, strict=True):
            same = [chain for chain in out[i] if chain[0].tokens == step.tokens]
            out[i] = [chain for chain in out[i] if chain not in same] + [[step]]
        return out

    def _step(self, made: Completion, final: bool) -> Step:
        tokens = made.tokens
        done = tokens[-1] in self.ends
        if self.search.last and not done and self.search.last in made.text:
            tokens, done = (*tokens, *sorted(self.ends)[:1]), True
        return Step(tokens, steps.prior(made.logp, len(made.tokens), self.search.prior_power), done or final)

    def _given(self, node: Node) -> Step | None:
        """The reference's step after a node whose text is the reference's so far; its rest where depth ends."""
        reference = self.references.get(node.tree, ())
        if node.depth >= len(reference) or node.tokens != sum(reference[: node.depth], ()):
            return None
        final = node.depth + 1 >= min(self.search.depth, len(reference))
        tokens = sum(reference[node.depth :], ()) if final else reference[node.depth]
        return Step(tuple(tokens), terminal=final, given=True)


@dataclass(frozen=True, kw_only=True)
class FragmentSearch:
    """How trees of fragments are searched.

    Args:
        simulations: of a tree.
        actions: continuations sampled from a node.
        depth: steps of an answer; what is left goes into the last.
        c: weight of the prior in PUCT.
        temperature: at which continuations are sampled.
        max_new_tokens: of a continuation.
        delimiters: texts a fragment ends with.
        group: fragments to a step.
    """

    simulations: Count = 5
    actions: Count = 3
    depth: Count = 3
    c: NonNegative = 1.0
    temperature: Positive = 1.5
    max_new_tokens: Count = 50
    delimiters: Sequence[str] = (". ", ", ", "=", "(")
    group: Count = 2

    def of_tree(self) -> SearchConfig:
        """As `tree.search` takes it: a simulation expands once, and no step is decided on."""
        return SearchConfig(simulations=self.simulations, depth=self.depth, c=self.c, deep=False, decide=False)


class Pieces(Policy):
    """Proposes whole continuations, each a chain of fragments: a tree's branches part inside an answer.

    Args:
        model: as for `Policy`; so are prompts and seed.
        prompts: as for `Policy`.
        search: how many continuations are sampled from a node, and how they are cut.
        seed: of all draws.
    """

    def __init__(self, model: Model, prompts: Mapping[int, Sequence[int]], search: FragmentSearch, seed: int) -> None:
        super().__init__(model, prompts, seed)
        self.search = search
        self.sampling = SamplingConfig(max_new_tokens=search.max_new_tokens, temperature=search.temperature)

    def propose(self, nodes: list[Node]) -> list[list[list[Step]]]:
        """Chains of steps that may follow each node."""
        made = self.sampled(nodes, [self.search.actions] * len(nodes), self.sampling)
        flat = [(node, c) for node, row in zip(nodes, made, strict=True) for c in row]
        chains = [self._chain(c.tokens, self.search.depth - node.depth) for node, c in flat]
        prompts = [self.prompt(node) for node, _ in flat]
        valued = iter(steps.with_priors(self.model, prompts, chains, kv_cache=self.kv_cache))
        return [[next(valued) for _ in row] for row in made]

    def _chain(self, tokens: tuple[int, ...], room: int) -> list[Step]:
        found, size = steps.pieces(self.model.tokenizer, tokens, self.search.delimiters), self.search.group
        groups = [sum(found[i : i + size], ()) for i in range(0, len(found), size)]
        groups = [*groups[: room - 1], sum(groups[room - 1 :], ())] if len(groups) > room else groups
        ended = tokens[-1] in self.ends
        return [Step(g, terminal=ended and i + 1 == len(groups)) for i, g in enumerate(groups)]
