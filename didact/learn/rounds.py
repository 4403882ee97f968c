"""Rounds: sample (or search), collect, train, promote, and again from the promoted model.

`run_rounds` is a plain loop around two functions of the method, `collect(round)` and `train(round, data)`. With a
folder every round has one of its own: what was sampled, as JSON lines, the checkpoints of its training, and at its end
the model it promoted. A kill loses at most the chunk that was being sampled or the steps since the last checkpoint; the
same call goes on in the same round, to the same bits (CPU). Without a folder everything is in memory.

    folder/name/identity.json
    folder/name/round-0/samples.jsonl, train/step-00000050/, promoted/step-00000000/
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from didact import files, registry
from didact.data import encode, templates
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup
from didact.infer import engines, generate
from didact.infer.generate import Completion, SamplingConfig
from didact.learn import checkpoint, distributed, schedules
from didact.learn.checkpoint import State
from didact.learn.fit import MEMORY, Hook
from didact.learn.language import TrainResult
from didact.models import adapters, forward, spread
from didact.models.model import Model, copy_of
from didact.progress import Bar
from didact.types import Cost, Fit, Result, Reward, UserError

CHUNK = 256  # prompts sampled between two writes
APART = 7919  # between the seeds of two rounds


@dataclass(frozen=True)
class Round:
    """One round: its number from 0, the frozen model it starts from, how to train in it, and its folder."""

    number: int
    model: Model
    fit: Fit
    folder: Path | None = None

    def chunks(
        self, name: str, count: int, make: Callable[[int, int], list[Any]], size: int | None = None
    ) -> list[Any]:
        """Return `count` JSON values, made `size` (`CHUNK`) at a time by `make(start, stop)` and saved in `name.jsonl`.

        Chunks that an earlier start finished are read, not made again. Several processes divide the chunks among
        them; all return all values, and the first one writes.
        """
        size = size or CHUNK
        rank, world = distributed.rank(self.model.module)
        sharded = spread.is_sharded(self.model.module)  # sharded weights: all processes make every chunk together
        parts = 1 if sharded else world
        file = self.folder / f"{name}.jsonl" if self.folder and rank == 0 else None
        values = _read_chunks(file, count, size) if file else []
        values = distributed.from_first(values) if world > 1 else values
        wave = size * parts
        with Bar(f"round {self.number}: {name}", -(-count // wave), len(values) // wave, quiet=rank > 0) as bar:
            for start in range(len(values), count, wave):
                first = min(start + rank * size, count) if parts > 1 else start
                new = make(first, min(first + size, count)) if first < count else []
                new = distributed.joined(new) if parts > 1 else new
                if file:
                    with open(file, "a", encoding="utf-8") as out:
                        out.write("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in new))
                        out.flush()
                        os.fsync(out.fileno())
                values += new
                bar.advance()
        return values

    def samples(
        self, prompts: Sequence[Sequence[int]], n: int, config: SamplingConfig, name: str = "samples"
    ) -> list[list[Completion]]:
        """Sample `n` completions of every prompt (token ids) from this round's model; its seed determines them."""

        def make(start: int, stop: int) -> list[Any]:
            seeded = SamplingConfig(**vars(config) | {"seed": self.fit.seed * 1_000_003 + start})
            completions = generate.completions(self.model, prompts[start:stop], n, seeded)
            return [[[c.text, list(c.tokens), c.logp] for c in row] for row in completions]

        return [
            [Completion(text, tuple(tokens), logp) for text, tokens, logp in row]
            for row in self.chunks(name, len(prompts), make)
        ]

    def steered(
        self, prompts: Sequence[str], instructions: Sequence[str], n: int, config: SamplingConfig, name: str = "samples"
    ) -> list[list[Completion]]:
        """Sample as `samples` does, with a random one of the instructions before the prompt of every completion."""
        drawn = np.random.default_rng([self.fit.seed, 94]).integers(len(instructions), size=(len(prompts), n))
        texts = [
            templates.introduced(prompt, f"{instructions[i]}\n\n", "user")
            for prompt, row in zip(prompts, drawn, strict=True)
            for i in row
        ]
        ids = [encode.prompt_ids(self.model.tokenizer, text, self.model.kind) for text in texts]
        flat = [row[0] for row in self.samples(ids, 1, config, name)]
        return [flat[at : at + n] for at in range(0, len(flat), n)]

    def mean_nll(self, rows: Sequence[TokenizedExample]) -> list[float]:
        """-log p of each row's labels under this round's model, mean over its tokens; saved in the folder as `nll`."""

        def measure(start: int, stop: int) -> list[Any]:
            total, count = forward.row_logp(self.model, rows[start:stop])
            return list((-total / count).tolist())

        return self.chunks("nll", len(rows), measure)

    def rewards(
        self, prompts: Sequence[str], completions: Sequence[Sequence[Completion]], reward: Reward, name: str = "rewards"
    ) -> Any:
        """Return the rewards of every prompt's completions, `(prompts, n)`."""

        def make(start: int, stop: int) -> list[Any]:
            rows = completions[start:stop]
            repeated = [p for p, row in zip(prompts[start:stop], rows, strict=True) for _ in row]
            values = iter(reward(repeated, [c.text for row in rows for c in row]))
            return [[next(values) for _ in row] for row in rows]

        return np.array(self.chunks(name, len(completions), make), dtype=float)


