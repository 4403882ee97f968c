"""Consensus's claim on a pre-trained model: messages to a bank (banking77), and questions about passages (SQuAD).

A base model of 270M weights has a strong yes/no bias: on the tuning seeds (1000, 1001) the discriminator alone was at
chance (.17 of six topics) with the method's wording and two others, while the generator was right for .62. So the
wording for messages has four example verdicts; a gate checks that the discriminator is above chance.
"""

from __future__ import annotations

import random

from didact import prompting
from didact.claims import real, runner
from didact.claims.lab import difference, gate
from didact.claims.prompting import messages
from didact.infer.consensus import RULES, Wording
from didact.types import Demo, Result

INTENTS, ASKED = 6, 4  # intents per seed; messages of each
QUESTIONS, CANDIDATES, LONGEST = 10, 4, 90  # questions per seed; candidates of each; most words of a passage
VERDICTS = (
    ("The machine swallowed my card.", "card swallowed", "exchange rate"),
    ("How do I change my PIN?", "change pin", "extra card"),
)
ASK = "Is this topic right?"


def _lines(wrong: bool) -> str:
    """The example messages, with right topics or with wrong ones."""
    return "".join(f"Message: {m}\nTopic: {b if wrong else a}\n\n" for m, a, b in VERDICTS)


WORDING = Wording(
    correct=_lines(False) + "{prompt}",
    incorrect=_lines(True) + "{prompt}",
    verify="".join(
        f"Message: {m}\nTopic: {topic}\n{ASK} {verdict}\n\n"
        for m, *topics in VERDICTS
        for topic, verdict in zip(topics, ("yes", "no"), strict=True)
    )
    + f"{{prompt}} {{candidate}}\n{ASK}",
    yes="yes",
    no="no",
)


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Accuracy by every rule, and the rate of agreement, on messages and on passages."""
    questions, _ = messages.drawn(seed, INTENTS, ASKED, 0)
    return {
        "messages": _accuracies(prompting.consensus(real.model(), questions, wording=WORDING)),
        "passages": _accuracies(prompting.consensus(real.model(), _questions(seed))),
    }


def _accuracies(result: Result) -> dict[str, float]:
    findings = result.findings
    accuracy = {str(rule): float(findings["accuracy"][rule]["estimate"]) for rule in RULES}
    return accuracy | {when: float(findings["agreement"][when]) for when in ("before", "after")}


def _questions(seed: int) -> list[Demo]:
    """Questions about passages; wrong candidates are other spans of the passage with as many words."""
    rng = random.Random(seed)
    rows = [r for r in real.rows("squad_fewshot.jsonl") if len(r["context"].split()) <= LONGEST]
    out = []
    for row in rng.sample(rows, QUESTIONS):
        words, answer = row["context"].split(), row["answers"][0]
        size = len(answer.split())
        spans = {" ".join(words[i : i + size]).strip(".,;()") for i in range(len(words) - size + 1)}
        distractors = rng.sample(sorted(s for s in spans if s and s not in answer and answer not in s), CANDIDATES - 1)
        choices = rng.sample([answer, *distractors], CANDIDATES)
        out.append(Demo(prompt=f"{row['context']}\nQuestion: {row['question']}\nAnswer:", completion=answer,
                        choices=choices))  # fmt: skip
    return out


ACCURACY, RATE = "accuracy", "of the questions"
CLAIM = runner.Claim(
    method="consensus",
    text=(
        "Asked both to answer and to judge, a pre-trained model ranks candidates better by the equilibrium of both "
        "than by either alone, without a label."
    ),
    run=run,
    gates=(
        gate("the generator knows topics (chance .17)", "messages.g", at_least=0.33, unit=ACCURACY),
        gate("the judge knows topics (chance .17)", "messages.d", at_least=0.33, unit=ACCURACY),
    ),
    tests=(
        difference("the game beats the generator alone", "messages.er_g", "messages.g", ACCURACY),
        difference("the game beats the judge alone", "messages.er_d", "messages.d", ACCURACY),
        difference("both sides come to agree", "messages.after", "messages.before", RATE),
        difference("the game is worth more than adding both", "messages.er_g", "messages.avg", ACCURACY, reported=True),
        difference("the product beats the generator alone", "messages.mi", "messages.g", ACCURACY, reported=True),
        difference("passages: the game beats the generator", "passages.er_g", "passages.g", ACCURACY, reported=True),
        difference("passages: the game beats the judge", "passages.er_d", "passages.d", ACCURACY, reported=True),
    ),
)  # fmt: skip
