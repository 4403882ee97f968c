"""`didact prepare`: raw text of several sources to one corpus, filtered, without repeats and test items, and blended.

Documents go through files, one by one, in several passes; what is held of each is a MinHash and a few numbers.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from didact import files, folders
from didact.data import blending, contamination, formats, fuzzy, quality, read
from didact.data import words as forms
from didact.data.spool import Spool
from didact.progress import Bar
from didact.types import Demo, Text, UserError

AT_ONCE = 256  # documents that are scored together
BINS = 5  # of scores, in what is told
LEAST_AUC = 0.6  # of a filter that does more than draw lots
LEARNT = 20_000  # documents of each sort that the quality filter learns from, at most


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is asked for: sources in the order of trust, and what is done to them."""

    sources: Mapping[str, str]
    out: str
    trusted: Sequence[str] = ()
    alpha: float = 9.0
    min_words: int = 0
    similar: float = 0.8
    bands: int = 10
    rows: int = 10
    by: fuzzy.Measure = "union"
    tests: Sequence[str] = ()
    n: int = 13
    window: int = 200
    shortest: int = 200
    most_pieces: int = 10
    common: int = 10
    weights: Mapping[str, float] = field(default_factory=dict)
    tokens: float | None = None
    tokenizer: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False
    seed: int = 0


