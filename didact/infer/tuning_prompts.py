"""Tuning as text: prompts with the space, the task and past trials, and configurations parsed from answers.

Source of the prompts' forms: Liu et al. 2024, arXiv:2402.03921; with other wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from didact.data import spaces
from didact.data.spaces import Config, Space


@dataclass(frozen=True, kw_only=True)
class Card:
    """A description of what is tuned.

    Args:
        model: the model whose hyperparameters are tuned.
        task: its task, data and metric; for context partial and full.
        details: statistics of the data and whatever else may help; for context full.
        context: how much of this is in a prompt: none (the model and the space), partial or full.
        names: whether parameters keep their names; else X1, X2, ...
        style: words, or bare (almost no words, for models trained from scratch).
    """

    model: str = "a model"
    task: str = ""
    details: str = ""
    context: Literal["none", "partial", "full"] = "full"
    names: bool = True
    style: Literal["words", "bare"] = "words"


@dataclass(frozen=True)
class Trials:
    """Configurations with the scores that the prompt shows; higher is better unless `lower` (raw scores only)."""

    configs: tuple[Config, ...]
    shown: tuple[float, ...]
    lower: bool = False

    @property
    def best(self) -> float:
        """The best score shown."""
        return min(self.shown) if self.lower else max(self.shown)


class Words:
    """Writes prompts for a space and a card, and parses answers."""

    def __init__(self, space: Space, card: Card) -> None:
        self.space, self.card, self.bare = space, card, card.style == "bare"
        self.display_names = {p.name: p.name if card.names else f"X{i}" for i, p in enumerate(space.parameters, 1)}
        self.shown = Space(tuple(
            spaces.Parameter(self.display_names[p.name], p.type, p.low, p.high, p.log, p.choices,
                             {self.display_names[k]: v for k, v in p.when.items()})
            for p in space.parameters
        ))  # fmt: skip

    def config(self, config: Config) -> str:
        """A configuration as text."""
        renamed = {self.display_names[k]: v for k, v in config.items() if k in self.display_names}
        return self.shown.written(renamed, "{name} {value}", " ") if self.bare else self.shown.written(renamed)

    def read(self, text: str) -> dict[str, Any] | None:
        """Parse a configuration from an answer; None if there is none."""
        config, names = self.shown.read(text), {v: k for k, v in self.display_names.items()}
        return None if config is None else {names[k]: v for k, v in config.items()}

    def about(self) -> str:
        """The task, as far as the card's context goes, and the space."""
        card = self.card
        facts = [card.task] if card.context != "none" and card.task else []
        facts += [card.details] if card.context == "full" and card.details else []
        if self.bare:
            return "".join(f"{text}\n" for text in facts)
        lines = "\n".join(f"- {p.describe()}" for p in self.shown.parameters)
        return " ".join([f"Hyperparameters of {card.model} are tuned.", *facts]) + f"\nThey are:\n{lines}\n\n"

    def warm(self, count: int) -> str:
        """The prompt for initial configurations."""
        if self.bare:
            return self.about()
        return (
            f"{self.about()}Name {count} different configurations that are likely to do well, to begin with. Write "
            "each on a line of its own, as name: value, name: value, and nothing else.\n"
        )

    def candidate(self, history: Trials, score: float, seed: int) -> str:
        """The prompt for a configuration that reaches a target score, after the history in an order set by the seed."""
        rows = spaces.permuted(list(zip(history.configs, history.shown, strict=True)), seed)
        if self.bare:
            return self.about() + "".join(f"{number(s)} < {self.config(c)}\n" for c, s in rows) + f"{number(score)} <"
        lines = "".join(f"Performance: {number(s)}\nConfiguration: ## {self.config(c)} ##\n" for c, s in rows)
        return (
            f"{self.about()}These were tried{self._better(history)}. Recommend a configuration that reaches the last "
            "performance, within the ranges and not at their ends, not rounded, in the same form.\n\n"
            f"{lines}Performance: {number(score)}\nConfiguration: ##"
        )

    def prediction(self, history: Trials, config: Config, seed: int, marks: Sequence[int] | None = None) -> str:
        """The prompt for a configuration's score; with `marks`, for whether it is good (1) or not (0)."""
        values = history.shown if marks is None else marks
        rows = spaces.permuted(list(zip(history.configs, values, strict=True)), seed)
        if self.bare:
            sign = ">" if marks is None else "?"
            lines = "".join(f"{self.config(c)} {sign} {number(s)}\n" for c, s in rows)
            return f"{self.about()}{lines}{self.config(config)} {sign}"
        task = "Predict the performance of the last one" if marks is None else "Say of the last one whether it is good"
        label, open_, shut = ("Performance", "## ", " ##") if marks is None else ("Good", "", "")
        lines = "".join(f"Configuration: {self.config(c)}\n{label}: {open_}{number(s)}{shut}\n" for c, s in rows)
        form = "as a number in the same form" if marks is None else "1 or 0"
        return (
            f"{self.about()}These were tried{self._better(history)}. {task}, {form}.\n\n"
            f"{lines}Configuration: {self.config(config)}\n{label}:{' ##' if marks is None else ''}"
        )

    @staticmethod
    def _better(history: Trials) -> str:
        return f" ({'lower' if history.lower else 'higher'} performance is better)"


def number(value: float) -> str:
    """A score as text: integers without a point, others with six significant digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
