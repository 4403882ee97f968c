"""The nouns every floor shares: records, `Fit`, `Result`, errors and protocols. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from didact import bounds, files, folders
from didact.bounds import BelowOne, Count, NonNegative, Positive, Whole
from didact.errors import UserError as UserError

# --- records ---------------------------------------------------------------------------------


class Messages(str):
    """A conversation as a prompt: as text `User: ...`, a line a turn, and `Assistant:` for the answer to follow.

    Being text it goes wherever a prompt goes; `data.encode` renders its `turns` by the tokenizer's
    own chat template where there is one.
    """

    turns: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]

    def __new__(cls, turns: Iterable[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]] = ()) -> Messages:  # noqa: D102  (the class says)
        kept, offered = tuple(dict(turn) for turn in turns), tuple(dict(tool) for tool in tools)
        said = "".join(f"{turn['role'].capitalize()}: {Reply(turn)}\n" for turn in kept)
        made = super().__new__(cls, (f"Tools: {_json(offered)}\n" if offered else "") + said + "Assistant:")
        made.turns, made.tools = kept, offered
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # so that copies and pickles keep the turns
        return (self.turns, self.tools)


class Reply(str):
    """An assistant turn as a completion: as text its content, then its tool calls as JSON; `turn` is all of it."""

    turn: dict[str, Any]

    def __new__(cls, turn: Mapping[str, Any]) -> Reply:  # noqa: D102  (the class says)
        calls = turn.get("tool_calls")
        made = super().__new__(cls, "\n".join(filter(None, (turn["content"], _json(calls) if calls else ""))))
        made.turn = dict(turn)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.turn,)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of what the user has. Fields a record does not know are kept in `extra`."""

    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Record):
    """A part of a document with its own score."""

    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Record):
    """A document. `segments` are its parts in order, each scored; joined they are the text."""

    text: str
    metadata: dict[str, Any] | None = None
    score: float | None = None
    source: str | None = None
    segments: list[Segment] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo(Record):
    """A demonstration: what was asked and what a good answer is.

    `paraphrased` is another wording of the completion, `perturbed` are wrong completions in the
    same wording, `alternate` is what to answer instead (a refusal, say).
    """

    prompt: str
    completion: str
    choices: list[str] | None = None
    instruction: str | None = None
    task: str | None = None
    explanation: str | None = None
    context: str | None = None
    answers: list[str] | None = None
    paraphrased: str | None = None
    perturbed: list[str] | None = None
    alternate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QA(Record):
    """A question about a passage, with every accepted answer."""

    context: str
    question: str
    answers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Record):
    """A small supervised problem: rows `x` (n, d) with targets `y` (n,) or (n, o), and perhaps one query."""

    x: list[Any]
    y: list[Any]
    task: str | None = None
    x_query: list[Any] | None = None
    y_query: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Record):
    """Two completions of one prompt, the first preferred."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Record):
    """A completion that was found good or bad, without another beside it."""

    prompt: str
    completion: str
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Record):
    """A completion with a number; higher is better."""

    prompt: str
    completion: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique(Record):
    """A completion, what someone said about it, and perhaps the completion mended accordingly."""

    prompt: str
    completion: str
    feedback: str
    refinement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One step of a trajectory: what was seen, what was done then, and what that was worth."""

    observation: Any
    action: Any
    reward: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Record):
    """An episode: its steps in order, and what was seen after the last.

    `goal` is what was asked for (nobody may have asked), `achieved` what was reached, in the same form.
    """

    task: str
    steps: list[Step]
    final_observation: Any
    goal: Any = None
    achieved: Any = None
    success: bool | None = None
    terminated: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexeme(Record):
    """A word of a language for a meaning (`synset`) that other languages have words for too."""

    synset: str
    language: str
    lemma: str
    gloss: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Record):
    """A sentence and its translation."""

    source: str
    target: str
    source_lang: str | None = None
    target_lang: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage(Record):
    """A text to be looked up."""

    text: str
    title: str | None = None
    url: str | None = None


RECORDS: dict[str, type[Record]] = {
    "text": Text,
    "demo": Demo,
    "qa": QA,
    "example": Example,
    "preference": Preference,
    "judged": Judged,
    "scored": Scored,
    "critique": Critique,
    "trajectory": Trajectory,
    "lexeme": Lexeme,
    "parallel": Parallel,
    "passage": Passage,
}

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
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, text in bounds.violations(bounds.hints_of(type(self)), vars(self)):
            raise UserError(f"{name} = {getattr(self, name)}: {text}")
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

    `gold` is the same number of a model that shows what perfect looks like, where there is one.
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
    """Anything a `Result` can write: a model does."""

    def save(self, folder: str | Path) -> str:
        """Write into `folder`; return the format (`hf`, `peft` or `didact`)."""


