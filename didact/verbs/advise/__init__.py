"""`didact advise`: what a user's files are, what is wrong in them, and which methods can run on them.

Returns plain data. Imports no torch; with a model only its tokenizer and configuration are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from didact import catalogue
from didact.data import formats
from didact.verbs.advise import choices, contents, text
from didact.verbs.advise.choices import Choice
from didact.verbs.advise.contents import File, Overlap

LOOKED = 2_000  # records searched for near duplicates, over all files


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What `advise` found: `runs` are ranked methods, `compare` compares several of them.

    `context` is the model's in tokens, if a model was given; `searched` is how many records of each file were
    searched for near duplicates.
    """

    files: list[File]
    overlaps: list[Overlap]
    compare: Choice | None
    runs: list[Choice]
    lacking: list[Choice]
    context: int | None = None
    searched: int = 0


def advise(paths: Sequence[str], model: str | None = None, rename: Mapping[str, str] | None = None) -> Advice:
    """Inspect files and list the methods that can run on them.

    Args:
        paths: files, folders or hub references, as for `read`.
        model: a model folder or hub id; lengths are then counted in its tokens too.
        rename: the files' fields by the records' fields, as in --map.

    Raises:
        UserError: a file cannot be read at all, or the model has no tokenizer.
    """
    tokenizer, context = contents.tokenizer(model) if model else (None, None)
    parts = {part: None for path in paths for part in [f"{path}:{s}" for s in formats.splits_of(path)] or [str(path)]}
    opened = [contents.opened(path, rename or {}) for path in parts]
    searched = LOOKED // len(opened)
    near = contents.near_repeats([o.texts[:searched] for o in opened])
    files = [contents.described(o, len(near[i, i]), tokenizer, context) for i, o in enumerate(opened)]
    shared = [contents.overlap(opened[i], opened[j], near[i, j]) for j in range(len(opened)) for i in range(j)]
    ranked = choices.ranked([choices.choice(entry, files, model) for entry in catalogue.read().values()])
    runs = [c for c in ranked if not c.lacks]
    return Advice(
        files=files,
        overlaps=[o for o in shared if o is not None],
        compare=choices.compared(runs, {o.file.path: o for o in opened}, model),
        runs=runs,
        lacking=[c for c in ranked if c.lacks],
        context=context,
        searched=searched,
    )


def render(advice: Advice) -> str:
    """Return advice as text."""
    lines = [line for file in advice.files for line in text.of_file(file, advice.context, advice.searched)]
    lines += [text.of_overlap(overlap) for overlap in advice.overlaps]
    return "\n".join(lines + text.of_choices(advice.compare, advice.runs, advice.lacking))
