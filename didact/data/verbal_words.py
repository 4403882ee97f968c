"""Prompts of the learner and the optimiser of a verbalised model, in our own words.

The parts and their order are those of Xiao et al. 2024: the learner gets the descriptions (the parameters) and one
input, the optimiser a batch with the learner's outputs and the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OUTPUT = "Output:"
DESCRIPTIONS = "New Pattern Descriptions:"


@dataclass(frozen=True)
class Words:
    """The texts of both; `{...}` are filled in. `output` and `descriptions` mark the part of an answer that is parsed,
    `listed` separates the inputs, outputs or targets of a batch."""

    system: str
    learner: str
    optimiser: str
    form: str
    numbers: str
    labels: str
    output: str
    descriptions: str
    listed: str


def inference(words: Words, theta: str, x: str, form: str) -> str:
    """The learner's prompt for one input."""
    return filled(words.learner, theta=theta, x=x, form=form)


def optimisation(
    words: Words, theta: str, batch: Sequence[tuple[str, str, str]], advice: str, feedback: str = ""
) -> str:
    """The optimiser's prompt; `batch` has the input, output and target of each item."""
    inputs, outputs, targets = (words.listed.join(column) for column in zip(*batch, strict=True))
    return filled(
        words.optimiser, theta=theta, inputs=inputs, outputs=outputs, targets=targets, advice=advice,
        feedback=feedback,
    )  # fmt: skip


def filled(text: str, **values: str) -> str:
    """Fill in the `{names}` of a text in one pass: inserted text is not scanned again."""
    out, rest = [], text
    while rest:
        before, brace, after = rest.partition("{")
        name, end, behind = after.partition("}")
        out.append(before)
        if brace and end and name in values:
            out.append(values[name])
            rest = behind
        else:
            out.append(brace)
            rest = after
    return "".join(out)


FULL = Words(
    system="You are a careful and honest assistant.",
    learner=(
        "# Inference step\n\n"
        "You are the model. Use the pattern descriptions below, and nothing else, to predict the output for the input."
        "\n\n## Pattern Descriptions\n{theta}\n\n## Input\n{x}\n\n"
        "Answer in this form and no other:\n\nExplanations: [step by step, how the descriptions give the output]\n\n"
        "Output: [{form}]"
    ),
    optimiser=(
        "# Optimization step\n\n"
        "You optimise a model. The model predicts outputs by the current pattern descriptions; your task is to learn "
        "the descriptions that predict the targets best.\n\n"
        "## Inputs (a batch of independent draws from one distribution)\n[{inputs}]\n\n"
        "## Current Pattern Descriptions\n{theta}\n\n## The model outputs\n[{outputs}]\n\n"
        "## The target outputs\n[{targets}]\n{feedback}\n"
        "Where the model does well, keep the descriptions; where it does not, improve them. They must also predict the "
        "next batch from the same distribution. You may use the last optimization step where it is shown. {advice}"
        "Think step by step.\n\nAnswer in this form and no other:\n\nReasoning: [what is wrong, and why the change "
        "mends it]\n\nNew Pattern Descriptions: [specific, with exact values of all parameters]"
    ),
    form="{what}, in the form of the input",
    numbers="a number with {decimals} decimals",
    labels="one of {labels}",
    output=OUTPUT,
    descriptions=DESCRIPTIONS,
    listed=", ",
)
TERSE = Words(
    system="", learner="{theta} at {x}", optimiser="{theta} at {inputs} gave {outputs} not {targets}{feedback}",
    form="", numbers="", labels="", output="", descriptions="", listed=" ",
)  # fmt: skip
"""For models taught the two tasks, which need no instruction, and whose answers are outputs or descriptions alone."""
