"""Unlearning by optimisation: the survey's first class, as far as `npo` and its presets are not it already.

Gradient ascent with its stop rule (KUL), ascent with random answers (LLMU), divergence in an adapter (EUL), alignment
of knowledge gaps (KGA), and neurons switched off (DEPN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch, collate
from didact.infer import generate
from didact.learn import language
from didact.learn.fit import Hook, Step, Term
from didact.methods.unlearning.survey_merge import SURVEY, tuned_on
from didact.models import forward
from didact.models.model import Model, copy_of, frozen
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

UNLEARN = Fit(lr=5e-5, epochs=10, rows=8, schedule="constant")


# --- KUL ------------------------------------------------------------------------------------------


@method("unlearning-survey.kul", **SURVEY, gives=("models", "findings"), protocol="forget")
def kul(
    model: Model,
    forget: Sequence[Demo],
    unseen: Sequence[Demo] | None = None,
    *,
    chunk: int = 8,
    n: int = 10,
    every: int = 1,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Gradient ascent, a few records at a time, until they are no better known than unseen text (KUL).

        L = mean log p(x_t | x_<t),   stop when EL_n and MA of every record are below their means on `unseen`

    MA is the share of tokens that are the first choice; EL_n how many n-grams of what the model says next, from
    every beginning of the text, are in what truly follows.

    Args:
        model: a causal model; it stays as it was.
        forget: records whose completions must go.
        unseen: records of the same kind no model saw, for the stop rule; without them ascent runs to its end.
        chunk: records forgotten together, one chunk after another; 0 takes all at once.
        n: of EL.
        every: epochs between two looks at the stop rule.
        fit: how to ascend on one chunk, at most.
        hooks: called around every step.

    Raises:
        UserError: a model that is not causal; the loss became NaN.
    """
    if model.kind != "causal":
        raise UserError("EL reads what the model says next from every beginning: a causal model is needed")
    rows = _rows(model, forget, "forget")
    limits = None
    if unseen:
        known = [memorised(model, r, n) for r in _rows(model, unseen, "unseen")]
        limits = (float(np.mean([k.el for k in known])), float(np.mean([k.ma for k in known])))
    now, tokens, flops = model, 0, 0.0
    history: list[dict[str, Any]] = []
    size = chunk or len(rows)
    stopped = []
    for number, at in enumerate(range(0, len(rows), size)):
        part = rows[at : at + size]
        rule = [_Threshold(now, part, n, limits, every * max(1, len(part) // fit.rows))] if limits else []
        how = fit.replace(rows=min(fit.rows, len(part)))
        done = language.train(
            now, {"forget": language.single(part)}, _ascent, how, hooks=[*hooks, *rule], name=f"kul-{number}",
            identity={"kul": limits, "n": n},
        )  # fmt: skip
        now, history = done.model, history + done.history
        tokens, flops = tokens + done.cost.tokens, flops + done.cost.flops
        stopped.append(len(done.history))
    left = [memorised(now, r, n) for r in rows]
    findings = {
        "el": float(np.mean([k.el for k in left])), "ma": float(np.mean([k.ma for k in left])),
        "threshold": limits, "steps": stopped,
    }  # fmt: skip
    result = Result(models={"model": now}, history=history, findings=findings)
    result.cost.tokens, result.cost.flops = tokens, flops
    if not unseen:
        result.warnings.append("no unseen records: ascent has no stop rule, and its end is decided by the steps")
    return result


@dataclass(frozen=True)
class Memorised:
    """How well a text is known by heart: EL_n and MA."""

    el: float
    ma: float


def overlap(a: Sequence[int], b: Sequence[int], n: int) -> float:
    """Share of the n-grams of `a` that are n-grams of `b`; 0 where `a` has none."""
    ours = [tuple(a[i : i + n]) for i in range(len(a) - n + 1)]
    theirs = {tuple(b[i : i + n]) for i in range(len(b) - n + 1)}
    return sum(g in theirs for g in ours) / len(ours) if ours else 0.0


def memorised(model: Model, row: TokenizedExample, n: int = 10) -> Memorised:
    """EL_n and MA of a row's completion; an n longer than it is cut to it.

    Continuations are the model's own, generated freely from every beginning, as long as what truly follows.
    """
    text = row.completion
    size = min(n, len(text))
    starts = range(len(text) - size + 1)
    prompts = [row.prompt + text[:t] for t in starts]
    made = generate.completions(model, prompts, 1, generate.SamplingConfig(max_new_tokens=len(text)))
    el = [overlap(c.tokens[: len(text) - t], text[t:], size) for t, (c,) in zip(starts, made, strict=True)]
    right = torch.cat([v["c"] for _, _, v in forward.score(model, [row], {"c": token_functions.correct})])
    return Memorised(float(np.mean(el)), float(right.mean()))


class _Threshold(Hook):
    """Stops once every row is at or below both limits."""

    def __init__(
        self, model: Model, rows: Sequence[TokenizedExample], n: int, limits: tuple[float, float], every: int
    ) -> None:
        self.model, self.rows, self.n, self.limits, self.every = model, rows, n, limits, max(1, every)

    def after(self, step: Step) -> bool:
        """Look at the module in training."""
        if (step.step + 1) % self.every:
            return False
        module: Any = step.module
        now = Model(module, self.model.processor, self.model.kind)
        found = [memorised(now, r, self.n) for r in self.rows]
        return all(k.el <= self.limits[0] and k.ma <= self.limits[1] for k in found)


# --- LLMU -----------------------------------------------------------------------------------------


@method("unlearning-survey.llmu", **SURVEY, protocol="forget")
def llmu(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    ascent: float = 0.5,
    mismatch: float = 1.0,
    keep: float = 1.0,
    answers: int = 1,
    cap: float = 100.0,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Ascend on the forget answers, learn random answers in their place, stay near the start elsewhere (LLMU).

        L = -ascent CE(forget) + mismatch CE(forget prompt -> an answer of retain) + keep KL(start || model) on retain

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: normal records: their answers are the random ones, and on them the model must not move.
        ascent: e1, of the forget loss.
        mismatch: e2, of the random answers.
        keep: e3, of the divergence.
        answers: random answers for every forget record.
        cap: training stops once the forget loss, in nats a token, is above.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    draw = np.random.default_rng([fit.seed, 2310])
    others = [[retain[i].completion for i in draw.integers(len(retain), size=answers)] for _ in forget]
    columns = [[(d.prompt, d.completion) for d in forget]]
    columns += [[(d.prompt, o[k]) for d, o in zip(forget, others, strict=True)] for k in range(answers)]
    rows = [encode.rows(model.tokenizer, c, model.kind, model.context, "forget") for c in columns]
    items: list[ExampleGroup] = list(zip(*rows, strict=True))
    label_tokens = sum(len(r.completion) for item in items for r in item)
    true_share = sum(len(item[0].completion) for item in items) / label_tokens

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream == "retain":
            return {"keep": language.token_mean(student, micro, token_functions.kl_from, keep, model, everywhere=True)}
        logp = forward.tokens(student, micro.tokens)["logp"]
        true_ = (micro.tokens.row % micro.arity == 0).to(logp)
        # Both means are over tokens of their own, which are constant shares of the stream's.
        return {
            "forget": Term(-(logp * true_).sum() / true_share, "forget.tokens", -ascent),
            "mismatch": Term(-(logp * (1 - true_)).sum() / max(1 - true_share, 1e-9), "forget.tokens", mismatch),
        }

    streams = {"forget": items, "retain": language.single(_rows(model, retain, "retain"))}
    who = {"llmu": [ascent, mismatch, keep, answers]}
    done = language.train(model, streams, terms, fit, hooks=[*hooks, _Cap(cap)], name="llmu", identity=who)
    return Result(models={"model": done.model}, history=done.history, cost=done.cost)


class _Cap(Hook):
    """Stops once the forget loss is above the cap."""

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def after(self, step: Step) -> bool:
        """Look at the step's log."""
        return bool(step.log["forget"] > self.cap)


# --- EUL ------------------------------------------------------------------------------------------


@method("unlearning-survey.eul", **SURVEY, protocol="forget")
def eul(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    diverge: float = 1.0,
    keep: float = 1.0,
    task: float = 1.0,
    ascent: float = 0.1,
    fit: Fit = Fit(lr=5e-4, epochs=10, rows=8, schedule="constant", lora=8),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train only an adapter: like the start on retain, unlike it on forget (EUL).

        L = keep KL(start || model) + task CE on retain - diverge KL(start || model) - ascent CE on forget

    The paper inserts bottlenecks after each feed-forward layer; here the adapter is LoRA on every linear layer, which
    can be merged. Adapters of several requests fuse by `models.merge.regmean`.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: records whose completions must stay.
        diverge: of the divergence on forget.
        keep: alpha, of the divergence on retain.
        task: lambda, of the loss on retain.
        ascent: gamma, of the ascent on forget.
        fit: how to train; `lora` is the adapter's rank, 0 trains all weights.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        away, loss = (-diverge, -ascent) if micro.stream == "forget" else (keep, task)
        kl = language.token_mean(student, micro, token_functions.kl_from, away, model)
        nll = language.cross_entropy(student, micro, weight=loss)
        return {f"{micro.stream}_kl": kl, f"{micro.stream}_nll": nll}

    streams = {name: language.single(_rows(model, d, name)) for name, d in (("forget", forget), ("retain", retain))}
    who = {"eul": [diverge, keep, task, ascent]}
    done = language.train(model, streams, terms, fit, hooks=hooks, name="eul", identity=who)
    return Result(models={"model": done.model}, history=done.history, cost=done.cost)


# --- KGA ------------------------------------------------------------------------------------------


@method("unlearning-survey.kga", **SURVEY, gives=("models", "findings"), protocol="forget")
def kga(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    unseen: Sequence[Demo],
    *,
    keep: float = 0.1,
    stop: float = 0.3,
    specialist_epochs: float = 10.0,
    specialist_lr: float = 5e-5,
    align: bool = True,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make forgotten records look as far from a specialist as unseen ones do (knowledge gap alignment).

        gap_new = mean on unseen of KL(start || A_unseen),   gap = mean on forget of KL(model || A_forget)
        L = |gap - gap_new| + keep KL(start || model) on retain,   until |gap - gap_new| < stop gap_new

    A_forget and A_unseen are the start model tuned on those records.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: records whose completions must stay.
        unseen: records of the same kind no model saw.
        keep: alpha, of the divergence on retain.
        stop: training ends once the gap is this close, as a share of gap_new.
        specialist_epochs: passes of each specialist over its records.
        specialist_lr: its learning rate.
        align: whether the new data's gap is the aim; else KL(model || A_forget) is only made large (a control).
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    how = fit.replace(lr=specialist_lr, epochs=specialist_epochs, steps=None)
    on_forget = tuned_on(model, forget, how, (), "specialist-forget")
    on_new = tuned_on(model, unseen, how, (), "specialist-unseen")
    aim = divergence(model, on_new.model, _rows(model, unseen, "unseen"))
    specialist = frozen(on_forget.model)

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream == "retain":
            return {"keep": language.token_mean(student, micro, token_functions.kl_from, keep, model)}
        gap = language.token_mean(student, micro, token_functions.kl_to, reference=specialist)
        count = len(micro.tokens.target)
        if not align:
            return {"gap": gap._replace(weight=-1.0)}
        # Coupled: the whole stream is here, so this mean is the batch's.
        off = (gap.sum / count - aim).abs()
        return {"align": Term(off * micro.items, "forget.rows"), "gap": gap._replace(weight=0.0)}

    streams = {name: language.single(_rows(model, d, name)) for name, d in (("forget", forget), ("retain", retain))}
    rule = _Aligned(stop * aim) if align else None
    done = language.train(
        model, streams, terms, fit, coupled=True, hooks=[*hooks, *([rule] if rule else [])], name="kga",
        identity={"kga": [keep, stop, align]},
    )  # fmt: skip
    result = Result(models={"model": done.model}, history=done.history, cost=done.cost)
    gap = divergence(done.model, specialist, _rows(model, forget, "forget"))
    result.findings = {"gap": gap, "gap_unseen": aim}
    for other in (on_forget, on_new):
        result.cost.tokens += other.cost.tokens
        result.cost.flops += other.cost.flops
    return result


def divergence(model: Model, other: Model, rows: Sequence[TokenizedExample]) -> float:
    """Mean KL(model || other) over label tokens, in nats."""
    total, count = 0.0, 0
    for at in range(0, len(rows), 32):
        batch = collate(rows[at : at + 32], model.kind, model.pad, model.start).to(model.device)
        with torch.no_grad():
            against = (other, forward.label_states(other, batch))
            kl = forward.tokens(model, batch, {"kl": token_functions.kl_to}, reference=against)["kl"]
        total, count = total + float(kl.sum()), count + len(kl)
    return total / count


class _Aligned(Hook):
    """Stops once the gaps differ by less than `close`."""

    def __init__(self, close: float) -> None:
        self.close = close

    def after(self, step: Step) -> bool:
        """Look at the step's log."""
        return bool(step.log["align"] < self.close)


# --- DEPN -----------------------------------------------------------------------------------------


@method("unlearning-survey.depn", **SURVEY, gives=("models", "findings"), protocol="forget", capabilities=("hidden",))
def depn(
    model: Model,
    forget: Sequence[Demo],
    *,
    neurons: int = 20,
    steps: int = 20,
    threshold: float = 0.1,
    share: float = 0.5,
) -> Result:
    """Find the feed-forward neurons that carry the forget answers, and switch them off (DEPN). Nothing is trained.

        Att(w) = w/m sum_{k=1..m} dP(answer | activation w k/m)/dw

    for the activation w of every neuron (what the down projection reads), P the mean probability of the answer's
    tokens. A neuron counts for a record if its attribution is above `threshold` of that record's largest; the
    `neurons` that count most often (in at least `share` of the records, ties by sum) get a zero column.

    Args:
        model: a causal model with a down projection in every block; it stays as it was.
        forget: records whose completions must go.
        neurons: how many are switched off at most.
        steps: m, of the integral.
        threshold: share of a record's largest attribution.
        share: of the records a neuron must count for.

    Raises:
        UserError: no down projection is found.
    """
    if steps < 1 or neurons < 0:
        raise UserError("steps must be at least 1, neurons 0 or more")
    taught = copy_of(model)
    found = torch.stack([_attributed(taught, row, steps) for row in _rows(model, forget, "forget")])
    top = found.flatten(1).amax(1).clamp(min=torch.finfo(found.dtype).tiny)
    counts = (found > threshold * top[:, None, None]).double().mean(0)
    order = (counts + 1e-3 * torch.sigmoid(found.mean(0).double())).flatten().argsort(descending=True)
    width = found.shape[-1]
    chosen = [(int(i) // width, int(i) % width) for i in order[:neurons] if counts.flatten()[i] >= share]
    with torch.no_grad():
        for layer, neuron in chosen:
            down = downs(taught)[layer]
            # GPT-2's Conv1D holds its weight the other way round.
            (down.weight[:, neuron] if isinstance(down, nn.Linear) else down.weight[neuron]).zero_()
    taught.module.zero_grad(set_to_none=True)
    return Result(models={"model": taught}, findings={"neurons": [list(c) for c in chosen], "records": len(forget)})


def downs(model: Model) -> list[Any]:
    """The down projection of every block, in order: what feed-forward activations go through.

    Raises:
        UserError: there is none of a known name.
    """
    names = ("down_proj", "mlp.c_proj", "fc2", "dense_4h_to_h")
    found = [m for n, m in model.module.named_modules() if n.endswith(names) and hasattr(m, "weight")]
    if not found:
        raise UserError("no feed-forward down projection (down_proj, mlp.c_proj, fc2, dense_4h_to_h) in this model")
    return found


def attribution(probability: Any, activation: Tensor, steps: int) -> Tensor:
    """Integrated gradients `w/m sum_k dP(w k/m)/dw`, of `probability(w) -> ()`, the same shape as `activation`."""
    total = torch.zeros_like(activation)
    for k in range(1, steps + 1):
        w = (activation * (k / steps)).detach().requires_grad_()
        (grad,) = torch.autograd.grad(probability(w), w)
        total += grad
    return activation / steps * total


def _attributed(model: Model, row: TokenizedExample, steps: int) -> Tensor:
    """Attribution of every neuron of every block to one answer, `(blocks, width)`, summed over positions."""
    batch = collate([row], model.kind, model.pad, model.start).to(model.device)
    kept: dict[int, Tensor] = {}

    def probability() -> Tensor:
        return forward.tokens(model, batch)["logp"].exp().mean()

    layers = downs(model)
    handles = [
        d.register_forward_pre_hook(lambda m, given, i=i: kept.__setitem__(i, given[0].detach()))
        for i, d in enumerate(layers)
    ]
    with torch.no_grad():
        probability()
    for handle in handles:
        handle.remove()
    out = []
    for i, layer in enumerate(layers):

        def at(w: Tensor, layer: Any = layer) -> Tensor:
            handle = layer.register_forward_pre_hook(lambda m, given: (w, *given[1:]))
            try:
                return probability()
            finally:
                handle.remove()

        out.append(attribution(at, kept[i], steps).flatten(0, -2).sum(0))
    return torch.stack(out)


# --- shared ---------------------------------------------------------------------------------------


def _ascent(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"forget": language.cross_entropy(student, micro, weight=-1.0)}


def _rows(model: Model, demos: Sequence[Demo], name: str) -> list[TokenizedExample]:
    return encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context, name)