@dataclass(frozen=True)
class RoundData:
    """What a round trains on.

    Args:
        items: groups of rows.
        stats: statistics of the items, for the findings.
        records: the items as records, for the user.
        columns: a tensor with a value, or a row of them, for each item.
    """

    items: list[ExampleGroup]
    stats: dict[str, Any] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)
    columns: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class RoundsResult:
    """All rounds: the model the last one promoted, what each collected, log rows with their `round`, and the cost."""

    model: Model
    data: list[RoundData] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def result(self, **parts: Any) -> Result:
        """Return the rounds as a method's result: all records, each round's stats; `parts` extend or replace them."""
        fields: dict[str, Any] = {"models": {"model": self.model}, "history": self.history, "cost": self.cost}
        stats = {"rounds": [{"round": n, **r.stats} for n, r in enumerate(self.data)]}
        return Result(**fields | {"records": self.records or None, "findings": stats} | parts)

    @property
    def records(self) -> list[Any]:
        """The records of all rounds."""
        return [record for r in self.data for record in r.records]


def run_rounds(
    model: Model,
    count: int,
    collect: Callable[[Round], RoundData],
    train: Callable[[Round, RoundData], TrainResult],
    fit: Fit,
    *,
    name: str,
    scheduled: bool = False,
    hooks: Sequence[Hook] = (),
) -> RoundsResult:
    """Run `count` rounds from `model`, which is not changed.

    A LoRA adapter is merged when its model is promoted, so that the next round starts from plain weights, which are
    then its frozen opponent too. The same folder may be continued later with a larger `count`.

    Args:
        model: where round 0 starts.
        count: number of rounds.
        collect: samples and makes training data; also called in finished rounds, where it reads what was saved.
        train: trains a copy of `round.model` under `round.fit` (and with `hooks`) on what was collected.
        fit: how to train in every round; rounds differ in its seed.
        name: name of the folder.
        scheduled: rounds depend on their number (the option `rounds`), so a folder cannot be continued with more.
        hooks: called in every training; their state carries over from round to round.

    Raises:
        UserError: the folder holds rounds of another model, or with other options.
    """
    rank, world = distributed.rank(model.module)
    if engine := engines.current():
        engine.begin(model, fit)
    root = Path(fit.folder) / name if fit.folder else None
    if root:
        options = {k: v for k, v in vars(fit).items() if k not in MEMORY}
        call = {k: v for k, v in registry.identity().items() if k != "rounds" or scheduled}
        call |= {"engine": "vllm"} if engine else {}
        run_id = {**options, **call, "weights": model.fingerprint(), "hooks": len(hooks)}  # by all: it may be sharded
        if rank == 0:
            _check_identity(root, run_id)
    outcome: RoundsResult = RoundsResult(model)
    for number in range(count):
        folder = root / f"round-{number}" if root else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        seeded = fit.replace(seed=fit.seed + APART * number, folder=str(folder) if folder else None)
        current = Round(number, outcome.model, seeded, folder)
        with engines.collecting(current.model):
            outcome.data.append(collect(current))
        weights = outcome.model.module.state_dict() if spread.is_sharded(model.module) else None
        saved = checkpoint.load(folder / "promoted", {}, weights) if folder else None
        if saved:
            promoted, state = saved
            outcome.model = copy_of(adapters.merged(model))
            outcome.model.module.load_state_dict(promoted)
            outcome.model.module.eval()
            for hook, hook_state in zip(hooks, state.hooks, strict=True):
                hook.restore(hook_state)
        else:
            trained = train(current, outcome.data[-1])
            outcome.model, state = adapters.merged(trained.model), trained.state
            if folder and (rank == 0 or spread.is_sharded(outcome.model.module)):
                promotion = State(number, {}, [h.state() for h in hooks], None, trained.history, state.tokens)
                checkpoint.save(folder / "promoted", outcome.model.module.state_dict(), promotion, {})
        if world > 1:  # no process reads a round's folder while another writes there
            distributed.wait()
        if folder and rank == 0:  # the checkpoints of the round's training are no longer needed
            for leftover in [p for p in folder.iterdir() if p.is_dir() and p.name != "promoted"]:
                checkpoint.remove(leftover)
        steps_done = len(outcome.history)
        outcome.history += [{**row, "round": number, "step": steps_done + row["step"]} for row in state.history]
        outcome.cost.tokens += 3 * state.tokens
        outcome.cost.flops += 6.0 * model.parameters * state.tokens
    return outcome


