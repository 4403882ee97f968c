"""Data of `didact run dual-process` and its variants: sentences of nouns and adjectives, and text of `partners`."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data import encode
from didact.models import build
from didact.models.model import Model
from didact.types import Fit, Text
from didact.worlds.partners import Partners
from didact.worlds.parts_of_speech import COPULA, PartsOfSpeech

WORLD = PartsOfSpeech(words=200, unseen=40, zipf=1.0, ambiguous=0.0)
TEXTS = Partners()
SHAPE: dict[str, Any] = {"layers": 2, "d": 64, "heads": 4}
TEACH = Fit(lr=3e-3, steps=300, rows=16, schedule="constant", weight_decay=0.01)
FORGET = {"forget.every": 10, "forget.until": 320}


def problem(seed: int) -> Problem:
    """5,000 sentences of 200 words, and 150 of every test set. Here words are memorized within some 20 steps."""
    return Problem(
        data={"demos": WORLD.sentences([seed, 0], 5000), "battery": WORLD.battery([seed, 1], 150)},
        options={**SHAPE, **FORGET, "look_every": 50},
        fit={"lr": 3e-3, "steps": 400, "rows": 64},
    )


def problem_pretrain(seed: int) -> Problem:
    """A small GPT-2 trained on text of `Partners`, and more such text."""
    return Problem(
        model=_reader(seed),
        data={"corpus": TEXTS.documents([seed, 3], 300)},
        options={"window": 48, "forget.draw": "matched"},
        fit={"lr": 1e-3, "rows": 16, "steps": 120, "warmup_steps": 10},
    )


def problem_probe(seed: int) -> Problem:
    """A small GPT-2 trained on the sentences, and tagged sentences."""
    return Problem(
        model=_speaker(seed), data={"texts": tagged(seed, 600)}, options={"classes": ("NOUN", "ADJ"), "most": 600}
    )


def tagged(seed: int, count: int) -> list[Text]:
    """Return the first three words of sentences, each tagged with its part of speech."""
    texts = []
    for demo in WORLD.sentences([seed, 5], count):
        words = demo.prompt.split()[:3]
        predicate = words.index(COPULA) + 1
        tags = ["AUX" if w == COPULA else "ADJ" if i == predicate else "NOUN" for i, w in enumerate(words)]
        texts.append(Text(text=" ".join(words), extra={"tokens": words, "upos": tags}))
    return texts


def _reader(seed: int) -> Model:
    texts = [text.text for text in TEXTS.documents([seed, 2], 2000)]
    base = build.build("gpt2", build.word_tokenizer(texts), **SHAPE, context=64, seed=seed)
    rows = encode.windows(base.tokenizer, texts, 48)
    return lab.cached_model(lambda: lab.pretrained(base, rows, TEACH), "reader", *lab.identity(base), texts[:9], TEACH)


def _speaker(seed: int) -> Model:
    demos = [*WORLD.sentences([seed, 0], 4000), *WORLD.battery([seed, 1], 20)]
    base = build.build("gpt2", build.word_tokenizer(f"{d.prompt} {d.completion}" for d in demos), **SHAPE, context=16,
                       seed=seed)  # fmt: skip
    rows = encode.rows(base.tokenizer, [(d.prompt, d.completion) for d in demos[:4000]], "causal", 16, end=False)
    return lab.cached_model(lambda: lab.pretrained(base, rows, TEACH), "speaker", *lab.identity(base), demos[:9], TEACH)
