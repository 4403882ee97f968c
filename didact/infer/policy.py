"""A language model as the policy of a tree search: it samples continuations of many nodes in one batch."""

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

ROWS = 256  # batch size: texts are short and share prefixes


class Policy:
    """Samples continuations of nodes; `spent` counts generated tokens by tree, `kv_cache` is the prefix cache.

    A draw depends only on the seed, the tree's number and the node's, so that trees do not affect each other.

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
        """The token ids that a node's continuation follows: the tree's prompt and the node's text."""
        return (*self.prompts[node.tree], *node.tokens)

    def sampled(self, nodes: Sequence[Node], n: Sequence[int], sampling: SamplingConfig) -> list[list[Completion]]:
        """`n[i]` continuations of node i, of at most `sampling.max_new_tokens`; none where the context is full."""
        out: list[list[Completion]] = [[] for _ in nodes]
        room = [min(sampling.max_new_tokens, self.model.context - len(self.prompt(node))) for node in nodes]
        for key in sorted(set(zip(room, n, strict=True))):
            if key[0] < 1:
                continue
            indices = [i for i, k in enumerate(zip(room, n, strict=True)) if k == key]
            config = dataclasses.replace(sampling, max_new_tokens=key[0], seed=self.seed, rows=ROWS)
            drawn = generate.completions(
                self.model, [self.prompt(nodes[i]) for i in indices], key[1], config,
                keys=[nodes[i].key for i in indices], kv_cache=self.kv_cache,
            )  # fmt: skip
            for i, row in zip(indices, drawn, strict=True):
                out[i] = row
                self.spent[nodes[i].tree] += sum(len(c.tokens) for c in row)
        return out


@dataclass(frozen=True, kw_only=True)
class StepSearch:
    """How a tree of steps is searched.

    Args:
        simulations: simulations before each decision.
        root_actions: steps sampled at the root.
        actions: steps sampled at every other node.
        depth: most steps of a solution; the last one is sampled to the end of the text.
        c: weight of the prior in PUCT.
        gamma: discount.
        prior_power: a step's prior is exp(logp / tokens^power); more favours long steps.
        temperature: sampling temperature of steps.
        step: texts that end a step; backslash and n is a line break.
        last: a step that contains this text is the last; empty for none.
        step_tokens: most tokens of a step; of the last step, up to the end of the text.
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

    def of_tree(self, **fields: Any) -> SearchConfig:
        """The config for `tree.search`, with further `fields` set."""
        return SearchConfig(simulations=self.simulations, depth=self.depth, c=self.c, gamma=self.gamma, **fields)


class Steps(Policy):
    """Proposes one step at a time, and the reference's next step where the text so far is a prefix of the reference.

    An end token is appended to a step that contains `last`.

    Args:
        model: as for `Policy`.
        prompts: as for `Policy`.
        closing: tokens that end a step.
        search: number, length and sampling of steps.
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
            indices = [i for i, node in enumerate(nodes) if (node.depth + 1 == self.search.depth) == final]
            sampling = self.sampling if final else dataclasses.replace(self.sampling, closing=self.closing)
            counts = [self.search.actions if nodes[i].depth else self.search.root_actions for i in indices]
            for i, completions in zip(
                indices, self.sampled([nodes[i] for i in indices], counts, sampling), strict=True
            ):
                out[i] = [[self._step(c, final)] for c in completions]
        references = [(i, step) for i, node in enumerate(nodes) if (step := self._reference_step(node)) is not None]
        rated = steps.with_priors(
            self.model,
            [self.prompt(nodes[i]) for i, _ in references],
            [[step] for _, step in references],
            self.search.prior_power,
            self.kv_cache,
        )
        for (i, _), (step,) in zip(references, rated, strict=True):
            duplicates = [chain for chain in out[i] if chain[0].tokens == step.tokens]
            out[i] = [chain for chain in out[i] if chain not in duplicates] + [[step]]
        return out

    def _step(self, completion: Completion, final: bool) -> Step:
        tokens = completion.tokens
        ended = tokens[-1] in self.ends
        if self.search.last and not ended and self.search.last in completion.text:
            tokens, ended = (*tokens, *sorted(self.ends)[:1]), True
        return Step(
            tokens, steps.prior(completion.logp, len(completion.tokens), self.search.prior_power), ended or final
        )

    def _reference_step(self, node: Node) -> Step | None:
        """The reference's next step if the node's text is its prefix; all remaining steps at the maximum depth."""
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
        simulations: simulations per tree.
        actions: continuations sampled from a node.
        depth: most steps of an answer; the last one takes all that remains.
        c: weight of the prior in PUCT.
        temperature: sampling temperature of continuations.
        max_new_tokens: most tokens of a continuation.
        delimiters: texts that end a fragment.
        group: fragments per step.
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
        """The config for `tree.search`: a simulation expands one node, and no step is decided on."""
        return SearchConfig(simulations=self.simulations, depth=self.depth, c=self.c, deep=False, decide=False)


class Pieces(Policy):
    """Proposes whole continuations, each cut into a chain of steps, so that branches can start inside an answer.

    Args:
        model: as for `Policy`.
        prompts: as for `Policy`.
        search: how many continuations are sampled from a node, and how they are cut into steps.
        seed: of all draws.
    """

    def __init__(self, model: Model, prompts: Mapping[int, Sequence[int]], search: FragmentSearch, seed: int) -> None:
        super().__init__(model, prompts, seed)
        self.search = search
        self.sampling = SamplingConfig(max_new_tokens=search.max_new_tokens, temperature=search.temperature)

    def propose(self, nodes: list[Node]) -> list[list[list[Step]]]:
        """Chains of steps that may follow each node."""
        drawn = self.sampled(nodes, [self.search.actions] * len(nodes), self.sampling)
        flat = [(node, c) for node, row in zip(nodes, drawn, strict=True) for c in row]
        chains = [self._chain(c.tokens, self.search.depth - node.depth) for node, c in flat]
        prompts = [self.prompt(node) for node, _ in flat]
        rated = iter(steps.with_priors(self.model, prompts, chains, kv_cache=self.kv_cache))
        return [[next(rated) for _ in row] for row in drawn]

    def _chain(self, tokens: tuple[int, ...], room: int) -> list[Step]:
        pieces, size = steps.pieces(self.model.tokenizer, tokens, self.search.delimiters), self.search.group
        groups = [sum(pieces[i : i + size], ()) for i in range(0, len(pieces), size)]
        groups = [*groups[: room - 1], sum(groups[room - 1 :], ())] if len(groups) > room else groups
        ended = tokens[-1] in self.ends
        return [Step(g, terminal=ended and i + 1 == len(groups)) for i, g in enumerate(groups)]
