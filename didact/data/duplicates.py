"""Texts that nearly repeat each other, exactly and without torch or numpy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from didact.data import words

LETTERS = 1_000  # of a text that are compared
GRAM = 5  # letters that are one feature: words would do for some languages only
SHARED = 10  # rare features two near duplicates must both have among their rarest; more is slower, fewer too


def near_pairs(texts: Sequence[str], share: float) -> list[tuple[int, int]]:
    """Pairs of texts whose sets of five-letter pieces A, B have `|A & B| / |A | B| >= share`, `(earlier, later)`.

    Exact, and fast where most pieces are rare. Such a pair has `share |A|` pieces in common, so that
    `SHARED` of them are among the `(1 - share) |A| + SHARED` rarest of A, and likewise of B: only texts
    that meet there are compared (prefix filtering, Chaudhuri et al., 2006, with a longer prefix).
    Texts that are the same word for word are left out.
    """
    shaped = [" ".join(words.folded(text.casefold()).split())[:LETTERS] for text in texts]
    pieces = [{t[i : i + GRAM] for i in range(max(1, len(t) - GRAM + 1))} for t in shaped]
    counts = Counter(piece for part in pieces for piece in part)
    index: dict[str, list[int]] = defaultdict(list)
    out = []
    for j, own in enumerate(pieces):
        least = math.ceil(share * len(own) - 1e-9)
        rarest = sorted(own, key=lambda piece: (counts[piece], piece))[: len(own) - least + SHARED]
        met = Counter(i for piece in rarest for i in index[piece])
        for i in sorted(i for i, n in met.items() if n >= min(SHARED, least)):
            common = len(own & pieces[i])
            if common >= share * (len(own) + len(pieces[i]) - common) - 1e-9 and texts[i] != texts[j]:
                out.append((i, j))
        for piece in rarest:
            index[piece].append(j)
    return out
