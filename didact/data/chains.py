"""Chains of hindsight: answers to one prompt in one sequence, each after a phrase that rates it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.data import encode
from didact.data.streams import ExampleGroup
from didact.types import Critique, Preference, Scored, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chain = Literal["p", "n", "pn", "np"]
RANKED = "Of {count} answers, number {rank} from the top:"
COMMENTED = "An answer of which was said: {feedback}\nAnswer:"


class Group(NamedTuple):
    """One prompt and its answers from best to worst, each as (rating from 1 best to 0 worst, phrase, text)."""

    prompt: str
    answers: list[tuple[float, str | None, str]]  # phrase None stands for the good or the bad phrase


@dataclass
class Encoded:
    """Chains as token rows.

    Args:
        items: groups of one row.
        learnt: for each label token of a row, 1 if it is learnt, else 0.
        good: for each label token, whether its answer is not the worst.
        counts: number of chains of each kind, and of those left out as longer than the context.
    """

    items: list[ExampleGroup] = field(default_factory=list)
    learnt: list[Tensor] = field(default_factory=list)
    good: list[Tensor] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def groups(preferences: Sequence[Preference], ratings: Sequence[Scored], critiques: Sequence[Critique]) -> list[Group]:
    """Group answers by prompt, from any kind of feedback."""
    pairs = [Group(p.prompt, [(1.0, None, p.chosen), (0.0, None, p.rejected)]) for p in preferences]
    return [*pairs, *_rated(ratings), *(_commented(c) for c in critiques)]


def chained(group: Group, kind: str, good: str, bad: str) -> tuple[str, list[tuple[str, str]], list[bool]] | None:
    """Build one kind of chain: prompt, (phrase, answer) steps, and whether each answer is not the worst; None if the
    group lacks such answers."""
    phrases = [(good if level == 1 else bad) if words is None else words for level, words, _ in group.answers]
    steps = [(phrase, text) for phrase, (_, _, text) in zip(phrases, group.answers, strict=True)]
    not_worst = [level > 0 for level, _, _ in group.answers]
    if kind in ("p", "n"):
        index = 0 if kind == "p" else -1
        if not_worst[index] != (kind == "p"):
            return None
        return group.prompt, [steps[index]], [not_worst[index]]
    if len(steps) < 2:
        return None
    direction = {"pn": 1, "np": -1}[kind]
    return group.prompt, steps[::direction], not_worst[::direction]


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    context: int,
    groups: Sequence[Group],
    chains: Sequence[str],
    phrases: Sequence[tuple[str, str]],
    last_only: bool = False,
    seed: int = 0,
) -> Encoded:
    """Tokenise every kind of chain of every group.

    Args:
        tokenizer: the model's tokenizer.
        kind: the model's kind, causal or seq2seq.
        context: the model's context length; longer chains are left out.
        groups: see `groups`.
        chains: kinds of chains.
        phrases: pairs of a good and a bad phrase; one pair is drawn per chain.
        last_only: only the last answer of a chain is learnt.
        seed: seed of the draws.

    Raises:
        UserError: no chain is left.
    """
    if (end_id := encode.answer_end(tokenizer)) is None:
        raise UserError("this tokenizer has no end token (eos_token), with which every answer of a chain ends: set one")
    rng = np.random.default_rng([seed, 153])
    out = Encoded(counts=dict.fromkeys([*chains, "left out"], 0))
    for group in groups:
        for name in chains:
            chain = chained(group, name, *phrases[int(rng.integers(len(phrases)))])
            if chain is None:
                continue
            prompt, steps, not_worst = chain
            try:
                row, learnt = encode.chain(tokenizer, prompt, steps, kind, context)
            except UserError:
                out.counts["left out"] += 1
                continue
            # Every answer ends with its end token, so the number of ends before a token is the index of its answer.
            ends = torch.tensor(row.completion).eq(end_id)
            answer = (ends.cumsum(0) - ends.long()).clamp(max=len(steps) - 1)
            mask = torch.tensor(learnt)
            out.items.append((row,))
            out.learnt.append(mask * (answer == len(steps) - 1) if last_only else mask)
            out.good.append(torch.tensor(not_worst)[answer])
            out.counts[name] += 1
    if not out.items:
        raise UserError("no chain fits the model's context, or this feedback gives no chain of these kinds")
    return out


def _rated(ratings: Sequence[Scored]) -> list[Group]:
    """Group rated answers by prompt, best to worst, one per score; a prompt with a single score is left out."""
    by_prompt: dict[str, dict[float, str]] = collections.defaultdict(dict)
    for r in ratings:
        by_prompt[r.prompt].setdefault(r.score, r.completion)
    out = []
    for prompt, scores in by_prompt.items():
        order, last = sorted(scores, reverse=True), len(scores) - 1
        answers = [
            (1 - i / last, None if i in (0, last) else RANKED.format(rank=i + 1, count=len(order)), scores[s])
            for i, s in enumerate(order)
            if last
        ]
        out += [Group(prompt, answers)] if answers else []
    return out


def _commented(c: Critique) -> Group:
    """Use the comment as the answer's phrase; a refinement is the better answer."""
    better: list[tuple[float, str | None, str]] = [(1.0, None, c.refinement)] if c.refinement else []
    return Group(c.prompt, [*better, (0.0, COMMENTED.format(feedback=c.feedback.strip()), c.completion)])
