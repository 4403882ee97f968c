"""Who says which answer is better: a reward function, a reward model, or another language model."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from didact.evaluate.protocols import Measure, mean_measure
from didact.infer import lm
from didact.types import LM, UserError

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]
"""`judge(prompts, ours, theirs)`: 1 where ours is better, 0 where theirs is, 0.5 for a tie or no verdict."""

TRIES = 3
QUESTION = (
    "Which answer to the question is better? Say only A or B.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nBetter:"
)


def named(name: str) -> Judge:
    """A judge from `module:function` (a reward) or a folder with a sequence-classification model.

    Raises:
        UserError: there is no such module, function or folder.
    """
    return by_reward(scores(name, "judge"))


def scores(name: str, what: str = "reward") -> Reward:
    """The same as the reward itself."""
    if Path(name).is_dir():
        return reward_model(name)
    return checked(imported(name, what, "module:function or a reward model's folder"), name)


def imported(name: str, what: str, form: str = "module:function") -> Any:
    """The user's `module:function`; `what` it is and the `form` expected are said where there is none.

    Raises:
        UserError: there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or name.startswith(("http://", "https://")):
        raise UserError(f"{what} '{name}': {form} is expected")
    sys.path.insert(0, "")  # a user's module lies in the working folder
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} '{name}' cannot be imported: {error}") from None
    finally:
        sys.path.remove("")


def checked(reward: Reward, name: str = "reward") -> Reward:
    """The same reward function, whose mistakes are told in one line.

    Raises (when called):
        UserError: it raised, or gave NaN, or not one number for each completion.
    """

    def safe(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        try:
            given = [float(x) for x in reward(list(prompts), list(completions))]
        except Exception as error:
            raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
        if len(given) != len(completions):
            raise UserError(f"{name} gave {len(given)} numbers for {len(completions)} completions")
        for i, x in enumerate(given):
            if math.isnan(x):
                raise UserError(f"{name} gave NaN for completion {i}: {completions[i][:60]!r}")
        return given

    return safe


def by_reward(reward: Reward) -> Judge:
    """The answer of higher reward wins."""

    def judge(prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        pairs = zip(reward(prompts, ours), reward(prompts, theirs), strict=True)
        return [(a > b) + 0.5 * (a == b) for a, b in pairs]

    return judge


def reward_model(folder: str, rows: int = 16) -> Reward:
    """The single logit of a transformers sequence-classification model on prompt and completion."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        module: Any = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a reward model: {str(error).splitlines()[0]}") from None
    if module.config.num_labels != 1:
        raise UserError(f"{folder}: a reward model has one output, this one {module.config.num_labels}")
    if module.config.pad_token_id is None:
        module.config.pad_token_id = tokenizer.pad_token_id

    @torch.no_grad()
    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts, out = [f"{p} {c}" for p, c in zip(prompts, completions, strict=True)], []
        for at in range(0, len(texts), rows):
            asked = tokenizer(texts[at : at + rows], return_tensors="pt", padding=True, truncation=True)
            out += module(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]).logits[:, 0].tolist()
        return out

    return checked(reward, folder)


class Asked:
    """A language model as the judge, asked twice with the answers swapped: only an agreeing pair of verdicts counts.

    A reply that names neither is asked again, at most `TRIES` times; `unclear` counts those that never did.
    """

    def __init__(self, model: LM, seed: int = 0) -> None:
        self.model, self.seed, self.unclear = lm.need(model, "generate", by="--judge"), seed, 0

    def __call__(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """1, 0 or .5 for every prompt."""
        rows = list(zip(prompts, ours, theirs, strict=True))
        first = self._verdicts([QUESTION.format(prompt=p, a=a, b=b) for p, a, b in rows])
        second = self._verdicts([QUESTION.format(prompt=p, a=b, b=a) for p, a, b in rows])
        wins = {("A", "B"): 1.0, ("B", "A"): 0.0}
        return [wins.get((f, s), 0.5) for f, s in zip(first, second, strict=True)]

    def _verdicts(self, questions: Sequence[str]) -> list[str]:
        out = [""] * len(questions)
        for attempt in range(TRIES):
            left = [i for i, v in enumerate(out) if not v]
            if not left:
                break
            temperature = 0.0 if attempt == 0 else 1.0  # greedy would only say the same again
            replies = self.model.generate(
                [questions[i] for i in left], 4, temperature=temperature, seed=self.seed + attempt
            )
            for i, reply in zip(left, replies, strict=True):
                found = re.match(r"\W*([AB])\b", reply[0])
                out[i] = found[1] if found else ""
        self.unclear += sum(not v for v in out)
        return out


def win_rate(judge: Judge, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Measure:
    """Share of prompts on which ours is judged better; a tie is half a win."""
    return mean_measure(judge(prompts, ours, theirs), "higher", "answers judged better than the start model's")
