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
        """JSON values 0 to `count`, made `size` (`CHUNK`) at a time by `make(start, stop)` and kept in `name.jsonl`.

        What a finished chunk of an earlier start holds is read and not made again. Of several processes each makes
        every so many-th chunk, all have all of them, and the first one writes.
        """
        size = size or CHUNK
        rank, world = distributed.rank(self.model.module)
        lies = spread.lies(self.model.module)  # then all take part in whatever it makes
        share = 1 if lies else world
        path = self.folder / f"{name}.jsonl" if self.folder and rank == 0 else None
        kept = _whole(path, count, size) if path else []
        kept = distributed.from_first(kept) if world > 1 else kept
        wave = size * share
        with Bar(f"round {self.number}: {name}", -(-count // wave), len(kept) // wave, quiet=rank > 0) as bar:
            for start in range(len(kept), count, wave):
                first = min(start + rank * size, count) if share > 1 else start
                fresh = make(first, min(first + size, count)) if first < count else []
                fresh = distributed.joined(fresh) if share > 1 else fresh
                if path:
                    with open(path, "a", encoding="utf-8") as out:
                        out.write("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in fresh))
                        out.flush()
                        os.fsync(out.fileno())
                kept += fresh
                bar.advance()
        return kept

    def samples(
        self, prompts: Sequence[Sequence[int]], n: int, how: SamplingConfig, name: str = "samples"
    ) -> list[list[Completion]]:
        """`n` completions of every prompt (token ids) by this round's model; they follow from its seed alone."""

        def make(start: int, stop: int) -> list[Any]:
            seeded = SamplingConfig(**vars(how) | {"seed": self.fit.seed * 1_000_003 + start})
            made = generate.completions(self.model, prompts[start:stop], n, seeded)
            return [[[c.text, list(c.tokens), c.logp] for c in row] for row in made]

        return [
            [Completion(text, tuple(tokens), logp) for text, tokens, logp in row]
            for row in self.chunks(name, len(prompts), make)
        ]

    def steered(
        self, prompts: Sequence[str], instructions: Sequence[str], n: int, how: SamplingConfig, name: str = "samples"
    ) -> list[list[Completion]]:
        """The same, every completion of a prompt behind one of the instructions, drawn at random."""
        drawn = np.random.default_rng([self.fit.seed, 94]).integers(len(instructions), size=(len(prompts), n))
        texts = [
            templates.introduced(prompt, f"{instructions[i]}\n\n", "user")
            for prompt, row in zip(prompts, drawn, strict=True)
            for i in row
        ]
        ids = [encode.prompt_ids(self.model.tokenizer, text, self.model.kind) for text in texts]
        flat = [row[0] for row in self.samples(ids, 1, how, name)]
        return [flat[at : at + n] for at in range(0, len(flat), n)]

    def mean_nll(self, rows: Sequence[TokenizedExample]) -> list[float]:
        """-log p of each row's labels under this round's model, mean over its tokens; kept in the folder as `nll`."""

        def measure(start: int, stop: int) -> list[Any]:
            total, count = forward.row_logp(self.model, rows[start:stop])
            return list((-total / count).tolist())

        return self.chunks("nll", len(rows), measure)

    def rewards(
        self, prompts: Sequence[str], completions: Sequence[Sequence[Completion]], reward: Reward, name: str = "rewards"
    ) -> Any:
        """The reward of every prompt's completions, `(prompts, n)`."""

        def make(start: int, stop: int) -> list[Any]:
            rows = completions[start:stop]
            asked = [p for p, row in zip(prompts[start:stop], rows, strict=True) for _ in row]
            values = iter(reward(asked, [c.text for row in rows for c in row]))
            return [[next(values) for _ in row] for row in rows]

        return np.array(self.chunks(name, len(completions), make), dtype=float)


@dataclass(frozen=True)
class RoundData:
    """What a round trains on.

    Args:
        items: groups of rows.
        stats: what they are like, for the findings.
        records: the same as records, for the user.
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
        """The rounds as a method's result: all records, each round's stats; `parts` replace or add to them."""
        made: dict[str, Any] = {"models": {"model": self.model}, "history": self.history, "cost": self.cost}
        stats = {"rounds": [{"round": n, **r.stats} for n, r in enumerate(self.data)]}
        return Result(**made | {"records": self.records or None, "findings": stats} | parts)

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
    """Run `count` rounds from `model`, which stays as it was.

    A LoRA adapter is merged when its model is promoted, so that the next round starts from plain weights, which are
    then its frozen opponent too. More rounds than before may be asked of the same folder; it goes on after the last.

    Args:
        model: where round 0 starts.
        count: how many rounds.
        collect: samples and makes training data; called in every round, also in finished ones, where all of it is read.
        train: trains a copy of `round.model` under `round.fit` (and with `hooks`) on what was collected.
        fit: of every round; rounds differ in its seed.
        name: of the folder.
        scheduled: rounds depend on how many there are (the option `rounds`): no more may be asked of a folder then.
        hooks: given to every training; their state goes from round to round.

    Raises:
        UserError: the folder holds rounds of another model, or with other options.
    """
    rank, world = distributed.rank(model.module)
    if engine := engines.given():
        engine.begin(model, fit)
    root = Path(fit.folder) / name if fit.folder else None
    if root:
        how = {k: v for k, v in vars(fit).items() if k not in MEMORY}
        call = {k: v for k, v in registry.identity().items() if k != "rounds" or scheduled}
        call |= {"engine": "vllm"} if engine else {}
        who = {**how, **call, "weights": model.fingerprint(), "hooks": len(hooks)}  # by all, over whom it may lie
        if rank == 0:
            _same(root, who)
    rounds_result: RoundsResult = RoundsResult(model)
    for number in range(count):
        here = root / f"round-{number}" if root else None
        if here:
            here.mkdir(parents=True, exist_ok=True)
        seeded = fit.replace(seed=fit.seed + APART * number, folder=str(here) if here else None)
        now = Round(number, rounds_result.model, seeded, here)
        with engines.collecting(now.model):
            rounds_result.data.append(collect(now))
        over = rounds_result.model.module.state_dict() if spread.lies(model.module) else None
        kept = checkpoint.load(here / "promoted", {}, over) if here else None
        if kept:
            promoted, state = kept
            rounds_result.model = copy_of(adapters.merged(model))
            rounds_result.model.module.load_state_dict(promoted)
            rounds_result.model.module.eval()
            for hook, was in zip(hooks, state.hooks, strict=True):
                hook.restore(was)
        else:
            taught = train(now, rounds_result.data[-1])
            rounds_result.model, state = adapters.merged(taught.model), taught.state
            if here and (rank == 0 or spread.lies(rounds_result.model.module)):
                told = State(number, {}, [h.state() for h in hooks], None, taught.history, state.tokens)
                checkpoint.save(here / "promoted", rounds_result.model.module.state_dict(), told, {})
        if world > 1:  # no process reads a round's folder while another writes there
            distributed.wait()
        if here and rank == 0:  # what training kept to go on from is of no use any more
            for stray in [p for p in here.iterdir() if p.is_dir() and p.name != "promoted"]:
                checkpoint.remove(stray)
        done = len(rounds_result.history)
        rounds_result.history += [{**row, "round": number, "step": done + row["step"]} for row in state.history]
        rounds_result.cost.tokens += 3 * state.tokens
        rounds_result.cost.flops += 6.0 * model.parameters * state.tokens
    return rounds_result


def turn(number: int, size: int, count: int, seed: int) -> list[int]:
    """Which `size` of `count` prompts a round has: they are gone through in shuffled passes, round after round."""
    return in_passes(number * size, size, count, (seed, 55))


def in_passes(first: int, size: int, count: int, key: Sequence[int]) -> list[int]:
    """`size` of `count` records from place `first` on, where all are gone through in shuffled passes.

    Pass e is shuffled by the key and e.
    """
    passes = range(first // count, -(-(first + max(size, 1)) // count))
    order = [int(i) for e in passes for i in np.random.default_rng([*key, e]).permutation(count)]
    return order[first - passes[0] * count :][:size]


def constant_rate(now: Round, fit: Fit, count: int) -> Fit:
    """A round's fit where the schedule of `fit` runs over all `count` rounds: the rate is constant within one."""
    warm = min(round(fit.warmup * count), count - 1) if fit.warmup_steps is None else fit.warmup_steps
    rate = fit.lr * schedules.factor(fit.schedule, now.number, count, warm)
    return now.fit.replace(lr=rate, schedule="constant", warmup_steps=0)


def phases(steps: int, first: int, every: int) -> list[tuple[int, int]]:
    """First step and length of every phase of a training: the `first` steps, then `every` at a time."""
    starts = [0, *range(first, steps, every)]
    return [(a, min(b, steps) - a) for a, b in zip(starts, [*starts[1:], steps], strict=True)]


def phase_fit(now: Round, fit: Fit, phases: Sequence[tuple[int, int]], warmup: int) -> Fit:
    """A round's fit where rounds are phases of one schedule: it has the rate of its first step throughout.

    The first phase warms up over `warmup` steps; one that is alone follows the schedule of `fit`.
    """
    first, length = phases[now.number]
    if len(phases) == 1:
        return now.fit.replace(steps=length)
    rate = fit.lr * schedules.factor(fit.schedule, first, sum(phases[-1]), warmup if first else 0)
    return now.fit.replace(steps=length, lr=rate, schedule="constant", warmup=0.0, warmup_steps=0 if first else warmup)


def untrained(model: Model) -> TrainResult:
    """A round that had nothing to teach: the model stays."""
    return TrainResult(model, [], Cost(), State())


def as_sampled(row: TokenizedExample, model: Model, max_new_tokens: int) -> TokenizedExample:
    """A demonstration as sampling could have given it: with the same prompt and cut where sampling stops.

    Both sides of a pair then end by one rule: the end token is there where the answer came to it within the room,
    and nowhere else. The prompt loses tokens on its left (but the start token) where generation's would.
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
    """Prompts as sampling reads them: cut where an answer needs the room."""
    rows = [TokenizedExample(tuple(encode.prompt_ids(model.tokenizer, p, model.kind)), ()) for p in prompts]
    return [as_sampled(row, model, max_new_tokens).prompt for row in rows]


def answer_groups(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Completion]]) -> list[ExampleGroup]:
    """Every prompt with all of its completions as a group."""
    return [
        tuple(TokenizedExample(tuple(p), c.tokens) for c in row) for p, row in zip(prompts, completions, strict=True)
    ]


def pair_stats(items: Sequence[ExampleGroup], ends: frozenset[int]) -> dict[str, float]:
    """Pairs of a real and an own answer: lengths and ends of both sides, share of equal ones."""
    stats: dict[str, float] = {"pairs": len(items)}
    for side, name in enumerate(("real", "own")):
        stats |= {f"{k}_{name}": v for k, v in length_stats([item[side] for item in items], ends).items()}
    return stats | {"same": sum(a.completion == b.completion for a, b in items) / len(items)}


def length_stats(rows: Sequence[TokenizedExample], ends: frozenset[int]) -> dict[str, float]:
    """Mean length of answers in tokens, and the share that comes to an end."""
    lengths, ended = [len(r.completion) for r in rows], [r.completion[-1] in ends for r in rows]
    return {"length": sum(lengths) / len(rows), "ended": sum(ended) / len(rows)}


def course(history: Sequence[Mapping[str, Any]], number: int, *columns: str) -> dict[str, float]:
    """Columns of the history in the first and the last batch of a round; empty where nothing was trained."""
    rows = [row for row in history if row["round"] == number]
    ends = {"first": rows[0], "last": rows[-1]} if rows else {}
    return {f"{column}_{when}": row[column] for when, row in ends.items() for column in columns}


def _whole(path: Path, count: int, size: int) -> list[Any]:
    """The finished chunks of a file, up to the first line that is not whole; the file is cut to them."""
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
    whole = count if len(values) >= count else len(values) - len(values) % size
    os.truncate(path, sum(map(len, lines[:whole])))
    return values[:whole]


def _same(root: Path, identity: Mapping[str, Any]) -> None:
    """Begin rounds in a folder, or go on with the same ones."""
    mine = json.loads(json.dumps(files.plain(identity)))
    files.sweep(root)
    path = root / "identity.json"
    theirs = files.read_json(path) if path.exists() else None
    if theirs is None:
        files.write_json(path, mine)
    elif differing := [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]:
        raise UserError(
            f"{root}: rounds with another {', '.join(differing)} were begun here; "
            "finish them, choose another --out, or remove the folder"
        )
