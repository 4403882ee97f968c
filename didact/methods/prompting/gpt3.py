"""GPT-3's few-shot evaluation and its contamination audit (Brown et al. 2020)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, Whole
from didact.data.demonstrations import Framing
from didact.evaluate import fewshot
from didact.evaluate.fewshot_prompts import Setup
from didact.infer import rank
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Result, Text


@method(
    "gpt3",
    paper="Language Models are Few-Shot Learners",
    year=2020,
    source="arXiv:2005.14165",
    gives=("findings", "records"),
    capabilities=("generate",),
    presets={
        "zero-one-few": {"shots": (0, 1, 32)},
        "normalised": {"rule": "unconditional"},
        "lambada": {"framing": "cloze", "max_new_tokens": 8, "shots": (0, 1, 15)},
        "winogrande": {"framing": "partial", "rule": "sum", "shots": (0, 1, 50)},
        "lm-eval": {"fresh": False, "rule": "sum"},
    },
)
def gpt3(
    model: Model | LM,
    test: Sequence[Demo],
    train: Sequence[Demo] | None = None,
    dev: Sequence[Demo] | None = None,
    corpus: Sequence[Text] | None = None,
    *,
    shots: tuple[Whole, ...] = (0, 1, 4, 16),
    draws: Count = 1,
    fresh: bool = True,
    rule: Literal["token", "sum", "character", "unconditional", "auto"] = "token",
    framing: Framing = "answer",
    description: str = "",
    separator: str = "\n\n",
    answer_context: str = rank.ANSWER,
    metric: Literal["exact", "normalised", "f1", "bleu"] = "exact",
    beams: Count = 4,
    length_penalty: float = 0.6,
    max_new_tokens: Count = 32,
    stop: str = "\n",
    seed: int = 0,
) -> Result:
    """Measure what a model can do from a description and K demonstrations, without changing a weight.

    Every test item follows K demonstrations drawn for it from `train` (the first K of one draw, so that a larger K
    extends a smaller one; never an item that asks the same). Items with `choices` are answered by the choice c of
    highest score given the prompt x, items without are generated and compared:

        token          (1/n_c) sum_t log p(c_t | x, c_<t)        the paper's default; n_c tokens
        sum            log p(c | x)                              lm-eval's acc
        character      log p(c | x) / characters of c            lm-eval's acc_norm
        unconditional  log p(c | x) - log p(c | answer_context)  ARC, OpenBookQA, RACE

    K is chosen on `dev` if it is given, and never on test; all K are reported. Intervals are clustered by item and draw
    (`evaluate.statistics.two_way`). With a `corpus` every item is audited: it is dirty if N consecutive words of it
    occur there, N the 5th percentile of item lengths within [8, 13].

    Args:
        model: scores choices, or generates free answers; causal, seq2seq or a server.
        test: items; with `choices` multiple choice, `answers` are further accepted free answers, `instruction` is a
            description of its own.
        train: source of the demonstrations; else dev, else the other test items.
        dev: items on which K (and with rule auto the rule) is chosen.
        corpus: what the model was trained on, to audit the items.
        shots: every K to measure.
        draws: number of draws of demonstrations for each item.
        fresh: a separate draw for every item, as in the paper; else one for all (lm-eval's protocol).
        rule: how choices are scored; auto takes token or unconditional, by dev.
        framing: answer follows the prompt; cloze asks for a passage's last word (`... ____. ->`, LAMBADA); partial puts
            every choice at the prompt's `_` and scores the text after it (Winogrande).
        description: text once before everything; alone it is the zero-shot prompt.
        separator: text between demonstrations, and before the query; `\\n` is a line break.
        answer_context: prompt that only asks for an answer, for unconditional.
        metric: for free answers: exact to the letter, normalised as in SQuAD, token f1, or bleu of each answer by
            itself (in [0, 1]).
        beams: width of beam search for free answers (a server's are greedy).
        length_penalty: its alpha; a hypothesis of n tokens scores logp / ((5 + n) / 6)^alpha.
        max_new_tokens: maximum length of a free answer.
        stop: a free answer ends before this text; empty does not stop.
        seed: random seed of the draws.

    Returns:
        findings (curves over K by every rule, gains, what was chosen, contamination), metrics, and one record per item
        with its scores.

    Raises:
        UserError: choices and a model that cannot score, records of mixed kinds, a right answer not among the choices.
    """
    start_time = time.monotonic()
    setup = Setup(
        shots=tuple(shots), draws=draws, fresh=fresh, framing=framing, description=description, separator=separator,
        answer_context=answer_context, metric=metric, beams=beams, length_penalty=length_penalty,
        max_new_tokens=max_new_tokens, stop=stop, seed=seed,
    )  # fmt: skip
    result = fewshot.evaluate(model, test, train, dev, corpus, setup, rule, "gpt3")
    result.cost.seconds = time.monotonic() - start_time
    return result
