"""Bandit histories as text: past choices and their rewards, for a model that makes the next choice. Pure.

Source of the three forms: Nie et al. 2025, arXiv:2410.06238; the wording is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.types import UserError

Form = Literal["raw", "summary", "guided"]
LINES = 1000  # most lines of a raw history, the last ones
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
    """How a bandit is worded: the setting, the word for an arm, the arms' names, and a line of each form of history."""

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
    # As few tokens as possible: numbers in hundredths, for small models.
    "bare": Scenario("", "", LETTERS, "", "{name} {reward:g}", "{name} {n} {mean100}",
                     "{name} {n} {value100} {bonus100}", "{context} ", " ?", " "),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class View:
    """How a history is shown to a model.

    Args:
        form: raw (every choice with its reward), summary (how often each arm was pulled, and its average reward), or
            guided (the summary with the algorithm's exploration bonus and value). With contexts it must be raw or
            guided, which then gives the two terms with every past choice and the next one.
        scenario: videos, clothes, buttons, ads, or bare (almost no words, for models trained from scratch).
        detailed: the instruction asks to balance exploration and exploitation.
    """

    form: Form = "summary"
    scenario: Literal["videos", "clothes", "buttons", "ads", "bare"] = "videos"
    detailed: bool = False


def names_of(view: View, arms: int, own: Sequence[str] = ()) -> tuple[str, ...]:
    """The arms' names: their own, or the scenario's."""
    return tuple(own) or SCENARIOS[view.scenario].names[:arms]


def introduction(view: View, names: Sequence[str]) -> str:
    """The instruction before the history."""
    scenario = SCENARIOS[view.scenario]
    text = scenario.instruction.format(k=len(names)) + (BALANCE.format(unit=scenario.unit) if view.detailed else "")
    return f"{text}\n\n" if text else ""


def summary(
    view: View, names: Sequence[str], pulls: Any, sums: Any, step: int, bonus: Any = None, value: Any = None
) -> str:
    """One instance's history by arm, `(K,)` each, and the question, with the algorithm's terms if given."""
    scenario = SCENARIOS[view.scenario]
    line = scenario.summary if bonus is None else scenario.guided
    means = np.asarray(sums) / (np.asarray(pulls) + 1e-6)
    lines = []
    for k, name in enumerate(names):
        terms = {} if bonus is None else _numbers(bonus=float(bonus[k]), value=float(value[k]))
        lines.append(
            line.format(name=name, unit=scenario.unit, n=int(pulls[k]), **_numbers(mean=float(means[k])), **terms)
        )
    return _with_question(scenario, names, lines, step)


def raw(
    view: View,
    names: Sequence[str],
    actions: Sequence[int],
    rewards: Sequence[float],
    contexts: Sequence[str] = (),
    guides: Sequence[Any] = (),
) -> str:
    """One instance's history by pull, and the question.

    `contexts`, if given, has one text more than there are pulls, and so has `guides`, an algorithm's (bonus, value)
    before each pull: the last belongs to the choice to be made.
    """
    scenario = SCENARIOS[view.scenario]
    first, lines = max(0, len(actions) - LINES), []
    for i in range(first, len(actions)):
        before = _prefix(scenario, names, contexts, guides, i)
        lines.append(before + scenario.raw.format(name=names[actions[i]], unit=scenario.unit, reward=float(rewards[i])))
    current = _prefix(scenario, names, contexts, guides, len(actions)).rstrip()
    return _with_question(scenario, names, [*lines, current] if current else lines, len(actions))


def read(text: str, names: Sequence[str]) -> int | None:
    """Index of the name that the first line of an answer starts with; None if there is none.

    Names are compared without regard to case; if one starts with another, the longer match counts.
    """
    line = next((part.strip(" .*\"'`:") for part in text.strip().splitlines() if part.strip()), "").casefold()
    matches = [k for k, name in enumerate(names) if line.startswith(name.casefold())]
    best = max(matches, key=lambda k: len(names[k]), default=None)
    if best is None or line[len(names[best]) :][:1].isalnum():
        return None
    return best


def format_context(context: Any) -> str:
    """A context vector as text."""
    return " ".join(f"{x:.2f}" for x in context)


def demonstrated(examples: Sequence[tuple[str, str]], view: View) -> str:
    """Example prompts without their instruction, with the best answers, to follow the instruction."""
    if not examples:
        return ""
    joint = "\n" if view.scenario == "bare" else "\n\n----\n\n"
    heading = "" if view.scenario == "bare" else "These were the best choices in other games of the kind.\n\n"
    return heading + "".join(f"{prompt} {answer}{joint}" for prompt, answer in examples)


def _with_question(scenario: Scenario, names: Sequence[str], lines: Sequence[str], step: int) -> str:
    head = scenario.header.format(step=step) if step else ""
    return head + scenario.joint.join(lines) + scenario.query.format(unit=scenario.unit, names=", ".join(names))


def _prefix(scenario: Scenario, names: Sequence[str], contexts: Sequence[str], guides: Sequence[Any], at: int) -> str:
    parts = [scenario.context.format(context=contexts[at])] if contexts else []
    if guides:
        bonus, value = guides[at]
        terms = (f'"{n}": [{_fixed(b)}, {_fixed(v)}]' for n, b, v in zip(names, bonus, value, strict=True))
        parts.append("{" + ", ".join(terms) + "} ")
    return "".join(parts)


def _fixed(number: float) -> str:
    return f"{number:.2f}"


def _numbers(**numbers: float) -> dict[str, Any]:
    """Numbers by name, and in hundredths as `name100`."""
    return numbers | {f"{k}100": "inf" if np.isinf(x) else f"{100 * x:.0f}" for k, x in numbers.items()}


def checked(view: View, contextual: bool) -> None:
    """Refuse a form that is impossible.

    Raises:
        UserError: a summary of choices with contexts.
    """
    if contextual and view.form == "summary":
        raise UserError("view.form = summary: not possible with contexts: use raw or guided")
