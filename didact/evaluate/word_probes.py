"""Is a word's class read from the word, or from its place in the sentence?

Probes are trained on hidden states of words in their sentences, and evaluated at the same places with the word replaced
by a token whose embedding was never trained (unseen), and by a word of another class (conflict). Their predictions for
the first come from the place alone; for the second they are either the place's class or the word's. Further probes are
trained on unseen words, which need not be encoded as seen ones are.

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
    """A word in its sentence: the record's index in the file, the words, the word's index, its class as a number."""

    record: int
    words: tuple[str, ...]
    at: int
    kind: int


class Rows(NamedTuple):
    """Token rows of every word in three conditions, the vectors' positions in each, and the other words' classes."""

    rows: dict[str, list[list[int]]]
    units: dict[str, list[list[tuple[int, ...]]]]
    other: Tensor
    fresh: list[int]


def words(
    texts: Sequence[Text], fields: tuple[str, str], classes: Sequence[str], limit: int, seed: int = 0
) -> tuple[list[Word], list[str]]:
    """Draw equally many words of every class, at most one per class and sentence; and return the classes.

    Raises:
        UserError: a record lacks words or tags, has more of one than of the other, or a class has no words.
    """
    by_class: dict[int, list[Word]] = {n: [] for n in range(len(classes))}
    for number, text in enumerate(texts, 1):
        sentence, tags = (_listed(text, field, number) for field in fields)
        if len(sentence) != len(tags):
            raise UserError(
                f"texts: record {number}: {len(sentence)} words in '{fields[0]}', {len(tags)} in '{fields[1]}'"
            )
        order = np.random.default_rng([seed, 72, number]).permutation(len(sentence))
        for n, name in enumerate(classes):
            position = next((int(i) for i in order if tags[i] == name), None)
            if position is not None:
                by_class[n].append(Word(number - 1, tuple(sentence), position, n))
    if lacking := [name for n, name in enumerate(classes) if not by_class[n]]:
        raise UserError(f"texts: no word is tagged {lacking[0]} in '{fields[1]}'; classes names those to probe")
    quota = min([len(group) for group in by_class.values()] + [max(1, limit // len(classes))])
    rng = np.random.default_rng([seed, 73])
    return [group[i] for group in by_class.values() for i in sorted(rng.permutation(len(group))[:quota])], list(classes)


def _listed(text: Text, field: str, number: int) -> list[str]:
    value = text.extra.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise UserError(f"texts: record {number}: field '{field}': must list the text's words, or a tag of each")
    return value


def lexicon(texts: Sequence[Text], fields: tuple[str, str], classes: Sequence[str]) -> list[list[str]]:
    """For every class its unambiguous words (always tagged with it), the more frequent half."""
    tags: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for text in texts:
        for word, tag in zip(text.extra[fields[0]], text.extra[fields[1]], strict=True):
            tags.setdefault(word, set()).add(tag)
            count[word] += 1
    unambiguous = [[w for w, _ in count.most_common() if tags[w] == {name}] for name in classes]
    return [group[: (len(group) + 1) // 2] for group in unambiguous]


def rows(
    model: Model, targets: Sequence[Word], lexicons: Sequence[Sequence[str]], seed: int = 0
) -> tuple[Rows, list[Word]]:
    """Token rows of words, and the words that fit the context; a causal model reads only up to the word.

    Raises:
        UserError: no other class has an unambiguous word, or no sentence fits.
    """
    rng = np.random.default_rng([seed, 74])
    start = _start(model)
    pieces = [_pieces(model, word.words) for word in targets]
    present = {t for row in pieces for piece in row for t in piece}
    size = model.embedded or len(model.tokenizer)
    fresh = [t for t in range(size - 1, -1, -1) if t not in present][:FRESH]
    out = Rows({}, {}, torch.zeros(0), fresh)
    fitting, other_kinds = [], []
    for word, ids in zip(targets, pieces, strict=True):
        kinds = [n for n in range(len(lexicons)) if n != word.kind and lexicons[n]]
        if not kinds:
            raise UserError("texts: no other class has a word that is always tagged with it, as the conflict needs")
        kind = int(rng.choice(kinds))
        replaced = _pieces(model, (*word.words[: word.at], str(rng.choice(lexicons[kind])), *word.words[word.at + 1 :]))
        conditions = {
            "seen": _row(model, start, ids, word.at, ids[word.at]),
            "unseen": _row(model, start, ids, word.at, [int(rng.choice(fresh))] if fresh else []),
            "conflict": _row(model, start, ids, word.at, replaced[word.at]),
        }
        if all(row and len(row) <= model.context for row, _ in conditions.values()):
            fitting.append(word)
            other_kinds.append(kind)
            for name, (row, unit) in conditions.items():
                out.rows.setdefault(name, []).append(row)
                out.units.setdefault(name, []).append([unit])
    if not fitting:
        raise UserError(f"texts: no sentence fits the model's context of {model.context} tokens")
    return out._replace(other=torch.tensor(other_kinds)), fitting


def _pieces(model: Model, sentence: Sequence[str]) -> list[list[int]]:
    return encode.pieces(model.tokenizer, [sentence[0], *(f" {word}" for word in sentence[1:])])


def _start(model: Model) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = (encode.pieces(model.tokenizer, ["a"], special=special)[0] for special in (False, True))
    return whole[: len(whole) - len(plain)]


def _row(
    model: Model, start: Sequence[int], ids: Sequence[Sequence[int]], at: int, word: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """A row with this word in its place, and the position of its last token."""
    if not word:
        return [], ()
    before = [*start, *(t for piece in ids[:at] for t in piece)]
    after = [] if model.kind == "causal" else [t for piece in ids[at + 1 :] for t in piece]
    return [*before, *word, *after], (len(before) + len(word) - 1,)


def examine(
    model: Model,
    targets: Sequence[Word],
    conditions: Rows,
    config: ProbeConfig,
    layers: Sequence[int] | None,
    seed: int = 0,
) -> dict[int, dict[str, dict[str, float]]]:
    """Accuracy of probes at every layer, with intervals over records.

    `seen` and its `control` task and `selectivity`; `unseen`; `trained_unseen`: a probe trained on unseen words;
    `place` and `word`: conflicts predicted as the class of the place, and of the word.
    """
    stores = []
    for name, token_rows in conditions.rows.items():
        with resets.redrawn(model, conditions.fresh if name == "unseen" else [], "matched", seed):
            stores.append(hidden.record(model, token_rows, conditions.units[name], layers))
    n = len(targets)
    labels = torch.tensor([word.kind for word in targets])
    control = probes.control(labels, [word.words[word.at] for word in targets], seed)
    parts = probes.split([word.record for word in targets], config.test, config.valid, seed)
    test = torch.cat([parts.test + n * condition for condition in range(len(stores))])
    units = [str(targets[i].record) for i in parts.test.tolist()]
    unseen = list(conditions.rows).index("unseen")
    tasks = {"tag": labels.repeat(len(stores)), "control": control.repeat(len(stores))}
    out = {}
    for layer in stores[0].layers:

        def read(index: Tensor, layer: int = layer) -> Tensor:
            vectors = torch.zeros(len(index), stores[0].widths[stores[0].layers.index(layer)])
            for condition, store in enumerate(stores):
                mask = index // n == condition
                vectors[mask] = store.take(index[mask] - n * condition, layer)
            return vectors

        predictions = probes.classify(read, tasks, parts._replace(test=test), config, seed)
        unseen_parts = Parts(*(part + n * unseen for part in parts))
        own_predictions = probes.classify(read, {"tag": tasks["tag"]}, unseen_parts, config, seed)["tag"]
        tag = dict(zip(conditions.rows, predictions["tag"].split(len(parts.test)), strict=True))
        true = labels[parts.test]
        control_right = predictions["control"][: len(true)] == control[parts.test]
        shares: dict[str, NDArray[np.float64]] = {
            name: values.double().numpy()
            for name, values in {
                "seen": tag["seen"] == true, "control": control_right, "unseen": tag["unseen"] == true,
                "trained_unseen": own_predictions == true,
                "place": tag["conflict"] == true, "word": tag["conflict"] == conditions.other[parts.test],
            }.items()
        }  # fmt: skip
        out[layer] = {name: statistics.record_interval(v, units)._asdict() for name, v in shares.items()}
        gap = statistics.record_difference(shares["seen"], shares["control"], units)[0]
        out[layer]["selectivity"] = gap._asdict()
    return out
