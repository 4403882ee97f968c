"""The claim of whp: a book is forgotten to the level of a model that never read it, and the rest is hardly touched.

Arms on one world (a book about people of its own among texts about others): the method, each of its two ingredients
alone, both with a third of the dictionary missing, and gradient ascent stopped where the method's forgetting ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from didact import unlearning
from didact.claims import runner, verdict
from didact.claims.problem import Problem
from didact.data import anchors as dictionary
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.evaluate import divergence
from didact.learn import episodes, language
from didact.learn.fit import Hook, Step, Term
from didact.models import build, forward
from didact.models.model import Model
from didact.objectives import tokens
from didact.types import Demo, Fit, Text
from didact.worlds import books

CONTEXT = 64
TEACH = Fit(lr=5e-3, rows=16, schedule="cosine", warmup_steps=20, betas=(0.9, 0.95))
REINFORCE = {"reinforce_lr": 2e-3, "reinforce_epochs": 10.0}
UNLEARN = Fit(lr=3e-4, rows=16)  # linear to 0; found on seeds 1000 and 1001, as REINFORCE
GENERAL = 4  # how often other texts are read for each time the book is: knowledge of it is then likely, not certain
DROPPED = 3  # every third anchor is missing from the incomplete dictionary


@dataclass(frozen=True)
class Length:
    """Steps of a tier: to train the start and gold models, and to unlearn."""

    train: int
    unlearn: int


LENGTH = {"smoke": Length(40, 5), "quick": Length(450, 30), "full": Length(900, 30)}


def problem(seed: int) -> Problem:
    """What `didact run whp` teaches when given no model and data: npo's authors, the dictionary found by counting."""
    from didact.claims.unlearning import npo_example

    given = npo_example.problem(seed)
    return Problem(
        model=given.model,
        data=given.data,
        options={"reinforce_lr": 3e-4, "reinforce_epochs": 5.0},
        fit={"lr": 5e-4, "steps": 40, "rows": 16, "schedule": "linear"},
        protocol=given.protocol,
    )


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, arms: Sequence[str] | None = None) -> runner.Measured:
    """Every arm, or those named, on one seed."""
    length, world = LENGTH[tier], books.books(seed)
    start, gold = start_and_gold(seed, length.train)
    known = [a for i, a in enumerate(world.anchors) if i % DROPPED]
    options: dict[str, dict[str, Any]] = {
        "WHP": {"anchors": world.anchors},
        "anchors only": {"anchors": world.anchors, "use_reinforcement": False},
        "reinforcement only": {"use_anchors": False},
        "WHP, incomplete": {"anchors": known},
        "anchors only, incomplete": {"anchors": known, "use_reinforcement": False},
    }
    out = {"start": measures(start, gold, world), "gold": measures(gold, gold, world)}
    for name, told in options.items():
        if arms is None or name in arms:
            fit = UNLEARN.replace(steps=length.unlearn, seed=seed)
            result = unlearning.whp(start, target=world.target, **{**REINFORCE, **told}, fit=fit)
            out[name] = measures(taught(result), gold, world)
            out[name]["nll_rise"] = out[name]["nll"] - out["start"]["nll"]
            out[name]["changed"] = result.findings["changed"]
    if arms is None or "GA" in arms:
        rule = Forgotten(start, world.forget, out["WHP"]["forget"])
        texts = [Demo(prompt="", completion=t.text) for t in world.target]
        fit = UNLEARN.replace(steps=10 * length.unlearn, seed=seed, schedule="constant")
        result = unlearning.npo(start, texts, loss="ga", regulariser="none", fit=fit, hooks=[rule])
        out["GA"] = measures(taught(result), gold, world)
        out["GA"]["nll_rise"] = out["GA"]["nll"] - out["start"]["nll"]
    return out


class Forgotten(Hook):
    """Stops once the answers are no likelier than the aim."""

    def __init__(self, model: Model, demos: Sequence[Demo], aim: float) -> None:
        self.model, self.demos, self.aim = model, demos, aim

    def after(self, step: Step) -> bool:
        """Look at the model in training."""
        module: Any = step.module
        return told(Model(module, self.model.processor), self.demos) <= self.aim


@functools.lru_cache(maxsize=64)
def start_and_gold(seed: int, steps: int) -> tuple[Model, Model]:
    """Trained on everything, and on all but the book: shared by the sabotages, none of which touches this training."""
    world = books.books(seed)
    pieces = [f" {w}" for w in books.vocabulary()] * 3 + books.vocabulary() * 3 + ["."]
    base = build.build(
        "llama", build.train_tokenizer(pieces, 1000), d=64, layers=2, heads=4, context=CONTEXT, seed=seed
    )

    def teach(texts: Sequence[Text]) -> Model:
        def reading(student: Model, micro: MicroBatch) -> dict[str, Term]:
            return {"nll": language.cross_entropy(student, micro)}

        fit = TEACH.replace(steps=steps, seed=seed)
        return language.train(base, {"texts": language.single(rows(base, texts))}, reading, fit, quiet=True).model

    return teach([*world.target, *world.general * GENERAL]), teach(world.general)


def measures(model: Model, gold: Model, world: books.Books) -> dict[str, float]:
    """`forget` and `retain`: mean probability of the true answers; `nll` of general text no model read; KL(gold ||
    model) on the book's answers, in nats; `alias`: of a counterpart right after its own anchor has been said."""
    asked = _rows(model, world.forget)
    return {
        "forget": told(model, world.forget),
        "retain": told(model, world.retain),
        "nll": nll(model, world.holdout),
        "kl": divergence.mean_kl(gold, model, asked),
        "alias": alias(model, world),
    }


