"""What was done and what came of it, as text: a history of choices for a model that makes the next one. Pure.

Source of the three forms: Nie et al. 2025, arXiv:2410.06238; the wording is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.types import UserError

Form = Literal["raw", "summary", "guided"]
LINES = 1000  # of a raw history, the last ones
LETTERS = tuple("ABCDEFGHIJKLMNOPQRST")
CLOTHES = tuple(
    f"{adjective} {noun}"
    for noun in ("Linen Jacket", "Wool Scarf", "Canvas Shoes", "Denim Shirt")
    for adjective in ("Quiet", "Amber", "Northern", "Velvet", "Silver")
)
COLOURS = tuple(
    "red blue green yellow purple orange black white pink brown grey violet teal cyan olive navy maroon gold beige lime"
    .split()
)  # fmt: skip
BALANCE = (
    " Nothing is known of the {unit}s at first, and rewards vary by chance: try each of them often enough to learn "
    "what it is worth, and then more and more often choose what is best."
)


@dataclass(frozen=True)
class Scenario:
    """How a bandit is told: what it is about, what an arm is called, and a line of each form of history."""

    instruction: str
    unit: str
    names: tuple[str, ...]
    header: str = "So far you have chosen {step} times, with these rewards:\n"
    raw: str = "{name} {unit}, reward {reward:g}"
    summary: str = "{name} {unit}, {n} times, average reward {mean:.2f}"
    guided: str = (
        "{name} {unit}, {n} times, average reward {mean:.2f}, exploration bonus {bonus:.2f}, value {value:.2f}"
    )
    context: str = "[{context}] "
    query: str = "\n\nWhich {unit} do you choose next? Answer with one of these and nothing else: {names}.\nAnswer:"
    joint: str = "\n"


SCENARIOS = {
    "videos": Scenario("You recommend one of {k} videos to every visitor of a site, who then likes it or not.", "video",
                       LETTERS),
    "clothes": Scenario("You show one of {k} pieces of clothing to every customer of a shop, who then buys or not.",
                        "item", CLOTHES),
    "buttons": Scenario("There are {k} buttons, and each pays a reward when it is pressed.", "button", COLOURS),
    "ads": Scenario("You show one of {k} advertisements to every reader of a page, who then follows it or not.",
                    "advertisement", LETTERS),
    # As few tokens as can be: numbers in hundredths, for small models.
    "bare": Scenario("", "", LETTERS, "", "{name} {reward:g}", "{name} {n} {mean100}",
                     "{name} {n} {value100} {bonus100}", "{context} ", " ?", " "),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class View:
    """How a history is shown to a model.

    Args:
        form: raw (every choice with its reward), summary (how often each arm was pulled, and its average reward), or
            guided (the summary with the algorithm's exploration bonus and value). With contexts it is raw or guided:
            the two terms then stand beside every past choice and the one to come.
        scenario: videos, clothes, buttons, ads, or bare (almost no words, for models trained from scratch).
        detailed: the instruction says that exploring and exploiting are to be balanced.
    """

    form: Form = "summary"
    scenario: Literal["videos", "clothes", "buttons", "ads", "bare"] = "videos"
    detailed: bool = False


def names_of(view: View, arms: int, own: Sequence[str] = ()) -> tuple[str, ...]:
    """What the arms are called: their own names, or the scenario's."""
    return tuple(own) or SCENARIOS[view.scenario].names[:arms]


def introduction(view: View, names: Sequence[str]) -> str:
    """What stands before everything."""
    told = SCENARIOS[view.scenario]
    text = told.instruction.format(k=len(names)) + (BALANCE.format(unit=told.unit) if view.detailed else "")
    return f"{text}\n\n" if text else ""


def summary(
    view: View, names: Sequence[str], pulls: Any, sums: Any, step: int, bonus: Any = None, value: Any = None
) -> str:
    """One instance's history by arm, `(K,)` each, and the question; with the algorithm's terms where they are given."""
    told = SCENARIOS[view.scenario]
    line = told.summary if bonus is None else told.guided
    means = np.asarray(sums) / (np.asarray(pulls) + 1e-6)
    lines = []
    for k, name in enumerate(names):
        own = {} if bonus is None else _numbers(bonus=float(bonus[k]), value=float(value[k]))
        lines.append(line.format(name=name, unit=told.unit, n=int(pulls[k]), **_numbers(mean=float(means[k])), **own))
    return _asked(told, names, lines, step)


def raw(
    view: View,
    names: Sequence[str],
    actions: Sequence[int],
    rewards: Sequence[float],
    contexts: Sequence[str] = (),
    guides: Sequence[Any] = (),
) -> str:
    """One instance's history by pull, and the question.

    `contexts` has one text more than there were pulls, and so have `guides`, an algorithm's (bonus, value) before each
    pull, where they are given: the last is what is to be answered.
    """
    told = SCENARIOS[view.scenario]
    first, lines = max(0, len(actions) - LINES), []
    for i in range(first, len(actions)):
        before = _before(told, names, contexts, guides, i)
        lines.append(before + told.raw.format(name=names[actions[i]], unit=told.unit, reward=float(rewards[i])))
    now = _before(told, names, contexts, guides, len(actions)).rstrip()
    return _asked(told, names, [*lines, now] if now else lines, len(actions))


def read(text: str, names: Sequence[str]) -> int | None:
    """Which of the names an answer is: the answer alone, or the name that its first line begins with; None of another.

    Names are compared without regard to case; where one begins with another, the longer one is meant.
    """
    line = next((part.strip(" .*\"'`:") for part in text.strip().splitlines() if part.strip()), "").casefold()
    held = [k for k, name in enumerate(names) if line.startswith(name.casefold())]
    best = max(held, key=lambda k: len(names[k]), default=None)
    if best is None or line[len(names[best]) :][:1].isalnum():
        return None
    return best


def shown(context: Any) -> str:
    """A context vector as text."""
    return " ".join(f"{x:.2f}" for x in context)


def demonstrated(examples: Sequence[tuple[str, str]], view: View) -> str:
    """Prompts without their instruction, with the best answers, to stand after the instruction."""
    if not examples:
        return ""
    joint = "\n" if view.scenario == "bare" else "\n\n----\n\n"
    told = "" if view.scenario == "bare" else "These were the best choices in other games of the kind.\n\n"
    return told + "".join(f"{prompt} {answer}{joint}" for prompt, answer in examples)


def _asked(told: Scenario, names: Sequence[str], lines: Sequence[str], step: int) -> str:
    head = told.header.format(step=step) if step else ""
    return head + told.joint.join(lines) + told.query.format(unit=told.unit, names=", ".join(names))


def _before(told: Scenario, names: Sequence[str], contexts: Sequence[str], guides: Sequence[Any], at: int) -> str:
    parts = [told.context.format(context=contexts[at])] if contexts else []
    if guides:
        bonus, value = guides[at]
        each = (f'"{n}": [{_two(b)}, {_two(v)}]' for n, b, v in zip(names, bonus, value, strict=True))
        parts.append("{" + ", ".join(each) + "} ")
    return "".join(parts)


def _two(number: float) -> str:
    return f"{number:.2f}"


def _numbers(**numbers: float) -> dict[str, Any]:
    """Numbers by name, and in hundredths by `name100`."""
    return numbers | {f"{k}100": "inf" if np.isinf(x) else f"{100 * x:.0f}" for k, x in numbers.items()}


def checked(view: View, contextual: bool) -> None:
    """Refuse a form that cannot be.

    Raises:
        UserError: a summary of what was done in contexts.
    """
    if contextual and view.form == "summary":
        raise UserError("view.form = summary: choices in contexts have none: take raw or guided")
