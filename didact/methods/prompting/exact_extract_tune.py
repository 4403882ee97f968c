"""Few-shot tuning for extractive question answering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from didact.bounds import Whole
from didact.infer import qa_prompts
from didact.infer.span_decoders import SearchConfig
from didact.learn import language, span_rows
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import QA, Fit, Result


@method(
    "exact-extract.tune",
    paper="How Optimal is Greedy Decoding for Extractive Question Answering?",
    year=2022,
    source="arXiv:2108.05857",
    protocol=("extract",),
)
def exact_extract_tune(
    model: Model,
    questions: Sequence[QA],
    *,
    examples: Whole = 0,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    search: SearchConfig = SearchConfig(),
    fit: Fit = Fit(lr=5e-5, steps=512, rows=32, schedule="constant", optimizer="adafactor"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Tune a model on a few questions and their first answers, in the prompt format used at inference.

        L = -(1/N) sum over the batch's N target tokens (constant first token and end too) of log p(token | prompt)

    A passage longer than the model's input is cut to the first window that has the answer; without one the question is
    left out. The paper trains with Adafactor at a constant rate, 512 steps of 32, for 16 to 1,024 questions.

    Args:
        model: causal or seq2seq; left unchanged, a trained copy is returned.
        questions: questions with at least one answer each; the first is learned.
        examples: number of questions to draw; 0 takes all.
        template: prompt with {context} and {question}.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        search: `limit`, `window` and `stride` cut long passages; the rest is how held-out questions are answered.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a question without an answer; the loss became NaN.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    indices = np.random.default_rng([fit.seed, 42]).permutation(len(questions))[: examples or None]
    rows = list(span_rows.tuning_rows(model, [(int(i), questions[i]) for i in sorted(indices)], form, search))
    trained = language.train(model, {"questions": language.single(rows)}, language.nll, fit, hooks=hooks, name="tune")
    left_out = len(indices) - len(rows)
    text = f"{left_out} of {len(indices)} questions left out: no window holds their answer"
    return trained.result(warnings=[text] if left_out else [])