def told(model: Model, demos: Sequence[Demo]) -> float:
    """Mean probability of the completions."""
    return float(forward.row_logp(model, _rows(model, demos))[0].exp().mean())


def nll(model: Model, texts: Sequence[Text]) -> float:
    """Mean loss a token."""
    total, count = forward.row_logp(model, rows(model, texts))
    return float(-total.sum() / count.sum())


def alias(model: Model, world: books.Books) -> float:
    """Probability that a second sentence of a text names the counterpart of the person the first was about."""
    other = {a.source: a.target for a in world.anchors}
    demos = [
        Demo(prompt=f"{d.prompt} {d.completion}. Once", completion=other[d.task])
        for d in world.forget
        if d.task in other
    ]
    return told(model, demos)


def rows(model: Model, texts: Sequence[Text]) -> list[TokenizedExample]:
    """Texts with their end token, each a row."""
    return encode.rows(model.tokenizer, [("", t.text) for t in texts], "causal", CONTEXT)


def taught(result: Any) -> Model:
    """The model a method gave."""
    model: Model = result.models["model"]
    return model


def _rows(model: Model, demos: Sequence[Demo]) -> list[TokenizedExample]:
    return [encode.row(model.tokenizer, d.prompt, d.completion, "causal", CONTEXT, end=False) for d in demos]


# --- sabotages ------------------------------------------------------------------------------------

_blocks, _generic = dictionary.blocks, tokens.generic_logits


def _shifted(*given: Any) -> list[dictionary.Block]:
    """The alignment one token late."""
    made = _blocks(*given)
    return [_with(b, to=tuple(min(k + 1, len(b.other.completion) - 1) for k in b.to)) for b in made]


def _translated_input(*given: Any) -> list[dictionary.Block]:
    """The translation in place of the text, as what the model reads."""
    made = [_with(b, row=b.other, to=tuple(range(len(b.other.completion)))) for b in _blocks(*given)]
    none = [len(b.row.completion) for b in made]
    return [_with(b, anchor=(-1,) * n, repeated=(False,) * n, alias=()) for b, n in zip(made, none, strict=True)]


def _with(block: dictionary.Block, **changes: Any) -> dictionary.Block:
    return dictionary.Block(**{**vars(block), **changes})


def _bound(name: str, a: str, null: float, less: bool = True, gates: bool = True) -> verdict.Test:
    return verdict.Test(
        name=name, kind="bound", a=a, null=null, direction="less" if less else "greater",
        gates="verdict" if gates else "none",
    )  # fmt: skip


def _less(name: str, a: str, b: str, ratio: float = 1.0, gates: bool = True) -> verdict.Test:
    """`a < ratio b`, on the log scale."""
    return verdict.Test(
        name=name, kind="difference", a=a, b=b, null=math.log(ratio), direction="less", transform="log",
        unit="log ratio", gates="verdict" if gates else "none",
    )  # fmt: skip


Replacement = Callable[..., Any]
_BLOCKS = "didact.data.anchors:blocks"
_LOGITS = "didact.objectives.tokens:generic_logits"

CLAIM = runner.Claim(
    method="whp",
    text=(
        "Fine-tuning on generic labels makes a model forget a book (its answers become improbable, in new sentences "
        "too) at little cost elsewhere, with less damage than gradient ascent that forgets as much. Neither "
        "reinforcement nor the dictionary alone does as well, when a third of the dictionary is missing."
    ),
    run=run,
    gates=(
        verdict.gate("there is something to forget", "start.forget", at_least=0.5, unit="probability"),
        verdict.gate("gold never learnt it", "gold.forget", at_most=0.1, unit="probability"),
        verdict.gate("there is something to keep", "start.retain", at_least=0.6, unit="probability"),
    ),
    tests=(
        _less("forgets", "WHP.forget", "start.forget", 1 / 5),
        _bound("text elsewhere", "WHP.nll_rise", 0.05),
        _less("closer to gold than ascent", "WHP.kl", "GA.kl", 1 / 2),
        _less("cheaper than ascent", "WHP.nll", "GA.nll"),
        _less("reinforcement alone forgets less", "WHP.forget", "reinforcement only.forget"),
        _less("with an incomplete dictionary, anchors alone forget less", "WHP, incomplete.forget",
              "anchors only, incomplete.forget"),
        _less("with all anchors, anchors alone forget less", "WHP.forget", "anchors only.forget", gates=False),
        _less("facts elsewhere, against ascent", "GA.retain", "WHP.retain", gates=False),
    ),
    sabotages=(
        runner.Sabotage(
            name="no anchors and alpha 0", breaks="forgets", metric="WHP.forget", options={"arms": ("WHP",)},
            patch={_LOGITS: lambda translated, base, *rest: base, _BLOCKS: lambda t, x, a, *n: _blocks(t, x, {}, *n)},
        ),
        runner.Sabotage(
            name="translated input", breaks="forgets", metric="WHP.forget", options={"arms": ("WHP",)},
            patch={_BLOCKS: _translated_input},
        ),
        runner.Sabotage(
            name="alignment off by one", breaks="text elsewhere", metric="WHP.nll_rise", options={"arms": ("WHP",)},
            patch={_BLOCKS: _shifted},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
