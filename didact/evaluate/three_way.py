"""Evaluate a model three ways: without demonstrations (ZSL), with them in its prompt (ICL), and after fine-tuning on
the same ones (FT), from the same weights, in the same wording.

Whatever can be evaluated three ways is a `Reader`: a language model here, linear attention in `linear_reader`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from didact.data import demonstrations, encode, words
from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.learn import subset
from didact.learn.subset import Tuning
from didact.models import adapters, forward, projections
from didact.models.model import Model, sharing
from didact.types import Demo, UserError

LORA_RANK = 8


class Episode(NamedTuple):
    """Demonstrations in order, and the queries after them."""

    demos: tuple[Any, ...]
    queries: tuple[Any, ...]

    def ordered(self, order: Sequence[int]) -> Episode:
        """The same episode with its demonstrations in another order."""
        return self._replace(demos=tuple(self.demos[i] for i in order))


class Reading(NamedTuple):
    """A model's answers to queries: log-probs of all tokens at the answer's position `(Q, V)`, log-probs of the labels
    normalised over the labels `(Q, C)`, and whether the likeliest label is right `(Q,)`."""

    tokens: Tensor
    labels: Tensor
    right: Tensor

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.double().mean())


@dataclass(frozen=True)
class Way:
    """A fine-tuning: which weights (`projections.parts`, or `lora`), and how."""

    which: str
    how: Tuning

    @classmethod
    def of(cls, text: str, how: Tuning) -> Way:
        """Parse `kv` or `v@middle/full`: with `/full` all demonstrations make one step."""
        which, slash, size = text.partition("/")
        if slash and size != "full":
            raise UserError(f"{text}: only /full (all demonstrations in one step) may follow the weights to train")
        return cls(which, dataclasses.replace(how, batch=None) if slash else how)


class Reader(Protocol):
    """Answers the queries of an episode three ways."""

    def without(self, episode: Episode) -> Reading:
        """Without its demonstrations."""

    def shown(self, episode: Episode) -> Reading:
        """With its demonstrations in the prompt."""

    def tuned(self, episode: Episode, way: Way) -> Iterator[Reading]:
        """Without them, after every epoch of fine-tuning on them; the model is restored in the end."""


# --- a language model -----------------------------------------------------------------------------------


class LanguageReader:
    """A causal language model that answers with one of a query's choices.

    Args:
        model: the model; fine-tuned in place and restored bit for bit.
        separator: between demonstrations, and before the query.
        loss: fine-tuning loss on the label alone or on the whole text of a demonstration.
    """

    def __init__(self, model: Model, separator: str = "\n", loss: Literal["label", "text"] = "label") -> None:
        if model.kind != "causal":
            raise UserError(
                f"this needs a causal model that reads demonstrations in its prompt, not a {model.kind} one"
            )
        self.model, self.separator, self.loss = model, separator, loss
        self.tokens_read = 0

    def without(self, episode: Episode) -> Reading:
        """ZSL."""
        return self.read(episode._replace(demos=()))

    def shown(self, episode: Episode) -> Reading:
        """ICL."""
        return self.read(episode)

    def tuned(self, episode: Episode, way: Way) -> Iterator[Reading]:
        """FT, then ZSL."""
        model = self.model
        if way.which == "lora":
            model = adapters.lora(sharing(model), LORA_RANK)
            parts = [projections.Part(n, p) for n, p in model.module.named_parameters() if p.requires_grad]
        else:
            parts = projections.parts(model, way.which)
        rows = self.lessons(episode)
        self.tokens_read += 3 * way.how.epochs * sum(r.size for r in rows)
        with contextlib.closing(subset.epochs(model, parts, rows, way.how)) as training:
            for _ in training:
                yield self.read(without_demos(episode), model)

    def lessons(self, episode: Episode) -> list[TokenizedExample]:
        """The demonstrations as rows to train on, one each."""
        pairs = [(demonstrations.question(d), d.completion) for d in episode.demos]
        rows = self._rows(pairs)
        if self.loss == "label":
            return rows
        sequences = [r.prompt + r.completion for r in rows]
        return [TokenizedExample(ids[:1], ids[1:]) for ids in sequences]

    def prompt(self, episode: Episode, query: Demo) -> str:
        """The prompt before the answer."""
        blocks = [demonstrations.written(d) for d in episode.demos]
        return demonstrations.assemble("", blocks, demonstrations.question(query), self.separator)

    def rows(self, episode: Episode) -> list[list[TokenizedExample]]:
        """For every query, its prompt with each of its choices."""
        sizes = [len(q.choices) for q in episode.queries]
        pairs = [(self.prompt(episode, q), c) for q in episode.queries for c in q.choices]
        rows = iter(self._rows(pairs))
        return [[next(rows) for _ in range(size)] for size in sizes]

    def _rows(self, pairs: Sequence[tuple[str, str]]) -> list[TokenizedExample]:
        model = self.model
        rows = encode.rows(model.tokenizer, pairs, model.kind, 1 << 30, end=False)
        if (longest := max(r.size for r in rows)) > model.context:
            raise UserError(
                f"a prompt has {longest} tokens, the model's context {model.context}: fewer or shorter shots"
            )
        return rows

    def read(self, episode: Episode, model: Model | None = None, apart: bool = False) -> Reading:
        """Evaluate the queries after the demonstrations; if `apart`, each in its own forward pass, no prefix shared."""
        rows, model = self.rows(episode), model or self.model
        first_tokens = [TokenizedExample(row[0].prompt, row[0].completion[:1]) for row in rows]
        self.tokens_read += sum(r.size for r in first_tokens)
        logp = distributions(model, first_tokens, apart)
        if all(len(r.completion) == 1 for row in rows for r in row):
            scores = torch.stack([logp[i, [r.completion[0] for r in row]] for i, row in enumerate(rows)]).double()
            means = scores
        else:
            flat = [r for row in rows for r in row]
            self.tokens_read += sum(r.size for r in flat)
            total, count = forward.row_logp(model, flat)
            scores, means = (x.view(len(rows), -1) for x in (total, total / count))
        gold = torch.tensor([demonstrations.gold(q) for q in episode.queries])
        return Reading(logp, scores.log_softmax(-1), means.argmax(-1) == gold)


def without_demos(episode: Episode) -> Episode:
    """The episode for a fine-tuned model: the queries without the demonstrations it has learnt from."""
    return episode._replace(demos=())


def distributions(model: Model, rows: Sequence[TokenizedExample], apart: bool = False) -> Tensor:
    """Log-probs of all tokens at the position of each row's single label token, `(rows, V)` in float32."""
    functions = {"logp": lambda logits, target: logits.float().log_softmax(-1)}
    if apart:
        with torch.no_grad():
            batches = (collate([row], model.kind, model.pad).to(model.device) for row in rows)
            return torch.cat([forward.tokens(model, batch, functions)["logp"].cpu() for batch in batches])
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for group, batch, values in forward.score(model, rows, functions):
        for line, row in enumerate(batch.row.tolist()):
            out[group[row]] = values["logp"][line].cpu()
    return torch.stack(out)


