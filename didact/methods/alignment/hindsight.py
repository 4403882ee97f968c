"""Chain of hindsight: good and bad answers in one sequence, each after words that say which it is."""

from __future__ import annotations

import collections
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from didact.data import encode
from didact.data.streams import ExampleGroup, MicroBatch
from didact.data.templates import Condition
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models import forward, merge, vocabulary
from didact.models.model import Model
from didact.objectives import reduce
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Critique, Fit, Preference, Result, Scored, Text, UserError

KINDS = ("p", "n", "pn", "np")
CONTROL = re.compile(r"<\|[^|]+\|>")
RANKED = "Of {count} answers, number {rank} from the top:"
TOLD = "An answer of which was said: {feedback}\nAnswer:"

PRESETS: dict[str, dict[str, object]] = {
    "conditional-sft": {"chains": ["p", "n"]},
    "sft": {"chains": ["p"], "good": [""], "bad": [""]},
    "sft-unlikelihood": {"chains": ["p", "n"], "good": [""], "bad": [""], "unlikelihood": 1.0},
    "control-tokens": {"good": ["<|good|>"], "bad": ["<|bad|>"]},
    "phrases": {
        "good": ["A helpful answer:", "This answer is of use:", "Here is the better answer:", "Answer this well:"],
        "bad": ["An unhelpful answer:", "This answer is of no use:", "Here is the worse answer:", "Answer this badly:"],
    },
    "official": {"past_masking": [0.0, 0.0], "general_weight": 0.01},  # the defaults of the code
}


class Group(NamedTuple):
    """One prompt, and its answers from best to worst: how good each is (1 best, 0 worst), its words, its text."""

    prompt: str
    answers: list[tuple[float, str | None, str]]  # words are None where they are the good or the bad phrase