def turn(number: int, size: int, count: int, seed: int) -> list[int]:
    """Indices of a round's `size` of `count` prompts: rounds go through all prompts in shuffled passes."""
    return in_passes(number * size, size, count, (seed, 55))


def in_passes(first: int, size: int, count: int, key: Sequence[int]) -> list[int]:
    """Indices of `size` of `count` records, from position `first` on in a sequence of shuffled passes over all.

    Pass e is shuffled by the seed `(*key, e)`.
    """
    passes = range(first // count, -(-(first + max(size, 1)) // count))
    order = [int(i) for e in passes for i in np.random.default_rng([*key, e]).permutation(count)]
    return order[first - passes[0] * count :][:size]


def constant_rate(current: Round, fit: Fit, count: int) -> Fit:
    """Return a round's fit where the schedule of `fit` spans all `count` rounds and is constant within each."""
    warm = min(round(fit.warmup * count), count - 1) if fit.warmup_steps is None else fit.warmup_steps
    rate = fit.lr * schedules.factor(fit.schedule, current.number, count, warm)
    return current.fit.replace(lr=rate, schedule="constant", warmup_steps=0)


def phases(steps: int, first: int, every: int) -> list[tuple[int, int]]:
    """First step and length of every phase of a training: `first` steps, then `every` at a time."""
    starts = [0, *range(first, steps, every)]
    return [(a, min(b, steps) - a) for a, b in zip(starts, [*starts[1:], steps], strict=True)]


def phase_fit(current: Round, fit: Fit, phases: Sequence[tuple[int, int]], warmup: int) -> Fit:
    """Return a round's fit where rounds are phases of one schedule: the rate of its first step throughout.

    The first phase warms up over `warmup` steps; a single phase follows the schedule of `fit`.
    """
    first, length = phases[current.number]
    if len(phases) == 1:
        return current.fit.replace(steps=length)
    rate = fit.lr * schedules.factor(fit.schedule, first, sum(phases[-1]), warmup if first else 0)
    return current.fit.replace(
        steps=length, lr=rate, schedule="constant", warmup=0.0, warmup_steps=0 if first else warmup
    )


def untrained(model: Model) -> TrainResult:
    """Return the result of a round without training data: the model is not changed."""
    return TrainResult(model, [], Cost(), State())


def as_sampled(row: TokenizedExample, model: Model, max_new_tokens: int) -> TokenizedExample:
    """Cut a demonstration as sampling would have: the same prompt, and an answer that ends where sampling stops.

    Both sides of a pair then end by one rule: with an end token if the answer fits into the room, else without.
    The prompt is cut on its left (but for the start token) where generation would cut it.
    """
    head, body = row.prompt, row.completion
    if model.kind == "causal":
        room = max(model.context - max_new_tokens, model.context // 2)
        if len(head) > room:
            start = head[:1] if head[0] == model.tokenizer.bos_token_id else ()
            head = start + head[len(head) - room + len(start) :]
        max_new_tokens = min(max_new_tokens, model.context - len(head))
    return TokenizedExample(head, body[:max_new_tokens])


def sampled_prompts(model: Model, prompts: Iterable[str], max_new_tokens: int) -> list[tuple[int, ...]]:
    """Return prompts as sampling reads them, cut to leave room for an answer."""
    rows = [TokenizedExample(tuple(encode.prompt_ids(model.tokenizer, p, model.kind)), ()) for p in prompts]
    return [as_sampled(row, model, max_new_tokens).prompt for row in rows]


def answer_groups(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Completion]]) -> list[ExampleGroup]:
    """Return every prompt with all of its completions as a group."""
    return [
        tuple(TokenizedExample(tuple(p), c.tokens) for c in row) for p, row in zip(prompts, completions, strict=True)
    ]


