"""Who says which answer is better: a reward function, a reward model, or another language model."""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from didact.evaluate.measures import Measure, mean_measure
from didact.infer import lm, yesno
from didact.infer.yesno import Question
from didact.learn import rewards
from didact.models import load, opening
from didact.models.model import Model
from didact.types import LM, Reward, UserError

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""`scorer(texts)`: one number each, higher is better."""
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]
"""`judge(prompts, ours, theirs)`: 1 where ours is better, 0 where theirs is, 0.5 for a tie or no verdict."""

TRIES = 3
QUESTION = (
    "Which answer to the question is better? Say only A or B.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nBetter:"
)


def named(name: str) -> Judge:
    """A judge from `module:function` (a reward) or a reward model's folder.

    Raises:
        UserError: there is no such module, function or folder.
    """
    return by_reward(reward_of(name, "judge"))


def reward_of(given: str | Reward, what: str = "reward") -> Reward:
    """A reward from `module:function`, from a folder, or a function itself.

    A folder holds a sequence-classification model, or a language model that says yes or no (what `ilf` leaves
    in `model-reward`).

    Raises:
        UserError: there is no such module, function or folder; `what` is the option's name.
    """
    if not isinstance(given, str):
        return checked(given, what)
    if given and Path(given).is_dir():
        return by_yesno(load.load(given), given) if _answers(Path(given)) else reward_model(given)
    return checked(imported(given, what, "module:function or a reward model's folder"), given)


def scorer(given: str | Scorer) -> Scorer:
    """What scores texts, from `module:function` or a function itself; its mistakes are told in one line.

    Raises:
        UserError: there is no such module or function.
    """
    name = given if isinstance(given, str) else getattr(given, "__name__", "scorer")
    found = imported(given, "scorer") if isinstance(given, str) else given
    safe = checked(lambda _, texts: found(texts), name)
    return lambda texts: safe(texts, texts)


def imported(name: str, what: str, form: str = "module:function") -> Callable[..., Any]:
    """The user's `module:function`; the module may lie in the working folder.

    Raises:
        UserError: there is none; `what` it is for and the `form` expected are said.
    """
    module, colon, function = name.partition(":")
    if not colon or name.startswith(("http://", "https://")):
        raise UserError(f"{what} '{name}': {form} is expected")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} '{name}' cannot be imported: {error}") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UserError(f"{what} '{name}' is no function")
    return cast("Callable[..., Any]", found)


def by_yesno(model: Model, name: str = "reward", question: Question = yesno.GOOD) -> Reward:
    """P(yes, it is a good answer) of a language model taught to say so."""

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        fields = [{"prompt": str(p), "completion": c} for p, c in zip(prompts, completions, strict=True)]
        return yesno.ask(model, [question], fields)

    return checked(reward, name)


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's configuration names a sequence classifier."""
    return any(name.endswith("ForSequenceClassification") for name in _architectures(folder))


def _answers(folder: Path) -> bool:
    """Whether a folder's configuration names a language model."""
    return any(n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in _architectures(folder))


def _architectures(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / "config.json").read_text()).get("architectures") or ()]
    except (OSError, ValueError, AttributeError):
        return []


def checked(reward: Reward, name: str = "reward") -> Reward:
    """The same reward function, whose mistakes are told in one line.

    Raises (when called):
        UserError: it raised, or gave NaN, or not one number for each completion.
    """

    def safe(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        told = one_each(reward, name, "numbers", prompts, completions)
        try:
            given = [float(x) for x in told]
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
        for i, x in enumerate(given):
            if math.isnan(x):
                raise UserError(f"{name} gave NaN for completion {i}: {completions[i][:60]!r}")
        return given

    return safe


def one_each(function: Callable[..., Any], name: str, what: str, *columns: Sequence[str]) -> list[Any]:
    """What a user's function says of every row; its mistakes in one line.

    Raises:
        UserError: it raised, or did not give one value for each row.
    """
    try:
        given = list(function(*map(list, columns)))
    except Exception as error:
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if len(given) != len(columns[-1]):
        raise UserError(f"{name} gave {len(given)} {what} for {len(columns[-1])} completions")
    return given


def by_reward(reward: Reward) -> Judge:
    """The answer of higher reward wins."""

    def judge(prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        pairs = zip(reward(prompts, ours), reward(prompts, theirs), strict=True)
        return [(a > b) + 0.5 * (a == b) for a, b in pairs]

    return judge


def reward_model(folder: str) -> Reward:
    """The single logit of a transformers sequence-classification model on prompt and completion."""
    return checked(functools.partial(rewards.score, opened(folder)), folder)


def opened(folder: str, device: str | None = None) -> Model:
    """A reward model's folder as a model of kind `encoder`, on `device` (the accelerator where there is one).

    Raises:
        UserError: there is none, it has several outputs, or the device cannot be used.
    """
    try:
        module: Any = opening.opened("AutoModelForSequenceClassification", folder)
        tokenizer: Any = opening.opened("AutoTokenizer", folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a reward model: {str(error).splitlines()[0]}") from None
    if module.config.num_labels != 1:
        raise UserError(f"{folder}: a reward model has one output, this one {module.config.num_labels}")
    module.to(load.device_of(device))
    return Model(rewards.padded(module, tokenizer).eval(), tokenizer, "encoder", folder)


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


def letters(model: LM, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """`P(A) / (P(A) + P(B))` that the first answer is better, the mean of both orders: a liking for A cancels.

    From the first token's log-probs; 0.5 where a model names neither letter.
    """
    lm.need(model, "top_logprobs", by="the judge")
    orders = []
    for a, b in ((first, second), (second, first)):
        asked = [QUESTION.format(prompt=p, a=x, b=y) for p, x, y in zip(prompts, a, b, strict=True)]
        orders.append([_share(found) for found in model.top_logprobs(asked, 20)])
    return [(forward + 1 - back) / 2 for forward, back in zip(*orders, strict=True)]


def _share(found: Mapping[str, float]) -> float:
    """A's share of A and B, however they are spaced."""
    a, b = (sum(math.exp(v) for k, v in found.items() if k.strip() == letter) for letter in "AB")
    return a / (a + b) if a + b else 0.5


def win_rate(judge: Judge, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Measure:
    """Share of prompts on which ours is judged better; a tie is half a win."""
    return mean_measure(judge(prompts, ours, theirs), "higher", "answers judged better than the start model's")
