"""Types that all layers share: records, `Fit`, `Result`, errors and protocols. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from didact import bounds, files, folders
from didact import figures as drawn
from didact.bounds import BelowOne, Count, NonNegative, Positive, Whole
from didact.errors import UserError as UserError
from didact.parallel import launch
from didact.records import QA as QA
from didact.records import REASONING as REASONING
from didact.records import RECORDS as RECORDS
from didact.records import Critique as Critique
from didact.records import Demo as Demo
from didact.records import Example as Example
from didact.records import Judged as Judged
from didact.records import Lexeme as Lexeme
from didact.records import Messages as Messages
from didact.records import Parallel as Parallel
from didact.records import Passage as Passage
from didact.records import Preference as Preference
from didact.records import Record as Record
from didact.records import Reply as Reply
from didact.records import Scored as Scored
from didact.records import Segment as Segment
from didact.records import Step as Step
from didact.records import Text as Text
from didact.records import Trajectory as Trajectory
from didact.records import Trial as Trial
from didact.records import as_row as as_row
from didact.records import thought as thought

# --- training --------------------------------------------------------------------------------

Schedule = Literal["constant", "linear", "cosine", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to train. `rows` is the statistical batch (the paper's); `micro_tokens` is memory only.

    Args:
        lr: peak learning rate.
        epochs: passes over the method's first stream; used when `steps` is not given.
        steps: optimiser steps.
        rows: records per stream and optimiser step.
        micro_tokens: padded tokens per forward pass; changes memory and speed, never the result. By default what is
            fastest for the model's width and device.
        schedule: constant, linear (to zero), cosine (to zero) or wsd (constant, then linear to zero
            over the last fifth).
        warmup: linear warm-up in epochs of the first stream (or in steps with `warmup_steps`).
        warmup_steps: linear warm-up in steps; wins over `warmup`.
        optimizer: adamw, adam, sgd, or adafactor (factored second moments, no first; constant rate `lr`).
        betas: Adam's two decay rates.
        eps: of Adam; where gradients are far smaller, steps are as much smaller.
        weight_decay: decoupled decay of matrices (not of biases and norms).
        clip: largest global gradient norm; 0 turns clipping off.
        precision: float32, or bfloat16 mixed precision (weights stay as loaded).
        lora: rank of a LoRA adapter trained in place of the weights; 0 trains the weights.
        lora_alpha: LoRA's scale; the update is (lora_alpha / lora) B A.
        lora_targets: names of the layers LoRA is put on, `q_proj v_proj`; every linear layer but the head by default.
        lora_dropout: of what goes into the adapter.
        dora: weights are split into magnitude and direction, and LoRA learns the direction (DoRA).
        checkpointing: layers are run again in the backward pass in place of keeping what they made: less memory, a
            third more time, the same result.
        packing: short records side by side in a row, each seeing itself alone; changes speed, never the result.
        replay: share of the examples of a step that are general text, beside the method's own loss (added to it with
            the weight replay / (1 - replay)), so that what the model knew stays.
        replay_from: a file of such text; a little of our own by default, other than what retention is measured on.
        save_every: steps between checkpoints (when the run has an output folder), beside those by time.
        save_minutes: minutes between checkpoints; one is written on Ctrl-C and SIGTERM too.
        seed: order of the data, dropout and everything else that is drawn.
        parallel: of several processes, whether each has the whole model (ddp), or weights, gradients and the
            optimizer's state lie over all of them (fsdp2), or over those of a node, each node with all (hsdp), or as
            PPxDPxTP says: layers in PP stages, each layer in TP parts, over DP copies (1x2x2).
        folder: where checkpoints are written; set by the command line from `--out`.
    """

    lr: NonNegative = 1e-5
    epochs: NonNegative = 1.0
    steps: Whole | None = None
    rows: Count = 32
    micro_tokens: Count | None = None
    schedule: Schedule = "linear"
    warmup: NonNegative = 0.0
    warmup_steps: Whole | None = None
    optimizer: Literal["adamw", "adam", "sgd", "adafactor"] = "adamw"
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip: NonNegative = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    lora: Whole = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()
    lora_dropout: BelowOne = 0.0
    dora: bool = False
    checkpointing: bool = False
    packing: bool = True
    replay: BelowOne = 0.0
    replay_from: str | None = None
    save_every: Count | None = None
    save_minutes: Positive = 2.0
    seed: int = 0
    parallel: str = "ddp"
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, text in bounds.violations(bounds.hints_of(type(self)), vars(self)):
            raise UserError(f"{name} = {getattr(self, name)}: {text}")
        launch.parallel(self.parallel)
        for name in ("lora_targets", "lora_dropout", "dora"):
            if getattr(self, name) and not self.lora:
                raise UserError(
                    f"{name} = {getattr(self, name)}: goes with lora, the rank of the adapter (lora = 8, say)"
                )

    def replace(self, **changes: Any) -> Fit:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def total_steps(self, records: int) -> int:
        """Optimiser steps for a first stream of this many records."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * records / self.rows))

    def warmup_count(self, records: int) -> int:
        """Warm-up steps for a first stream of this many records."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup * records / self.rows)


