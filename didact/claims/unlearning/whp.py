"""The claim of whp: a book is forgotten to the level of a model that never read it, and the rest is hardly affected.

Arms on one world (a book about its own people, among texts about others): the method, each ingredient alone, both with
a third of the dictionary missing, raw logits as in the paper, and gradient ascent until it has forgotten as much. The
book is known but not memorized: where the model is certain, reinforcement cannot raise a logit. On seeds 1000 to 1002,
of `GENERAL` 10, 14 and 20 the second gave answer probabilities nearest to .4 (.64, .43, .44); of rates 1e-4, 3e-4 and
1e-3 method and ascent have the one with the least `kl` + `nll` (6.4, 5.2, 5.3; 10.0, 11.0, 11.4). Ordinary words in the
book's sentences may lose .1, a limit between the method's loss (.04, .02, -.06) and that of labels one position off
(1.2, 1.2, .43), set after seeds 0 to 4 had been measured: the claim is tested on new ones, from `FRESH` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from didact import unlearning
from didact.claims import lab, runner
from didact.claims.lab import bound, gate, ratio
from didact.claims.problem import Problem
from didact.claims.unlearning import npo_example
from didact.data import anchors as dictionary
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.evaluate import divergence
from didact.learn.fit import Hook, Step
from didact.models import forward
from didact.models.model import Model
from didact.types import Demo, Fit, Text
from didact.worlds import books

CONTEXT = 64
TEACH = Fit(lr=5e-3, rows=16, schedule="cosine", warmup_steps=20, betas=(0.9, 0.95))
REINFORCE: dict[str, Any] = {"reinforce_lr": 2e-3, "reinforce_epochs": 10.0}  # for an earlier start, 1000 and 1001
UNLEARN = Fit(lr=3e-4, rows=16)  # linear to 0
ASCENT = UNLEARN.replace(lr=1e-4, schedule="constant")
GENERAL = 14  # repetitions of the other texts in training, for one of the book
DROPPED = 3  # every third anchor is missing from the incomplete dictionary
FRESH = 100  # added to every seed, so that the test seeds are new
LENGTH = {"smoke": (40, 5), "quick": (450, 30), "full": (900, 30)}  # steps to train start and gold, to unlearn


def problem(seed: int) -> Problem:
    """The example of `didact run whp`: npo's authors; the dictionary is found by counting."""
    base = npo_example.problem(seed)
    return Problem(
        model=base.model,
        data=base.data,
        options={"reinforce_lr": 3e-4, "reinforce_epochs": 5.0},
        fit={"lr": 5e-4, "steps": 40, "rows": 16, "schedule": "linear"},
        protocol=base.protocol,
    )


def run(seed: int, tier: runner.Tier, arms: Sequence[str] | None = None) -> runner.Measured:
    """Run every arm, or the named ones, on one seed."""
    seed += FRESH
    (train, steps), world = LENGTH[tier], books.books(seed)
    start = trained(seed, train, [*world.target, *world.general * GENERAL])
    gold = trained(seed, train, world.general)
    full: dict[str, Any] = {"anchors": world.anchors}
    partial: dict[str, Any] = {"anchors": [a for i, a in enumerate(world.anchors) if i % DROPPED]}
    no_reinforcement = {"use_reinforcement": False}
    variants = {
        "WHP": full, "anchors only": full | no_reinforcement, "reinforcement only": {"use_anchors": False},
        "WHP, incomplete": partial, "anchors only, incomplete": partial | no_reinforcement,
        "WHP, raw": partial | {"normalise": "raw"},
    }  # fmt: skip
    out = {"start": measures(start, gold, world), "gold": measures(gold, gold, world)}
    for name, options in variants.items():
        if arms is None or name in arms:
            fit = UNLEARN.replace(steps=steps, seed=seed)
            result = unlearning.whp(start, target=world.target, **(REINFORCE | options), fit=fit)
            out[name] = measures(lab.model_of(result), gold, world) | {"changed": result.findings["changed"]}
    if arms is None or "GA" in arms:
        stop = _StopWhenForgotten(start.processor, world.forget, out["WHP"]["forget"])
        texts = [Demo(prompt="", completion=t.text) for t in world.target]
        fit = ASCENT.replace(steps=10 * steps, seed=seed)
        result = unlearning.npo(start, texts, loss="ga", regulariser="none", fit=fit, hooks=[stop])
        out["GA"] = measures(lab.model_of(result), gold, world)
    for name in list(out)[2:]:
        out[name] |= {f"{m}_rise": out[name][m] - out["start"][m] for m in ("nll", "facts", "words")}
    return out


@dataclass
class _StopWhenForgotten(Hook):
    """Stop training once the answers' mean probability is at most `aim`."""

    processor: Any
    demos: Sequence[Demo]
    aim: float

    def after(self, step: Step) -> bool:
        module: Any = step.module
        return probability(Model(module, self.processor), self.demos) <= self.aim


def trained(seed: int, steps: int, texts: Sequence[Text]) -> Model:
    """Train a Llama on texts, or load it from the cache: no sabotage affects this training."""
    pieces = [f" {w}" for w in books.vocabulary()] * 3 + books.vocabulary() * 3 + ["."]
    base = lab.blank("llama", pieces, 1000, d=64, layers=2, heads=4, context=CONTEXT, seed=seed)
    examples, fit = rows(base, texts), TEACH.replace(steps=steps, seed=seed)
    return lab.cached_model(lambda: lab.pretrained(base, examples, fit), *lab.identity(base), examples, fit)