def labels(records: Sequence[Demo]) -> list[str]:
    """The distinct answers of records that have no choices of their own."""
    return words.distinct(sorted(r.completion for r in records if not r.choices))


def checked(records: Sequence[Demo], name: str, labels: Sequence[str] = ()) -> list[Demo]:
    """Records with choices: their own, or `labels`.

    Raises:
        UserError: there are none, a record has more or fewer than the first, or its answer is none of them.
    """
    out: list[Demo] = []
    for number, record in enumerate(records, 1):
        choices = demonstrations.options(record) or list(labels)
        record = dataclasses.replace(record, choices=choices)
        if len(choices) < 2:
            raise UserError(f"{name}: record {number}: field 'choices' must list two or more possible answers")
        if len(choices) != len(demonstrations.options(out[0]) if out else choices):
            raise UserError(
                f"{name}: record {number} has {len(choices)} choices, record 1 another number: run them separately"
            )
        try:
            demonstrations.gold(record)
        except UserError as error:
            raise UserError(f"{name}: record {number}: {error}") from None
        out.append(record)
    return out


def episodes(
    train: Sequence[Demo], test: Sequence[Demo], shots: int, queries: int, draws: int, seed: int
) -> list[tuple[Episode, Episode]]:
    """Draw demonstrations and queries, and for each draw other demonstrations before the same queries.

    If records name their `task`, a draw is of one task, the tasks in turn. No query is one of the demonstrations of
    either.

    Raises:
        UserError: a task has too few records.
    """
    tasks = list(dict.fromkeys(r.task for r in test))
    pools = {t: ([d for d in train if d.task == t], [d for d in test if d.task == t]) for t in tasks}
    out = []
    for draw in range(draws):
        task = tasks[draw % len(tasks)]
        pool, candidates = pools[task]
        rng = np.random.default_rng([seed, draw, 181])
        order = rng.permutation(len(pool)).tolist()
        query_order = rng.permutation(len(candidates)).tolist()
        first = [pool[i] for i in order[:shots]]
        demo_keys = {demonstrations.key(d) for d in first}
        chosen = [candidates[i] for i in query_order if demonstrations.key(candidates[i]) not in demo_keys][:queries]
        query_keys = {demonstrations.key(q) for q in chosen}
        others = [pool[i] for i in order[shots:] if demonstrations.key(pool[i]) not in query_keys]
        second = (others + first)[:shots]  # as many others as there are
        if len(first) < shots or not chosen:
            suffix = f" of the task '{task}'" if task is not None else ""
            raise UserError(
                f"{len(pool)} records of train{suffix}: too few for {shots} shots and a query that is not among them"
            )
        out.append((Episode(tuple(first), tuple(chosen)), Episode(tuple(second), tuple(chosen))))
    return out


def orders(count: int, size: int, seed: int) -> list[list[int]]:
    """`count` different orders of `size` items (fewer if there are no more), the given one first."""
    rng, out = np.random.default_rng([seed, 182]), [tuple(range(size))]
    for _ in range(20 * count):
        if len(out) < count and (order := tuple(rng.permutation(size).tolist())) not in out:
            out.append(order)
    return [list(o) for o in out]