class Call(NamedTuple):
    """The call of a method from Python that gave a result: its name and all arguments."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(repr=False)
class Result:
    """What a method gives: any of models, a predictor, records and findings; plus how it went.

    `samples` are answers before and after (`prompt`, `before`, `after`); `history` has one row a step. `metrics` of a
    method that was called from Python are made when they are first looked at: see `evaluate`.
    """

    models: dict[str, Savable] = field(default_factory=dict)
    predict: Callable[..., Any] | None = None
    records: list[Record] | None = None
    findings: dict[str, Any] = field(default_factory=dict)
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
        """What there is, in a line; `report` says more."""
        has = [*self.models, *(["answers"] if self.predict else [])]
        has += [f"{len(self.records):,} records"] if self.records is not None else []
        has += [f"{len(self.history):,} steps"] if self.history else []
        has += [f"findings {', '.join(self.findings)}"] if self.findings else []
        known = vars(self).get("metrics", {})
        has += [f"{name} {m.after:.3g}" for name, m in list(known.items())[:3]]
        return f"Result({', '.join(has)}{', ...' if len(known) > 3 else ''})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "metrics" or self.call is None:
                raise AttributeError(f"a Result has no '{name}'")
            return self.evaluate()

    def evaluate(self, **records: Sequence[Record]) -> dict[str, Metric]:
        """Score the model and the one it started from, as the method's protocols do; the numbers are `metrics` then.

        Args:
            records: by the method's parameter, or by kind (`demo=held_out`). In place of those that training saw,
                which flatter the model.

        Raises:
            UserError: no method gave this result, or the records do not serve.
        """
        self.metrics = _direct().metrics(self, records)
        return self.metrics

    def report(self, folder: str | Path | None = None) -> None:
        """Print the numbers before and after, with samples and warnings; with a folder save it there, with its page."""
        _direct().report(self, folder)

    def save(self, folder: str | Path) -> dict[str, str]:
        """Write everything this result has into `folder`; a model alone, or named so, goes to `folder/model`.

        What a method gave when it was called from Python gets a `result.json` too, so that `didact report`, `try` and
        `evaluate` read the folder as they read that of a run.

        Returns `{what: format and which tools open it}`.

        Raises:
            UserError: something of one of these names stands there which didact did not write.
        """
        root = Path(folder)
        places = {"model" if len(self.models) == 1 or n == "model" else f"model-{n}": m for n, m in self.models.items()}
        rows = {
            "records.jsonl": self.records is not None, "findings.json": self.findings, "history.jsonl": self.history,
            "samples.json": self.call and self.samples, "result.json": self.call,
        }  # fmt: skip
        folders.join(root, [*places, *(name for name, given in rows.items() if given)])
        written: dict[str, str] = {}
        for place, model in places.items():
            with files.new_folder(root / place) as fresh:
                kind = model.save(fresh)
            written[place] = f"{kind}: opens in {self.OPENS[kind]}"
        if self.records is not None:
            files.write_lines(root / "records.jsonl", (as_row(record) for record in self.records))
            written["records.jsonl"] = "JSON lines"
        if self.findings:
            files.write_json(root / "findings.json", self.findings)
            written["findings.json"] = "JSON"
        if self.history:
            files.write_lines(root / "history.jsonl", self.history)
            written["history.jsonl"] = "JSON lines, one a step"
        if self.call is not None:
            if self.samples:
                files.write_json(root / "samples.json", self.samples)
            files.write_json(root / "result.json", _direct().told(self, written))
        return written


def _direct() -> Any:
    """What scores and tells results, some floors above."""
    return importlib.import_module(".report.direct", "didact")


def as_row(record: Record) -> dict[str, Any]:
    """A record as it would stand in a JSONL file."""
    row = {f.name: _as_json(getattr(record, f.name)) for f in dataclasses.fields(record) if f.name != "extra"}
    return {k: v for k, v in row.items() if v is not None} | record.extra


def _as_json(value: Any) -> Any:
    """A field's value as JSON has it: conversations as their turns, steps and segments as objects."""
    if isinstance(value, Messages):
        return list(value.turns)
    if isinstance(value, Reply):
        return [value.turn]
    if isinstance(value, list) and value and isinstance(value[0], Record):
        return [as_row(item) for item in value]
    return value


# --- language models, local and remote -------------------------------------------------------


class Critic(Protocol):
    """Says what is wrong with completions."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], /) -> Sequence[str]:
        """One text for each; an empty one where there is nothing to say."""


class Reward(Protocol):
    """Says how good completions are."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], /) -> Sequence[float]:
        """One number for each, higher is better."""


class AnswerCheck(Protocol):
    """Knows whether a worked solution comes to the right answer."""

    def __call__(self, solution: str, demo: Demo, /) -> bool:
        """Whether it is right."""


class Check(Protocol):
    """Knows whether feedback was taken up."""

    def __call__(self, completions: Sequence[str], feedback: Sequence[str], refinements: Sequence[str], /) -> Any:
        """One truth value for each."""


class Likelihood(NamedTuple):
    """Log-prob of a completion given its prompt: SUM over its tokens, in nats, and how many there are."""

    logp: float
    tokens: int


class LM(Protocol):
    """A language model as the prompting methods see it: what it can do is in `capabilities`.

    Capabilities are `generate`, `chat`, `top_logprobs`, `score` here, and `logits`, `hidden`, `embeds`,
    `train` for a local model; a call outside them raises `UserError`. A local `Model` becomes one by
    `infer.lm.of`, a server by `didact.connect`.
    """

    @property
    def name(self) -> str:
        """What to call it in results."""

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
        """`n` completions of every prompt, in the prompts' order; greedy at temperature 0."""

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """`n` replies to every conversation, a list of `{"role", "content"}`."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Likelihood of every (prompt, completion); no end token is scored."""

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> list[dict[str, float]]:
        """The `k` likeliest next tokens of every prompt, as text, with their log-probs."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens every text has (an estimate where the tokenizer is not at hand)."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together."""
