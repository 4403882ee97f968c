"""Chain of hindsight: good and bad answers in one sequence, each after a phrase that says which it is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from didact.bounds import NonNegative, Share
from didact.data import chains as feedback_chains
from didact.data import encode
from didact.data.chains import Chain
from didact.data.streams import ExampleGroup, MicroBatch
from didact.data.templates import Condition
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models import adapters, forward, vocabulary
from didact.models.model import Model
from didact.objectives import reduce
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Critique, Fit, Preference, Result, Scored, Text, UserError

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
CONTROL = re.compile(r"<\|[^|]+\|>")


@method(
    "hindsight",
    paper="Chain of Hindsight Aligns Language Models with Feedback",
    year=2023,
    source="arXiv:2302.02676",
    gives=("models", "findings"),
    protocol=("prefer",),
    presets=PRESETS,
)
def hindsight(
    model: Model,
    preferences: Sequence[Preference] | None = None,
    ratings: Sequence[Scored] | None = None,
    critiques: Sequence[Critique] | None = None,
    general: Sequence[Text] | None = None,
    *,
    chains: Annotated[Sequence[Chain], MinLen(1)] = ("p", "n", "pn", "np"),
    good: Annotated[Sequence[str], MinLen(1)] = ("A helpful answer:",),
    bad: Annotated[Sequence[str], MinLen(1)] = ("An unhelpful answer:",),
    loss_on: Literal["all", "last"] = "all",
    unlikelihood: NonNegative = 0.0,
    past_masking: tuple[Share, Share] = (0.0, 0.05),
    general_weight: NonNegative = 1.5,
    block: Annotated[int, Ge(2)] = 512,
    fit: Fit = Fit(lr=2e-5, epochs=1, rows=256, schedule="cosine", warmup=0.2, betas=(0.9, 0.95), weight_decay=1e-4),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train on good and bad answers by likelihood, each after a phrase that rates it, then prompt for good ones.

    Every group of answers to a prompt x becomes one sequence per kind of chain:

        p   x GOOD y_w </s>                 pn  x GOOD y_w </s> BAD y_l </s>
        n   x BAD y_l </s>                  np  x BAD y_l </s> GOOD y_w </s>

    and the loss is the mean over sequences of the mean of -log p over the tokens of their answers and end tokens:
    prompt and phrases carry no loss. The trained model is prompted with GOOD after every prompt, which its folder says
    (`condition.json`): without it, the model gives bad answers more often than before.

    Comparisons, ratings and comments can be combined. Rated answers are chained from best to worst (or the reverse),
    those in between introduced by their rank; of equally rated answers only the first is used. A comment takes the
    place of BAD, and the refinement, if there is one, follows GOOD.

    Args:
        model: a causal or seq2seq model; left unchanged.
        preferences: pairs of answers.
        ratings: rated answers; those with the same prompt form a group.
        critiques: answers with a comment, and optionally a refinement.
        general: text for ordinary language modelling in the same steps, so that nothing else is lost.
        chains: kinds of sequences made from every group.
        good: GOOD phrases; of several, one is drawn per chain, with its `bad`. The first one is used in prompts. A
            phrase like `<|good|>` becomes a token of its own.
        bad: BAD phrases, one for each of `good`.
        loss_on: all answers of a chain, or its last.
        unlikelihood: if above 0, the loss of the worst answers is -log(1 - p) with this weight, not -log p.
        past_masking: range of the share of past tokens hidden at random from each token, so that the second answer is
            not copied from the first.
        general_weight: weight of the loss on `general`.
        block: label tokens per row of `general`.
        fit: how to train; rows are chains.
        hooks: called around every step.

    Returns:
        The model, with its `condition`; findings: number of chains of each kind, and of those left out as too long.

    Raises:
        UserError: no feedback; numbers of `good` and `bad` differ; no chain fits the context; the loss became NaN.
    """
    if len(good) != len(bad):
        raise UserError(f"{len(good)} good phrases and {len(bad)} bad ones: every good one needs its bad one")
    low, high = past_masking
    if low > high:
        raise UserError(f"past_masking = {low} {high}: the lower end of the range comes first")
    groups = feedback_chains.groups(preferences or (), ratings or (), critiques or ())
    if not groups:
        raise UserError("no feedback: give preferences, ratings (of which two differ for a prompt) or critiques")
    control = list(dict.fromkeys(p for p in (*good, *bad) if CONTROL.fullmatch(p)))
    start = vocabulary.with_tokens(model, control, seed=fit.seed) if control else model
    rows = feedback_chains.encoded(
        start.tokenizer, start.kind, start.context, groups, list(dict.fromkeys(chains)),
        list(zip(good, bad, strict=True)), loss_on == "last", fit.seed,
    )  # fmt: skip
    streams: dict[str, Sequence[ExampleGroup]] = {"feedback": rows.items}
    if general:
        length = min(block, model.context)
        streams["general"] = language.single(encode.windows(start.tokenizer, [t.text for t in general], length))
    left_out = rows.counts["left out"]
    warnings = [f"{left_out} chains are longer than the context and were left out"] if left_out else []
    if high and not forward.supports_tree_masks(start):
        warnings.append("past tokens are not masked: this type of model takes no mask of ours")
        low = high = 0.0
    token_losses = {"loss": functools.partial(token_functions.unlikelihood, alpha=unlikelihood)}

    def on_chains(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if unlikelihood:
            columns = {"good": micro.column(rows.good)}
            loss = forward.tokens(student, micro.tokens, token_losses, columns, hide=(low, high))["loss"]
        else:
            loss = -forward.tokens(student, micro.tokens, hide=(low, high))["logp"]
        means = reduce.masked_row_mean(loss, micro.column(rows.learnt), micro.tokens.row, micro.items)
        return {"hindsight": Term(means.sum(), "feedback.rows")}

    def on_general(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        return {"general": language.cross_entropy(student, micro, weight=general_weight)}

    losses = {"feedback": on_chains, "general": on_general}
    trained = language.train(start, streams, losses, fit, hooks=hooks, name="hindsight")
    final = adapters.merged(trained.model) if fit.lora and control else trained.model
    final.condition = Condition(after=good[0], banned=tuple(control)) if good[0] else None
    findings = {"groups": len(groups), "chains": rows.counts, "asked_with": good[0]}
    return trained.result(models={"model": final}, findings=findings, warnings=warnings)