def measures(model: Model, gold: Model, world: books.Books) -> dict[str, float]:
    """Return `forget` and `retain`: mean probability of the true answers, `facts`: nll of the latter, `nll` of held-out
    general text, `kl`: KL(gold || model) on the book's answers, `alias`: probability of a counterpart right after its
    own anchor, `words`: nll of ordinary words in the book's questions."""
    total, count = forward.row_logp(model, rows(model, world.holdout))
    word_logp, word_count = forward.row_logp(model, _question_rows(model, world.ordinary))
    counterparts = {a.source: a.target for a in world.anchors}
    pairs = [(d, counterparts[d.task]) for d in world.forget if d.task in counterparts]
    alias_demos = [Demo(prompt=f"{d.prompt} {d.completion}. Once", completion=name) for d, name in pairs]
    return {
        "forget": probability(model, world.forget),
        "retain": probability(model, world.retain),
        "facts": -float(forward.row_logp(model, _question_rows(model, world.retain))[0].mean()),
        "nll": float(-total.sum() / count.sum()),
        "kl": divergence.mean_kl(gold, model, _question_rows(model, world.forget)),
        "alias": probability(model, alias_demos),
        "words": -float(word_logp.sum() / word_count.sum()),
    }


def probability(model: Model, demos: Sequence[Demo]) -> float:
    """Return the mean probability of the completions."""
    return float(forward.row_logp(model, _question_rows(model, demos))[0].exp().mean())


def rows(model: Model, texts: Sequence[Text]) -> list[TokenizedExample]:
    """Tokenize texts to rows with an end token."""
    return encode.rows(model.tokenizer, [("", t.text) for t in texts], "causal", CONTEXT)


def _question_rows(model: Model, demos: Sequence[Demo]) -> list[TokenizedExample]:
    return [encode.row(model.tokenizer, d.prompt, d.completion, "causal", CONTEXT, end=False) for d in demos]


_blocks = dictionary.blocks  # the original, which the sabotages wrap


def _shifted(*given: Any) -> list[dictionary.Block]:
    blocks = _blocks(*given)
    return [replace(b, to=tuple(min(k + 1, len(b.other.completion) - 1) for k in b.to)) for b in blocks]


def _translated_input(*given: Any) -> list[dictionary.Block]:
    blocks = [replace(b, row=b.other, to=tuple(range(len(b.other.completion)))) for b in _blocks(*given)]
    lengths = [len(b.row.completion) for b in blocks]
    return [replace(b, anchor=(-1,) * n, repeated=(False,) * n, alias=()) for b, n in zip(blocks, lengths, strict=True)]


ONLY = {"arms": ("WHP",)}
BLOCKS, LOGITS = "didact.data.anchors:blocks", "didact.objectives.tokens:generic_logits"

CLAIM = runner.Claim(
    method="whp",
    text=(
        "Fine-tuning on generic labels makes a model forget a book (its answers become improbable, in new sentences "
        "too) at little cost elsewhere, with less damage than gradient ascent that forgets as much. Neither "
        "reinforcement nor the dictionary alone does as well, when a third of the dictionary is missing."
    ),
    run=run,
    gates=(
        gate("there is something to forget", "start.forget", at_least=0.3, unit="probability"),
        gate("gold never learnt it", "gold.forget", at_most=0.1, unit="probability"),
        gate("there is something to keep", "start.retain", at_least=0.6, unit="probability"),
    ),
    tests=(
        ratio("forgets", "WHP.forget", "start.forget", 1 / 5),
        bound("text elsewhere", "WHP.nll_rise", 0.05, less=True),
        bound("everybody's words", "WHP.words_rise", 0.1, less=True),
        bound("facts elsewhere", "WHP.facts_rise", 0.05, less=True),
        ratio("closer to gold than ascent", "WHP.kl", "GA.kl", 1 / 2),
        ratio("cheaper than ascent", "WHP.nll", "GA.nll"),
        ratio("reinforcement alone forgets less", "WHP.forget", "reinforcement only.forget", effect=1.25),
        ratio("with an incomplete dictionary, anchors alone forget less", "WHP, incomplete.forget",
              "anchors only, incomplete.forget", effect=1.25),
        ratio("and on raw logits", "WHP, raw.forget", "anchors only, incomplete.forget", effect=1.25, reported=True),
        ratio("with all anchors, anchors alone forget less", "WHP.forget", "anchors only.forget", reported=True),
        ratio("facts elsewhere, against ascent", "GA.retain", "WHP.retain", reported=True),
    ),
    sabotages=(
        runner.Sabotage("no anchors and alpha 0", "forgets", "WHP.forget",
                        {LOGITS: lambda t, base, *n: base, BLOCKS: lambda t, x, a, *n: _blocks(t, x, {}, *n)}, ONLY),
        runner.Sabotage("translated input", "forgets", "WHP.forget", {BLOCKS: _translated_input}, ONLY),
        runner.Sabotage("alignment off by one", "everybody's words", "WHP.words_rise", {BLOCKS: _shifted}, ONLY),
    ),
)  # fmt: skip