def pair_stats(items: Sequence[ExampleGroup], ends: frozenset[int]) -> dict[str, float]:
    """Statistics of pairs of a real and a sampled answer: lengths and ends of both sides, share of equal pairs."""
    stats: dict[str, float] = {"pairs": len(items)}
    for side, name in enumerate(("real", "own")):
        stats |= {f"{k}_{name}": v for k, v in length_stats([item[side] for item in items], ends).items()}
    return stats | {"same": sum(a.completion == b.completion for a, b in items) / len(items)}


def length_stats(rows: Sequence[TokenizedExample], ends: frozenset[int]) -> dict[str, float]:
    """Mean length of answers in tokens, and the share that ends with an end token."""
    lengths, ended = [len(r.completion) for r in rows], [r.completion[-1] in ends for r in rows]
    return {"length": sum(lengths) / len(rows), "ended": sum(ended) / len(rows)}


def course(history: Sequence[Mapping[str, Any]], number: int, *columns: str) -> dict[str, float]:
    """Return columns of the history for the first and the last batch of a round; empty if it had no training."""
    rows = [row for row in history if row["round"] == number]
    ends = {"first": rows[0], "last": rows[-1]} if rows else {}
    return {f"{column}_{when}": row[column] for when, row in ends.items() for column in columns}


def _read_chunks(path: Path, count: int, size: int) -> list[Any]:
    """Read the finished chunks of a file, up to the first incomplete line, and truncate the file to them."""
    if not path.exists():
        return []
    lines, values = path.read_bytes().splitlines(keepends=True), []
    for line in lines[:count]:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n"):
            values.pop()
    finished = count if len(values) >= count else len(values) - len(values) % size
    os.truncate(path, sum(map(len, lines[:finished])))
    return values[:finished]


def _check_identity(root: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of new rounds into a folder, or check that the rounds in it have the same one."""
    expected = json.loads(json.dumps(files.plain(identity)))
    files.sweep(root)
    path = root / "identity.json"
    saved = files.read_json(path) if path.exists() else None
    if saved is None:
        files.write_json(path, expected)
    elif differing := [k for k in {**expected, **saved} if expected.get(k) != saved.get(k)]:
        raise UserError(
            f"{root}: rounds with another {', '.join(differing)} were begun here; "
            "finish them, choose another --out, or remove the folder"
        )