# --- results ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number before and after teaching. `ci` is the 95 % interval of `after` over the `n` items.

    `gold` is the same number of an ideal model to compare with, if there is one.
    """

    after: float
    before: float | None = None
    gold: float | None = None
    n: int | None = None
    ci: tuple[float, float] | None = None
    unit: str = ""
    better: Literal["higher", "lower", "gold", ""] = ""
    help: str = ""


@dataclass
class Cost:
    """What teaching used. A token counts once per forward pass of any model and three times when trained."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes), self.calls + other.calls,
        )  # fmt: skip


class Savable(Protocol):
    """Anything that a `Result` can save, such as a model."""

    def save(self, folder: str | Path) -> str:
        """Write into `folder`; return the format (`hf`, `peft` or `didact`)."""


class Call(NamedTuple):
    """The call of a method from Python that gave a result: its name and all arguments."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(repr=False)
class Result:
    """What a method returns: any of models, a predictor, records and findings; and how it went.

    `samples` are answers before and after (`prompt`, `before`, `after`); `history` has one row per step; `transcript`
    has a procedure's prompts and the model's answers, as records to train on; the page draws `figures`. `metrics` of a
    method that was called from Python are computed when they are first read: see `evaluate`.
    """

    models: dict[str, Savable] = field(default_factory=dict)
    predict: Callable[..., Any] | None = None
    records: list[Record] | None = None
    transcript: list[Record] | None = None
    findings: dict[str, Any] = field(default_factory=dict)
    figures: list[drawn.Figure] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    warnings: list[str] = field(default_factory=list)
    call: Call | None = None

    OPENS: ClassVar[dict[str, str]] = {
        "hf": "transformers, vLLM, lm-eval and didact.load",
        "peft": "peft (on the start model) and didact.load",
        "didact": "didact.load only: transformers cannot express this module",
    }

    def __repr__(self) -> str:
        """Its content in one line; `report` prints more."""
        parts = [*self.models, *(["answers"] if self.predict else [])]
        parts += [f"{len(self.records):,} records"] if self.records is not None else []
        parts += [f"{len(self.history):,} steps"] if self.history else []
        parts += [f"findings {', '.join(self.findings)}"] if self.findings else []
        parts += [f"{len(self.figures)} figures"] if self.figures else []
        metrics = vars(self).get("metrics", {})
        parts += [f"{name} {m.after:.3g}" for name, m in list(metrics.items())[:3]]
        return f"Result({', '.join(parts)}{', ...' if len(metrics) > 3 else ''})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "metrics" or self.call is None:
                raise AttributeError(f"a Result has no '{name}'")
            return self.evaluate()

    def evaluate(self, **records: Sequence[Record]) -> dict[str, Metric]:
        """Score the model and its start model by the method's protocols; the numbers are in `metrics` afterwards.

        Args:
            records: by the method's parameter, or by kind (`demo=held_out`), in place of the training records,
                which flatter the model.

        Raises:
            UserError: no method gave this result, or the records cannot be scored.
        """
        self.metrics = _direct().metrics(self, records)
        return self.metrics

    def report(self, folder: str | Path | None = None) -> None:
        """Print the numbers before and after, samples and warnings; with a folder also save it there, with its page."""
        _direct().report(self, folder)

    def save(self, folder: str | Path) -> dict[str, str]:
        """Write everything this result has into `folder`; the only model, or the one called `model`, to `folder/model`.

        The result of a call from Python gets a `result.json` too, so that `didact report`, `try` and `evaluate` read
        the folder like that of a run.

        Returns `{name: format and which tools open it}`.

        Raises:
            UserError: a file with one of these names is there already, and didact did not write it.
        """
        root = Path(folder)
        places = {"model" if len(self.models) == 1 or n == "model" else f"model-{n}": m for n, m in self.models.items()}
        contents = {
            "records.jsonl": self.records is not None, "transcript.jsonl": self.transcript is not None,
            "findings.json": self.findings, "figures.json": self.figures, "history.jsonl": self.history,
            "samples.json": self.call and self.samples, "result.json": self.call,
        }  # fmt: skip
        folders.join(root, [*places, *(name for name, present in contents.items() if present)])
        written: dict[str, str] = {}
        for place, model in places.items():
            with files.new_folder(root / place) as fresh:
                kind = model.save(fresh)
            written[place] = f"{kind}: opens in {self.OPENS[kind]}"
        for name, records in (("records.jsonl", self.records), ("transcript.jsonl", self.transcript)):
            if records is not None:
                files.write_lines(root / name, (as_row(record) for record in records))
                written[name] = "JSON lines"
        if self.findings:
            files.write_json(root / "findings.json", self.findings)
            written["findings.json"] = "JSON"
        if self.figures:
            files.write_json(root / "figures.json", [drawn.as_row(figure) for figure in self.figures])
            written["figures.json"] = "JSON; didact.figures.read opens it, and figure.save writes one as SVG"
        if self.history:
            files.write_lines(root / "history.jsonl", self.history)
            written["history.jsonl"] = "JSON lines, one a step"
        if self.call is not None:
            if self.samples:
                files.write_json(root / "samples.json", self.samples)
            files.write_json(root / "result.json", _direct().summary(self, written))
        return written


def _direct() -> Any:
    """The module that scores and reports results, in a higher layer."""
    return importlib.import_module(".report.direct", "didact")


# --- language models, local and remote -------------------------------------------------------


class Critic(Protocol):
    """Says what is wrong with completions."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], /) -> Sequence[str]:
        """Return one text for each; an empty one if nothing is wrong."""


