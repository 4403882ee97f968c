"""The examples of `didact run gpt3` and its variants: a model that infers languages, a planted quiz, training text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import processors

from didact import prompting
from didact.claims import lab
from didact.claims.problem import Problem
from didact.data.encode import TokenizedExample
from didact.models.model import Model
from didact.types import Fit, Text
from didact.worlds import tasks

STEPS = 220
WINDOW = 104  # tokens: two episodes
TEACH = Fit(lr=1e-2, schedule="cosine", betas=(0.9, 0.95), weight_decay=0.1, micro_tokens=1 << 16)


def problem(seed: int) -> Problem:
    """A Llama of one layer, and a held-out task: 18 nouns to translate, each with the others as demonstrations."""
    unseen = tasks.Languages(seed=seed).unseen(seed, 1)[0]
    return Problem(model=translator(seed, STEPS, 64), data={"test": unseen}, options={"separator": "\n", "draws": 5})


def problem_clean(seed: int) -> Problem:
    """A quiz, a third of which is planted in the text; documents are too short for the paper's 200 characters."""
    items, corpus, _ = tasks.quiz(seed)
    return Problem(data={"corpus": corpus, "test": items}, options={"window": 40, "shortest": 40})


def problem_pretrain(seed: int) -> Problem:
    """Episodes of translated nouns, and a model shape that trains in seconds; the batch grows from 2 rows to 16."""
    shape = {"layers": 2, "d": 64, "heads": 4, "context": 64, "band": 16, "vocabulary": 500, "first_tokens": 128}
    return Problem(
        data={"corpus": tasks.Languages(seed=seed).corpus(seed, 500, shots=17)},
        options={**shape, "ramp": 40e9},
        fit={"lr": 3e-3, "rows": 16, "steps": 150},
    )


def translator(seed: int, steps: int, width: int) -> Model:
    """A Llama of one layer, pre-trained by `gpt3.pretrain` on windows of about two episodes, cut anywhere.

    The paper's warm-up would end within a fifth of a step; here it takes the first twelfth of the steps.
    """
    texts = tasks.Languages(seed=seed).corpus(seed, min(2_000, 32 * steps), shots=17)
    base = _blank(texts, width, max(1, width // 16), 700, 128, seed)
    fit = TEACH.replace(steps=steps, rows=16, seed=seed)
    recipe: dict[str, Any] = {"context": WINDOW, "first_tokens": 16.0 * WINDOW, "warmup_tokens": 25e9}
    return lab.cached_model(
        lambda: lab.model_of(prompting.gpt3_pretrain(texts, base, **recipe, fit=fit)),
        *lab.identity(base), texts, recipe, fit,
    )  # fmt: skip


def reader(texts: Sequence[Text], width: int, heads: int, vocabulary: int, context: int, fit: Fit) -> Model:
    """A Llama of one layer trained on documents, one a row. Cached: sabotages of the evaluation reuse it."""
    base = _blank(texts, width, heads, vocabulary, context, fit.seed)
    ids = [tuple(base.tokenizer(t.text)["input_ids"]) for t in texts]
    rows = [TokenizedExample(row[:1], row[1:]) for row in ids]
    return lab.cached_model(lambda: lab.pretrained(base, rows, fit, "text"), *lab.identity(base), rows, fit)


def _blank(texts: Sequence[Text], width: int, heads: int, vocabulary: int, context: int, seed: int) -> Model:
    """Random weights, and a tokenizer of these texts whose rows begin with the start token."""
    shape = {"d": width, "layers": 1, "heads": heads, "context": context, "tied": False, "seed": seed}
    base = lab.blank("llama", [t.text for t in texts], vocabulary, **shape)
    begin = [(str(base.tokenizer.bos_token), int(base.tokenizer.bos_token_id))]
    core: Any = base.tokenizer
    core.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return base
