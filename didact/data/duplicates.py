"""Exact search for near-duplicate texts, without torch or numpy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from didact.data import words

LETTERS = 1_000  # characters of a text that are compared
GRAM = 5  # characters of an n-gram; words would suit only some languages
SHARED = 10  # n-grams two candidates must share among their rarest; both more and fewer are slower


def near_pairs(texts: Sequence[str], share: float) -> list[tuple[int, int]]:
    """Pairs `(earlier, later)` of texts whose sets of character 5-grams A, B have `|A & B| / |A | B| >= share`.

    Exact, and fast where most n-grams are rare. Such a pair has `share |A|` n-grams in common, so that
    `SHARED` of them are among the `(1 - share) |A| + SHARED` rarest of A, and likewise of B: only texts
    that share these are compared (prefix filtering, Chaudhuri et al., 2006, with a longer prefix).
    Identical texts are left out.
    """
    normalised = [" ".join(words.folded(text.casefold()).split())[:LETTERS] for text in texts]
    pieces = [{t[i : i + GRAM] for i in range(max(1, len(t) - GRAM + 1))} for t in normalised]
    counts = Counter(piece for part in pieces for piece in part)
    index: dict[str, list[int]] = defaultdict(list)
    out = []
    for j, own in enumerate(pieces):
        required = math.ceil(share * len(own) - 1e-9)
        rarest = sorted(own, key=lambda piece: (counts[piece], piece))[: len(own) - required + SHARED]
        shared = Counter(i for piece in rarest for i in index[piece])
        for i in sorted(i for i, n in shared.items() if n >= min(SHARED, required)):
            common = len(own & pieces[i])
            if common >= share * (len(own) + len(pieces[i]) - common) - 1e-9 and texts[i] != texts[j]:
                out.append((i, j))
        for piece in rarest:
            index[piece].append(j)
    return out