class Reward(Protocol):
    """Scores completions."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], /) -> Sequence[float]:
        """Return one number for each, higher is better."""


class Objective(Protocol):
    """Scores a configuration."""

    def __call__(self, config: dict[str, Any], /) -> float:
        """Return its score."""


class AnswerCheck(Protocol):
    """Checks whether a worked solution reaches the right answer."""

    def __call__(self, solution: str, demo: Demo, /) -> bool:
        """Return whether it does."""


class Check(Protocol):
    """Checks whether refinements follow the feedback."""

    def __call__(self, completions: Sequence[str], feedback: Sequence[str], refinements: Sequence[str], /) -> Any:
        """Return one truth value for each."""


class Likelihood(NamedTuple):
    """Log-prob of a completion given its prompt: SUM over its tokens, in nats, and how many there are."""

    logp: float
    tokens: int


class LM(Protocol):
    """A language model as the prompting methods use it; `capabilities` says what it can do.

    Capabilities are `generate`, `chat`, `top_logprobs`, `score` here, and `logits`, `hidden`, `embeds`,
    `train` for a local model; a call outside them raises `UserError`. A local `Model` becomes one by
    `infer.lm.of`, a server by `didact.connect`.
    """

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do."""

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """Return `n` completions of every prompt, in the prompts' order; greedy at temperature 0."""

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """Return `n` replies to every conversation, a list of `{"role", "content"}`."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return the likelihood of every (prompt, completion); no end token is scored."""

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> list[dict[str, float]]:
        """Return the `k` likeliest next tokens of every prompt, as text, with their log-probs."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of every text (an estimate without the tokenizer)."""

    @property
    def context(self) -> int:
        """The maximum number of tokens of prompt and completion together."""
