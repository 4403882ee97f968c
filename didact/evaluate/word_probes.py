"""What is a word's class read from: the word, or the place it stands in?

Probes are trained on hidden states of words in their sentences, and asked about the same places with the word put in
place by a token whose embedding was never trained (unseen), and by a word of another class (conflict). What they say
of the first comes from the place alone; of the second either the place's class or the word's. Beside them stand probes
that are trained on unseen words, which need not be read as seen ones are.

Source: Anand et al. 2024, arXiv:2406.00053, its study of natural text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from didact.data import encode
from didact.evaluate import probes, statistics
from didact.evaluate.probes import Parts, ProbeConfig
from didact.learn import resets
from didact.models import hidden
from didact.models.model import Model
from didact.types import Text, UserError

FRESH = 16  # tokens that stand for unseen words


class Word(NamedTuple):
    """A word in its sentence: the record's place in the file, the words, which of them, its class as a number."""

    record: int
    words: tuple[str, ...]
    at: int
    kind: int


class Rows(NamedTuple):
    """Token rows of every word in three conditions, the places of the vectors in each, and the other words' classes."""

    rows: dict[str, list[list[int]]]
    units: dict[str, list[list[tuple[int, ...]]]]
    other: Tensor
    fresh: list[int]


def words(
    texts: Sequence[Text], fields: tuple[str, str], classes: Sequence[str], most: int, seed: int = 0
) -> tuple[list[Word], list[str]]:
    """As many words of every class, at most one of a class in a sentence; and of the other words each one's class.

    Raises:
        UserError: a record lacks its words or tags, has more of one than of the other, or a class has no words.
    """
    found: dict[int, list[Word]] = {n: [] for n in range(len(classes))}
    for number, text in enumerate(texts, 1):
        said, tags = (_listed(text, field, number) for field in fields)
        if len(said) != len(tags):
            raise UserError(f"texts: record {number}: {len(said)} words in '{fields[0]}', {len(tags)} in '{fields[1]}'")
        order = np.random.default_rng([seed, 72, number]).permutation(len(said))
        for n, name in enumerate(classes):
            at = next((int(i) for i in order if tags[i] == name), None)
            if at is not None:
                found[n].append(Word(number - 1, tuple(said), at, n))
    if lacking := [name for n, name in enumerate(classes) if not found[n]]:
        raise UserError(f"texts: no word is tagged {lacking[0]} in '{fields[1]}'; classes names those to probe")
    each = min([len(own) for own in found.values()] + [max(1, most // len(classes))])
    draw = np.random.default_rng([seed, 73])
    return [own[i] for own in found.values() for i in sorted(draw.permutation(len(own))[:each])], list(classes)


def _listed(text: Text, field: str, number: int) -> list[str]:
    value = text.extra.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise UserError(f"texts: record {number}: field '{field}': must list the text's words, or a tag of each")
    return value


def lexicon(texts: Sequence[Text], fields: tuple[str, str], classes: Sequence[str]) -> list[list[str]]:
    """Of every class the words that are always of it, the most frequent half."""
    tags: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for text in texts:
        for word, tag in zip(text.extra[fields[0]], text.extra[fields[1]], strict=True):
            tags.setdefault(word, set()).add(tag)
            count[word] += 1
    known = [[w for w, _ in count.most_common() if tags[w] == {name}] for name in classes]
    return [own[: (len(own) + 1) // 2] for own in known]


def rows(model: Model, asked: Sequence[Word], known: Sequence[Sequence[str]], seed: int = 0) -> tuple[Rows, list[Word]]:
    """Token rows of words, and those words that fit the context; a causal model reads no more than up to the word.

    Raises:
        UserError: no class has a word that is never of another, or none of the sentences fits.
    """
    draw = np.random.default_rng([seed, 74])
    start = _start(model)
    pieces = [_pieces(model, word.words) for word in asked]
    there = {t for row in pieces for piece in row for t in piece}
    size = model.embedded or len(model.tokenizer)
    fresh = [t for t in range(size - 1, -1, -1) if t not in there][:FRESH]
    out = Rows({}, {}, torch.zeros(0), fresh)
    kept, others = [], []
    for word, ids in zip(asked, pieces, strict=True):
        choice = [n for n in range(len(known)) if n != word.kind and known[n]]
        if not choice:
            raise UserError("texts: no other class has a word that is always of it: the conflict cannot be made")
        other = int(draw.choice(choice))
        instead = _pieces(model, (*word.words[: word.at], str(draw.choice(known[other])), *word.words[word.at + 1 :]))
        made = {
            "seen": _row(model, start, ids, word.at, ids[word.at]),
            "unseen": _row(model, start, ids, word.at, [int(draw.choice(fresh))] if fresh else []),
            "conflict": _row(model, start, ids, word.at, instead[word.at]),
        }
        if all(row and len(row) <= model.context for row, _ in made.values()):
            kept.append(word)
            others.append(other)
            for name, (row, unit) in made.items():
                out.rows.setdefault(name, []).append(row)
                out.units.setdefault(name, []).append([unit])
    if not kept:
        raise UserError(f"texts: no sentence fits the model's context of {model.context} tokens")
    return out._replace(other=torch.tensor(others)), kept


def _pieces(model: Model, said: Sequence[str]) -> list[list[int]]:
    return encode.pieces(model.tokenizer, [said[0], *(f" {word}" for word in said[1:])])


def _start(model: Model) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = (encode.pieces(model.tokenizer, ["a"], special=special)[0] for special in (False, True))
    return whole[: len(whole) - len(plain)]


def _row(
    model: Model, start: Sequence[int], ids: Sequence[Sequence[int]], at: int, word: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """A row with this word in its place, and where its last token stands."""
    if not word:
        return [], ()
    before = [*start, *(t for piece in ids[:at] for t in piece)]
    after = [] if model.kind == "causal" else [t for piece in ids[at + 1 :] for t in piece]
    return [*before, *word, *after], (len(before) + len(word) - 1,)


def examine(
    model: Model, asked: Sequence[Word], given: Rows, config: ProbeConfig, layers: Sequence[int] | None, seed: int = 0
) -> dict[int, dict[str, dict[str, float]]]:
    """What probes of every layer say, as shares with intervals over records.

    `seen` and its `control` task and `selectivity`; `unseen`; `trained_unseen`: the same of a probe trained on unseen
    words; `place` and `word`: the class that the conflict's place, and its word, have.
    """
    stores = []
    for name, own in given.rows.items():
        with resets.redrawn(model, given.fresh if name == "unseen" else [], "matched", seed):
            stores.append(hidden.record(model, own, given.units[name], layers))
    n = len(asked)
    labels = torch.tensor([word.kind for word in asked])
    control = probes.control(labels, [word.words[word.at] for word in asked], seed)
    parts = probes.split([word.record for word in asked], config.test, config.valid, seed)
    test = torch.cat([parts.test + n * place for place in range(len(stores))])
    units = [str(asked[i].record) for i in parts.test.tolist()]
    unseen = list(given.rows).index("unseen")
    tasks = {"tag": labels.repeat(len(stores)), "control": control.repeat(len(stores))}
    out = {}
    for layer in stores[0].layers:

        def read(index: Tensor, layer: int = layer) -> Tensor:
            made = torch.zeros(len(index), stores[0].widths[stores[0].layers.index(layer)])
            for place, store in enumerate(stores):
                here = index // n == place
                made[here] = store.take(index[here] - n * place, layer)
            return made

        said = probes.classify(read, tasks, parts._replace(test=test), config, seed)
        alone = Parts(*(part + n * unseen for part in parts))
        by_own = probes.classify(read, {"tag": tasks["tag"]}, alone, config, seed)["tag"]
        tag = dict(zip(given.rows, said["tag"].split(len(parts.test)), strict=True))
        true = labels[parts.test]
        by_control = said["control"][: len(true)] == control[parts.test]
        shares: dict[str, NDArray[np.float64]] = {
            name: values.double().numpy()
            for name, values in {
                "seen": tag["seen"] == true, "control": by_control, "unseen": tag["unseen"] == true,
                "trained_unseen": by_own == true,
                "place": tag["conflict"] == true, "word": tag["conflict"] == given.other[parts.test],
            }.items()
        }  # fmt: skip
        out[layer] = {name: statistics.record_interval(v, units)._asdict() for name, v in shares.items()}
        gap = statistics.record_difference(shares["seen"], shares["control"], units)[0]
        out[layer]["selectivity"] = gap._asdict()
    return out