@method(
    "hindsight",
    paper="Chain of Hindsight Aligns Language Models with Feedback",
    year=2023,
    source="arXiv:2302.02676",
    gives=("models", "findings"),
    protocol="prefer",
    presets=PRESETS,
)
def hindsight(
    model: Model,
    preferences: Sequence[Preference] | None = None,
    ratings: Sequence[Scored] | None = None,
    critiques: Sequence[Critique] | None = None,
    general: Sequence[Text] | None = None,
    *,
    chains: Sequence[str] = KINDS,
    good: Sequence[str] = ("A helpful answer:",),
    bad: Sequence[str] = ("An unhelpful answer:",),
    loss_on: Literal["all", "last"] = "all",
    unlikelihood: float = 0.0,
    past_masking: tuple[float, float] = (0.0, 0.05),
    general_weight: float = 1.5,
    block: int = 512,
    fit: Fit = Fit(  # noqa: B008  (Fit is frozen)
        lr=2e-5, epochs=1, rows=256, schedule="cosine", warmup=0.2, betas=(0.9, 0.95), weight_decay=1e-4
    ),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Learn from good and bad answers at once, by likelihood alone, and ask for the good kind afterwards.

    Every group of answers to a prompt x becomes a sequence for each kind of chain:

        p   x GOOD y_w </s>                 pn  x GOOD y_w </s> BAD y_l </s>
        n   x BAD y_l </s>                  np  x BAD y_l </s> GOOD y_w </s>

    and the loss is the mean over sequences of the mean of -log p over the tokens of their answers and end tokens:
    neither prompt nor phrases are learnt. The model that comes out is asked with GOOD after every prompt, which its
    folder says (`condition.json`): without it, it answers badly more often than before.

    Comparisons, ratings and comments may be given together. Answers rated are chained from best to worst (or the
    other way), those between the ends called by their rank; of answers rated alike the first is taken. A
    comment stands in the place of BAD, and the refinement, where there is one, after GOOD.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        preferences: pairs.
        ratings: rated answers, those with the same prompt belonging together.
        critiques: answers with a comment, and perhaps a refinement.
        general: text for ordinary language modelling beside, so that nothing else is lost.
        chains: kinds of sequences made of every group.
        good: GOOD; of several one is drawn for a chain, with its `bad`. The first is asked with. A phrase like
            `<|good|>` becomes a token of its own.
        bad: BAD, one for each of `good`.
        loss_on: all answers of a chain, or its last.
        unlikelihood: where above 0, the worst answers are unlearnt, -log(1 - p) with this weight, not learnt.
        past_masking: range of the share of past tokens hidden at random from each token, so that the second answer is
            not copied from the first.
        general_weight: weight of the loss on `general`.
        block: label tokens of its rows.
        fit: how to train; rows are chains.
        hooks: called around every step.

    Returns:
        The model, with its `condition`; findings: chains of each kind, and those too long that were left out.

    Raises:
        UserError: no feedback; an option out of range; the loss became NaN.
    """
    kinds = list(dict.fromkeys(chains))
    if not kinds or not set(kinds) <= set(KINDS):
        raise UserError(f"chains {', '.join(kinds) or 'none'}: choose from {', '.join(KINDS)}")
    if not good or len(good) != len(bad):
        raise UserError(f"{len(good)} good phrases and {len(bad)} bad ones: every good one needs its bad one")
    low, high = past_masking
    if not 0 <= low <= high <= 1 or unlikelihood < 0 or general_weight < 0 or block < 2:
        raise UserError("hindsight needs past_masking in [0, 1], unlikelihood and general_weight of 0 or more, block 2")
    groups = [*_compared(preferences or ()), *_rated(ratings or ()), *_told(critiques or ())]
    if not groups:
        raise UserError("no feedback: give preferences, ratings (of which two differ for a prompt) or critiques")
    control = list(dict.fromkeys(p for p in (*good, *bad) if CONTROL.fullmatch(p)))
    start = vocabulary.with_tokens(model, control, seed=fit.seed) if control else model
    items, masks, goods, counts = _encoded(start, groups, kinds, good, bad, loss_on, fit.seed)
    streams: dict[str, Sequence[ExampleGroup]] = {"feedback": items}
    if general:
        length = min(block, model.context)
        streams["general"] = language.single(encode.windows(start.tokenizer, [t.text for t in general], length))
    warnings = [f"{counts['left out']} chains are longer than the context and were left out"] * bool(counts["left out"])
    if high and not forward.takes_trees(start):
        warnings.append("past tokens are not masked: this type of model takes no mask of ours")
        low = high = 0.0
    fns: dict[str, Any] = {"loss": _nll}
    if unlikelihood:
        fns = {"loss": functools.partial(token_functions.unlikelihood, alpha=unlikelihood)}

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream == "general":
            return {"general": language.cross_entropy(student, micro, weight=general_weight)}
        columns = {"good": micro.column(goods)} if unlikelihood else {}
        loss = forward.tokens(student, micro.tokens, fns, columns, hide=(low, high))["loss"]
        return {"hindsight": Term(mean_of_learnt(loss, micro.column(masks), micro).sum(), "feedback.rows")}

    told = {
        "chains": kinds, "unlikelihood": unlikelihood, "past_masking": [low, high], "general_weight": general_weight,
        "learnt": hashlib.sha256(repr([m.tolist() for m in masks]).encode()).hexdigest()[:16],
    }  # fmt: skip
    taught = language.train(start, streams, terms, fit, hooks=hooks, name="hindsight", identity=told)
    made = merge.merged(taught.model) if fit.lora and control else taught.model
    made.condition = Condition(after=good[0], banned=tuple(control)) if good[0] else None
    return Result(
        models={"model": made}, findings={"groups": len(groups), "chains": counts, "asked_with": good[0]},
        history=taught.history, cost=taught.cost, warnings=warnings,
    )  # fmt: skip


def mean_of_learnt(loss: torch.Tensor, learnt: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
    """Mean of each row's losses `(N,)` over the tokens it is to learn, `(rows,)`."""
    rows, row = micro.items * micro.arity, micro.tokens.row
    return reduce.row_sum(learnt * loss, row, rows) / reduce.row_sum(learnt, row, rows).clamp(min=1e-10)


def chained(group: Group, kind: str, good: str, bad: str) -> tuple[str, list[tuple[str, str]], list[bool]] | None:
    """A group as one kind of chain: prompt, phrases with answers, and which of them are not the worst; None where it
    has no such answers."""
    words = [(good if level == 1 else bad) if told is None else told for level, told, _ in group.answers]
    steps = [(w, text) for w, (_, _, text) in zip(words, group.answers, strict=True)]
    fine = [level > 0 for level, _, _ in group.answers]
    if kind in ("p", "n"):
        at = 0 if kind == "p" else -1
        if fine[at] != (kind == "p"):
            return None
        return group.prompt, [steps[at]], [fine[at]]
    if len(steps) < 2:
        return None
    turn = 1 if kind == "pn" else -1
    return group.prompt, steps[::turn], fine[::turn]


def _nll(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -token_functions.logp(logits, target)


def _compared(preferences: Sequence[Preference]) -> list[Group]:
    return [Group(p.prompt, [(1.0, None, p.chosen), (0.0, None, p.rejected)]) for p in preferences]


def _rated(ratings: Sequence[Scored]) -> list[Group]:
    """Answers of a prompt from best to worst, one of each score; a prompt whose answers are all alike gives nothing."""
    of: dict[str, dict[float, str]] = collections.defaultdict(dict)
    for r in ratings:
        of[r.prompt].setdefault(r.score, r.completion)
    out = []
    for prompt, scores in of.items():
        order, last = sorted(scores, reverse=True), len(scores) - 1
        answers = [
            (1 - i / last, None if i in (0, last) else RANKED.format(rank=i + 1, count=len(order)), scores[s])
            for i, s in enumerate(order)
            if last
        ]
        out += [Group(prompt, answers)] if answers else []
    return out


def _told(critiques: Sequence[Critique]) -> list[Group]:
    """The comment says what the answer is; a refinement is the better one."""
    out = []
    for c in critiques:
        better: list[tuple[float, str | None, str]] = [(1.0, None, c.refinement)] if c.refinement else []
        out.append(Group(c.prompt, [*better, (0.0, TOLD.format(feedback=c.feedback.strip()), c.completion)]))
    return out


def _encoded(
    model: Model, groups: Sequence[Group], kinds: Sequence[str], good: Sequence[str], bad: Sequence[str],
    loss_on: str, seed: int,
) -> tuple[list[ExampleGroup], list[torch.Tensor], list[torch.Tensor], dict[str, int]]:  # fmt: skip
    """Chains as rows; for each label token whether it is learnt, and whether its answer is a good one."""
    draw = np.random.default_rng([seed, 153])
    items: list[ExampleGroup] = []
    masks, goods = [], []
    counts = dict.fromkeys([*kinds, "left out"], 0)
    for group in groups:
        for kind in kinds:
            which = int(draw.integers(len(good)))
            made = chained(group, kind, good[which], bad[which])
            if made is None:
                continue
            prompt, steps, fine = made
            try:
                row, learnt = encode.chain(model.tokenizer, prompt, steps, model.kind, model.context)
            except UserError:
                counts["left out"] += 1
                continue
            mask = torch.tensor(learnt)
            # Answers come one after the other, each ended by its end token, so the count of ends says whose it is.
            ends = torch.tensor(row.completion) == model.tokenizer.eos_token_id
            number = (ends.cumsum(0) - ends.long()).clamp(max=len(steps) - 1)
            if loss_on == "last":
                mask = mask * (number == len(steps) - 1)
            items.append((row,))
            masks.append(mask)
            goods.append(torch.tensor(fine)[number])
            counts[kind] += 1
    if not items:
        raise UserError("no chain fits the model's context, or none of these kinds can be made of this feedback")
    return items, masks, goods, counts
