"""`didact prepare`: turn raw text of several sources into one corpus: filter, deduplicate, remove test items, blend.

Documents pass through files one by one, several times; memory holds a MinHash and a few numbers of each.
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

AT_ONCE = 256  # documents scored in one batch
BINS = 5  # of scores, in the report
LEAST_AUC = 0.6  # of a filter that is better than chance
LEARNT = 20_000  # most documents of each class that the quality filter is trained on


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A request: sources, best first, and what is done to them."""

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
    """Documents between passes: `remaining` are numbers of those not dropped, `counts` what happened in each source."""

    def __init__(self, spec: Preparation, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.spool = Spool(folder / "documents")
        self.names = list(spec.sources)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        self.remaining: list[int] = []
        self.dropped = Spool(folder / "dropped")
        self.findings: dict[str, Any] = {}

    def drop(self, number: int, reason: str, **details: Any) -> None:
        """Drop a document, and record why."""
        row = self.spool[number]
        self.counts[row["source"]][reason] += 1
        self.dropped.add({"id": row["id"], "source": row["source"], "why": reason, **details})


def prepare_corpus(spec: Preparation) -> dict[str, Any]:
    """Write `corpus.jsonl`, `dropped.jsonl` and `prepared.json` into a folder; return the content of the last.

    Raises:
        UserError: a source or test cannot be read, a name is unknown, a number is out of its bounds.
    """
    _check(spec)
    count = _counter(spec.tokenizer)
    with folders.at_work(spec.out, "corpus"), _work_folder(Path(spec.out)) as folder:
        work = Work(spec, folder)
        _read(work)
        if spec.trusted:
            _filter(work)
        if spec.similar:
            _deduplicate(work)
        clean = _decontaminate(work, count)
        summary = _blend(work, clean, Path(spec.out))
        files.write_lines(Path(spec.out) / "dropped.jsonl", work.dropped)
        files.write_json(Path(spec.out) / "prepared.json", summary)
    return summary


@contextlib.contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Yield a folder for intermediate files; remove those that a killed run left."""
    files.sweep(out, "work")
    place = out / f".didact-tmp-{secrets.token_hex(4)}-work"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check(spec: Preparation) -> None:
    for option, names in (("trusted", spec.trusted), ("weights", spec.weights)):
        if unknown := [name for name in names if name not in spec.sources]:
            raise UserError(f"option --{option}: no source '{unknown[0]}': there are {', '.join(spec.sources)}")
    if spec.trusted and set(spec.trusted) == set(spec.sources):
        raise UserError("option --trusted: all sources are trusted, and none is left to filter")
    if spec.weights and (missing := [name for name in spec.sources if name not in spec.weights]):
        raise UserError(
            f"option --weights: none for the source '{missing[0]}': give every source one (0 leaves it out)"
        )
    if not 0 <= spec.similar <= 1:
        raise UserError(f"option --similar: {spec.similar}: must be in [0, 1] (0: off)")
    for name in ("bands", "rows", "n", "shortest", "most_pieces", "common"):
        if getattr(spec, name) < 1:
            raise UserError(f"option --{name.replace('_', '-')}: {getattr(spec, name)}: must be 1 or more")
    if spec.alpha <= 0 or spec.window < 0 or spec.min_words < 0 or (spec.tokens is not None and spec.tokens <= 0):
        raise UserError("options --alpha and --tokens must be above 0, --window and --min-words 0 or more")
    blending.Blend(list(spec.weights.values()) or [1.0])
    inputs = [(f"source {name}", Path(path).resolve()) for name, path in spec.sources.items()]
    folders.check_separate(Path(spec.out), inputs)


def _counter(tokenizer: str | None) -> Callable[[str], int]:
    """Return the function that measures a text: in tokens, or in words without a tokenizer."""
    if tokenizer is None:
        return lambda text: len(forms.tokens(text))
    from didact.models import opening

    try:
        opened = opening.open_pretrained("AutoTokenizer", tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"option --tokenizer: {tokenizer}: {str(error).splitlines()[0]}") from None
    return lambda text: len(opened(text, add_special_tokens=False)["input_ids"])


def _read(work: Work) -> None:
    for name, path in work.spec.sources.items():
        count = 0
        for place, row in formats.streamed(path):
            try:
                record = read.from_row(row, Text, work.spec.rename)
            except UserError as problem:
                if not work.spec.skip_bad:
                    raise UserError(f"{place}: {problem} (--skip-bad drops and counts such lines)") from None
                work.counts[name]["bad"] += 1
                continue
            count += 1
            number = work.spool.add({"id": place, "source": name, "text": record.text})
            if work.spec.min_words and len(forms.tokens(record.text)) < work.spec.min_words:
                work.drop(number, "short")
            else:
                work.remaining.append(number)
        if not count:
            raise UserError(f"{path}: no text record in it")
        work.counts[name]["read"] = count


def _filter(work: Work) -> None:
    """Keep documents of the other sources at random, the more likely the more they are like the trusted ones."""
    spec = work.spec
    sides: dict[bool, list[int]] = {True: [], False: []}
    for number in work.remaining:
        sides[work.spool[number]["source"] in spec.trusted].append(number)
    rng = np.random.default_rng([spec.seed, 67])
    learnt = {side: _sample(numbers, rng) for side, numbers in sides.items()}
    fold = {number: i % quality.FOLDS for side in learnt.values() for i, number in enumerate(side)}
    trusted_texts, other_texts = ([work.spool[n]["text"] for n in learnt[side]] for side in (True, False))
    classifier = quality.Classifier(trusted_texts, other_texts, spec.seed)
    draws, survivors, bins = np.random.default_rng([spec.seed, 61]), set(sides[True]), np.zeros((BINS, 3))
    for part in _batches(sides[False], AT_ONCE):
        scores = np.zeros(len(part))
        for held_fold in range(quality.FOLDS):
            indices = [i for i, number in enumerate(part) if fold.get(number, 0) == held_fold]
            scores[indices] = classifier.score([work.spool[part[i]]["text"] for i in indices], held_fold)
        keep = contamination.drawn(scores, draws, spec.alpha)
        bin_index = np.minimum((scores * BINS).astype(int), BINS - 1)
        np.add.at(
            bins, bin_index, np.stack([np.ones(len(part)), keep, contamination.keep_probability(scores, spec.alpha)], 1)
        )
        for number, score, is_kept in zip(part, scores, keep, strict=True):
            if is_kept:
                survivors.add(number)
            else:
                work.drop(number, "low quality", score=round(float(score), 4))
    work.remaining = [number for number in work.remaining if number in survivors]
    shares = [
        {"score": [i / BINS, (i + 1) / BINS], "documents": int(total), "kept": int(kept), "expected": float(mean)}
        for i, (total, kept, mean) in enumerate(bins)
    ]
    work.findings["quality"] = {"auc": classifier.auc, "learnt": [len(trusted_texts), len(other_texts)], "bins": shares}


def _sample(numbers: Sequence[int], rng: np.random.Generator) -> list[int]:
    if len(numbers) <= LEARNT:
        return list(numbers)
    return [numbers[i] for i in sorted(rng.choice(len(numbers), LEARNT, replace=False))]


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[i : i + size] for i in range(0, len(numbers), size))


def _deduplicate(work: Work) -> None:
    """Keep of every group of near duplicates the first document, in the order of the sources."""
    spec = work.spec
    groups = fuzzy.Groups(lambda n: str(work.spool[n]["text"]), spec.similar, spec.bands, spec.rows, spec.by)
    with Bar("near duplicates", len(work.remaining), unit="documents") as bar:
        for number in work.remaining:
            groups.add(number, work.spool[number]["text"])
            bar.advance()
    dropped, lowest, indirect = set[int](), 1.0, 0
    for first, members in groups.all().items():
        pieces = fuzzy.pieces(work.spool[first]["text"])
        for number in members[1:]:
            share = fuzzy.similarity(pieces, groups.pieces(number), spec.by)
            lowest, indirect = min(lowest, share), indirect + (share < spec.similar)
            work.drop(number, "duplicate", of=work.spool[first]["id"], similarity=round(share, 4))
            dropped.add(number)
    work.remaining = [number for number in work.remaining if number not in dropped]
    sizes = [len(members) for members in groups.all().values()]
    work.findings["duplicates"] = {
        "groups": len(sizes), "largest": max(sizes, default=0), "compared": groups.compared,
        "least_similarity_to_kept": lowest if sizes else None, "joined_through_others": indirect,
        "found_at_threshold": fuzzy.probability(spec.similar, spec.bands, spec.rows),
    }  # fmt: skip


def _decontaminate(work: Work, count: Callable[[str], int]) -> Spool:
    """Cut test items out of the documents; return the remaining pieces, with their sizes."""
    spec, clean = work.spec, Spool(work.folder / "clean")
    items = [item for path in spec.tests for item in test_items(path)]
    cutter = contamination.Cutter(
        items, n=spec.n, window=spec.window, shortest=spec.shortest, most_pieces=spec.most_pieces,
        common=spec.common, whole=min(8, spec.n), sentences=True,
    )  # fmt: skip
    for number in work.remaining if items else ():
        cutter.count(work.spool[number]["text"])
    places = 0
    for number in work.remaining:
        row = work.spool[number]
        pieces, cuts = cutter.cut(row["text"]) if items else ([row["text"]], 0)
        places += cuts
        work.counts[row["source"]]["cut"] += bool(cuts and pieces)
        if not pieces:
            work.drop(number, "contaminated")
        for i, piece in enumerate(pieces):
            piece_id = row["id"] + (f"#{i + 1}" if cuts else "")
            clean.add({"id": piece_id, "source": row["source"], "text": piece, "size": count(piece)})
    if items:
        boilerplate = sum(c > spec.common for c in cutter.counts.values())
        work.findings["contamination"] = {"items": len(items), "places": places, "boilerplate": boilerplate}
    return clean


def test_items(path: str) -> Iterator[str]:
    """Yield the items of a test file as text, whether its rows are texts or demonstrations."""
    for place, row in formats.rows(path):
        try:
            if isinstance(row, Mapping) and isinstance(row.get("text"), str):
                yield row["text"]
                continue
            demo = read.from_row(row, Demo, unanswered=True)
        except UserError as problem:
            raise UserError(f"{place}: {problem}") from None
        yield f"{demo.prompt} {demo.completion}"


def _blend(work: Work, clean: Spool, out: Path) -> dict[str, Any]:
    """Write the corpus: pieces in random order within a source, sources by their weights."""
    spec, names = work.spec, work.names
    numbers: list[list[int]] = [[] for _ in names]
    sizes = [0.0] * len(names)
    for number, row in enumerate(clean):
        source = names.index(row["source"])
        numbers[source].append(number)
        sizes[source] += row["size"]
    weights = [spec.weights.get(name, 0.0) for name in names] if spec.weights else sizes
    if empty := [n for n, w, own in zip(names, weights, sizes, strict=True) if w and not own]:
        raise UserError(f"nothing is left of the source '{empty[0]}': give it the weight 0, or filter less")
    if not sum(weights):
        raise UserError("nothing is left of any source: filter less")
    blend = blending.Blend(weights)
    written = Counter[str]()

    def chosen() -> Iterator[dict[str, Any]]:
        positions, rounds = [0] * len(names), [0] * len(names)
        orders = [_shuffled(spec.seed, s, 0, own) for s, own in enumerate(numbers)]
        active = [s for s, own in enumerate(numbers) if own and weights[s]]
        while active and (spec.tokens is None or sum(blend.taken) < spec.tokens):
            s = blend.next(active)
            if positions[s] == len(orders[s]):
                if spec.tokens is None:  # no repeats: with weights, the corpus ends here
                    if spec.weights:
                        return
                    active.remove(s)
                    continue
                positions[s], rounds[s] = 0, rounds[s] + 1
                orders[s] = _shuffled(spec.seed, s, rounds[s], numbers[s])
            row = clean[orders[s][positions[s]]]
            positions[s] += 1
            blend.count_taken(s, max(1, row["size"]))
            written[row["source"]] += 1
            yield {key: row[key] for key in ("text", "source", "id")}

    files.write_lines(out / "corpus.jsonl", chosen())
    taken = dict(zip(names, blend.taken, strict=True))
    epochs = blending.epochs(dict(zip(names, sizes, strict=True)), taken)
    warnings = [
        f"{name}: seen {times:.1f} times; more than {blending.MOST_EPOCHS} add little: give it less weight"
        for name, times in epochs.items()
        if times > blending.MOST_EPOCHS
    ]
    if (quality_report := work.findings.get("quality")) and quality_report["auc"] < LEAST_AUC:
        warnings.append(
            f"the quality filter hardly tells the trusted documents from the others (AUC {quality_report['auc']:.2f}): "
            "it drops almost at random; leave --trusted out, or give it sources that differ"
        )
    rows = {
        name: {
            "path": spec.sources[name], **{reason: work.counts[name][reason] for reason in COUNTED}, "pieces": len(own),
            "size": size, "weight": weight, "taken": taken[name], "written": written[name], "epochs": epochs[name],
        }
        for name, own, size, weight in zip(names, numbers, sizes, blend.weights, strict=True)
    }  # fmt: skip
    return {
        "verb": "prepare", "unit": "tokens" if spec.tokenizer else "words", "sources": rows, **work.findings,
        "warnings": warnings, "options": files.plain(spec), "files": ["corpus.jsonl", "dropped.jsonl"],
    }  # fmt: skip


COUNTED = ("read", "bad", "short", "low quality", "duplicate", "contaminated", "cut")


def _shuffled(seed: int, source: int, epoch: int, numbers: Sequence[int]) -> list[int]:
    return [numbers[i] for i in np.random.default_rng([seed, source, epoch]).permutation(len(numbers))]