class Work:
    """The documents on their way: `there` are the numbers of those still in, `told` is what happened to each source."""

    def __init__(self, asked: Preparation, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self.spool = Spool(folder / "documents")
        self.names = list(asked.sources)
        self.told: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        self.there: list[int] = []
        self.dropped = Spool(folder / "dropped")
        self.more: dict[str, Any] = {}

    def drop(self, number: int, why: str, **more: Any) -> None:
        """Take a document out, and note why."""
        row = self.spool[number]
        self.told[row["source"]][why] += 1
        self.dropped.add({"id": row["id"], "source": row["source"], "why": why, **more})


def prepare_corpus(asked: Preparation) -> dict[str, Any]:
    """Write `corpus.jsonl`, `dropped.jsonl` and `prepared.json` into a folder; returns what the last says.

    Raises:
        UserError: a source or test cannot be read, names differ, a number is out of its bounds.
    """
    _check(asked)
    count = _counter(asked.tokenizer)
    with folders.at_work(asked.out, "corpus"), _beside(Path(asked.out)) as at:
        work = Work(asked, at)
        _read(work)
        if asked.trusted:
            _filter(work)
        if asked.similar:
            _deduplicate(work)
        clean = _decontaminate(work, count)
        told = _blend(work, clean, Path(asked.out))
        files.write_lines(Path(asked.out) / "dropped.jsonl", work.dropped)
        files.write_json(Path(asked.out) / "prepared.json", told)
    return told


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder for what is only on its way; what a killed run left of one goes first."""
    files.sweep(out, "work")
    place = out / f".didact-tmp-{secrets.token_hex(4)}-work"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check(asked: Preparation) -> None:
    for what, names in (("trusted", asked.trusted), ("weights", asked.weights)):
        if unknown := [name for name in names if name not in asked.sources]:
            raise UserError(f"option --{what}: no source '{unknown[0]}': there are {', '.join(asked.sources)}")
    if asked.trusted and set(asked.trusted) == set(asked.sources):
        raise UserError("option --trusted: all sources are trusted, and none is left to filter")
    if asked.weights and (missing := [name for name in asked.sources if name not in asked.weights]):
        raise UserError(
            f"option --weights: none for the source '{missing[0]}': give every source one (0 leaves it out)"
        )
    if not 0 <= asked.similar <= 1:
        raise UserError(f"option --similar: {asked.similar}: a share from 0 (off) to 1")
    for name in ("bands", "rows", "n", "shortest", "most_pieces", "common"):
        if getattr(asked, name) < 1:
            raise UserError(f"option --{name.replace('_', '-')}: {getattr(asked, name)}: must be 1 or more")
    if asked.alpha <= 0 or asked.window < 0 or asked.min_words < 0 or (asked.tokens is not None and asked.tokens <= 0):
        raise UserError("options --alpha and --tokens must be above 0, --window and --min-words not below")
    blending.Blend(list(asked.weights.values()) or [1.0])
    inputs = [(f"source {name}", Path(path).resolve()) for name, path in asked.sources.items()]
    folders.apart(Path(asked.out), inputs)


def _counter(tokenizer: str | None) -> Callable[[str], int]:
    """What the size of a text is: tokens, or words where there is no tokenizer."""
    if tokenizer is None:
        return lambda text: len(forms.tokens(text))
    from didact.models import opening

    try:
        opened = opening.opened("AutoTokenizer", tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"option --tokenizer: {tokenizer}: {str(error).splitlines()[0]}") from None
    return lambda text: len(opened(text, add_special_tokens=False)["input_ids"])


def _read(work: Work) -> None:
    for name, path in work.asked.sources.items():
        found = 0
        for place, row in formats.streamed(path):
            try:
                record = read.from_row(row, Text, work.asked.rename)
            except UserError as problem:
                if not work.asked.skip_bad:
                    raise UserError(f"{place}: {problem} (--skip-bad drops and counts such lines)") from None
                work.told[name]["bad"] += 1
                continue
            found += 1
            number = work.spool.add({"id": place, "source": name, "text": record.text})
            if work.asked.min_words and len(forms.tokens(record.text)) < work.asked.min_words:
                work.drop(number, "short")
            else:
                work.there.append(number)
        if not found:
            raise UserError(f"{path}: no text record in it")
        work.told[name]["read"] = found


def _filter(work: Work) -> None:
    """Draw the documents of sources that are not trusted by how much they are like those that are."""
    asked = work.asked
    sides: dict[bool, list[int]] = {True: [], False: []}
    for number in work.there:
        sides[work.spool[number]["source"] in asked.trusted].append(number)
    rng = np.random.default_rng([asked.seed, 67])
    learnt = {side: _sample(numbers, rng) for side, numbers in sides.items()}
    fold = {number: i % quality.FOLDS for side in learnt.values() for i, number in enumerate(side)}
    good, other = ([work.spool[n]["text"] for n in learnt[side]] for side in (True, False))
    classifier = quality.Classifier(good, other, asked.seed)
    draws, kept, bins = np.random.default_rng([asked.seed, 61]), set(sides[True]), np.zeros((BINS, 3))
    for part in _parts(sides[False], AT_ONCE):
        scores = np.zeros(len(part))
        for which in range(quality.FOLDS):
            own = [i for i, number in enumerate(part) if fold.get(number, 0) == which]
            scores[own] = classifier.score([work.spool[part[i]]["text"] for i in own], which)
        keep = contamination.drawn(scores, draws, asked.alpha)
        at = np.minimum((scores * BINS).astype(int), BINS - 1)
        np.add.at(
            bins, at, np.stack([np.ones(len(part)), keep, contamination.keep_probability(scores, asked.alpha)], 1)
        )
        for number, score, stays in zip(part, scores, keep, strict=True):
            if stays:
                kept.add(number)
            else:
                work.drop(number, "low quality", score=round(float(score), 4))
    work.there = [number for number in work.there if number in kept]
    shares = [
        {"score": [i / BINS, (i + 1) / BINS], "documents": int(all_), "kept": int(stayed), "expected": float(mean)}
        for i, (all_, stayed, mean) in enumerate(bins)
    ]
    work.more["quality"] = {"auc": classifier.auc, "learnt": [len(good), len(other)], "bins": shares}


def _sample(numbers: Sequence[int], rng: np.random.Generator) -> list[int]:
    if len(numbers) <= LEARNT:
        return list(numbers)
    return [numbers[i] for i in sorted(rng.choice(len(numbers), LEARNT, replace=False))]


def _parts(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[i : i + size] for i in range(0, len(numbers), size))


def _deduplicate(work: Work) -> None:
    """Keep of every group of near duplicates the document of the source that was given first."""
    asked = work.asked
    groups = fuzzy.Groups(lambda n: str(work.spool[n]["text"]), asked.similar, asked.bands, asked.rows, asked.by)
    with Bar("near duplicates", len(work.there), unit="documents") as bar:
        for number in work.there:
            groups.add(number, work.spool[number]["text"])
            bar.advance()
    gone, least, far = set[int](), 1.0, 0
    for first, members in groups.all().items():
        own = fuzzy.pieces(work.spool[first]["text"])
        for number in members[1:]:
            share = fuzzy.similarity(own, groups.pieces(number), asked.by)
            least, far = min(least, share), far + (share < asked.similar)
            work.drop(number, "duplicate", of=work.spool[first]["id"], similarity=round(share, 4))
            gone.add(number)
    work.there = [number for number in work.there if number not in gone]
    sizes = [len(members) for members in groups.all().values()]
    work.more["duplicates"] = {
        "groups": len(sizes), "largest": max(sizes, default=0), "compared": groups.compared,
        "least_similarity_to_kept": least if sizes else None, "joined_through_others": far,
        "found_at_threshold": fuzzy.probability(asked.similar, asked.bands, asked.rows),
    }  # fmt: skip


def _decontaminate(work: Work, count: Callable[[str], int]) -> Spool:
    """The pieces that are left of every document, with their sizes."""
    asked, clean = work.asked, Spool(work.folder / "clean")
    items = [item for path in asked.tests for item in test_items(path)]
    cutter = contamination.Cutter(
        items, n=asked.n, window=asked.window, shortest=asked.shortest, most_pieces=asked.most_pieces,
        common=asked.common, whole=min(8, asked.n), sentences=True,
    )  # fmt: skip
    for number in work.there if items else ():
        cutter.count(work.spool[number]["text"])
    places = 0
    for number in work.there:
        row = work.spool[number]
        pieces, cuts = cutter.cut(row["text"]) if items else ([row["text"]], 0)
        places += cuts
        work.told[row["source"]]["cut"] += bool(cuts and pieces)
        if not pieces:
            work.drop(number, "contaminated")
        for i, piece in enumerate(pieces):
            named = row["id"] + (f"#{i + 1}" if cuts else "")
            clean.add({"id": named, "source": row["source"], "text": piece, "size": count(piece)})
    if items:
        boilerplate = sum(c > asked.common for c in cutter.counts.values())
        work.more["contamination"] = {"items": len(items), "places": places, "boilerplate": boilerplate}
    return clean


def test_items(path: str) -> Iterator[str]:
    """What a file of tests asks and answers, whether its rows are texts or demonstrations."""
    for place, row in formats.rows(path):
        try:
            if isinstance(row, Mapping) and isinstance(row.get("text"), str):
                yield row["text"]
                continue
            one = read.from_row(row, Demo, unanswered=True)
        except UserError as problem:
            raise UserError(f"{place}: {problem}") from None
        yield f"{one.prompt} {one.completion}"


def _blend(work: Work, clean: Spool, out: Path) -> dict[str, Any]:
    """Write the corpus: pieces in random order within a source, sources by their weights."""
    asked, names = work.asked, work.names
    numbers: list[list[int]] = [[] for _ in names]
    sizes = [0.0] * len(names)
    for number, row in enumerate(clean):
        source = names.index(row["source"])
        numbers[source].append(number)
        sizes[source] += row["size"]
    given = [asked.weights.get(name, 0.0) for name in names] if asked.weights else sizes
    if empty := [n for n, w, own in zip(names, given, sizes, strict=True) if w and not own]:
        raise UserError(f"nothing of the source '{empty[0]}' is left: give it the weight 0, or filter less")
    if not sum(given):
        raise UserError("nothing is left of any source: filter less")
    blend = blending.Blend(given)
    written = Counter[str]()

    def chosen() -> Iterator[dict[str, Any]]:
        at, round_ = [0] * len(names), [0] * len(names)
        orders = [_shuffled(asked.seed, s, 0, own) for s, own in enumerate(numbers)]
        left = [s for s, own in enumerate(numbers) if own and given[s]]
        while left and (asked.tokens is None or sum(blend.taken) < asked.tokens):
            s = blend.next(left)
            if at[s] == len(orders[s]):
                if asked.tokens is None:  # nothing is repeated: by weights the corpus ends here
                    if asked.weights:
                        return
                    left.remove(s)
                    continue
                at[s], round_[s] = 0, round_[s] + 1
                orders[s] = _shuffled(asked.seed, s, round_[s], numbers[s])
            row = clean[orders[s][at[s]]]
            at[s] += 1
            blend.took(s, max(1, row["size"]))
            written[row["source"]] += 1
            yield {key: row[key] for key in ("text", "source", "id")}

    files.write_lines(out / "corpus.jsonl", chosen())
    taken = dict(zip(names, blend.taken, strict=True))
    epochs = blending.epochs(dict(zip(names, sizes, strict=True)), taken)
    warnings = [
        f"{name}: seen {times:.1f} times; more than {blending.MOST_EPOCHS} teach little more: give it less weight"
        for name, times in epochs.items()
        if times > blending.MOST_EPOCHS
    ]
    if (found := work.more.get("quality")) and found["auc"] < LEAST_AUC:
        warnings.append(
            f"the quality filter hardly tells the trusted documents from the others (AUC {found['auc']:.2f}): what it "
            "drops is nearly drawn by lot; leave --trusted out, or give it sources that differ"
        )
    rows = {
        name: {
            "path": asked.sources[name], **{why: work.told[name][why] for why in COUNTED}, "pieces": len(own),
            "size": size, "weight": weight, "taken": taken[name], "written": written[name], "epochs": epochs[name],
        }
        for name, own, size, weight in zip(names, numbers, sizes, blend.weights, strict=True)
    }  # fmt: skip
    return {
        "verb": "prepare", "unit": "tokens" if asked.tokenizer else "words", "sources": rows, **work.more,
        "warnings": warnings, "options": files.plain(asked), "files": ["corpus.jsonl", "dropped.jsonl"],
    }  # fmt: skip


COUNTED = ("read", "bad", "short", "low quality", "duplicate", "contaminated", "cut")


def _shuffled(seed: int, source: int, epoch: int, numbers: Sequence[int]) -> list[int]:
    return [numbers[i] for i in np.random.default_rng([seed, source, epoch]).permutation(len(numbers))]
