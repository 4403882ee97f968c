"""`didact evaluate` and `didact try`: what became of a model that was trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from didact import catalogue, files, options, progress, registry
from didact.data import chat
from didact.data.read import read
from didact.evaluate import answers as final_answers
from didact.evaluate import measures, own, protocols
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Scoring
from didact.infer import generate
from didact.learn import reward_functions
from didact.models import load, places
from didact.models.model import Model
from didact.types import Messages, Metric
from didact.verbs import early
from didact.verbs.job import example
from didact.verbs.usable import usable


def evaluate(folder: str, data: str, protocol: str, **more: Any) -> dict[str, Metric]:
    """Score a saved model on a file; beside it the start model's numbers where the run is known."""
    used, metrics = protocols.named(protocol), own.named(more.get("metric"))
    final_answers.checked(more.get("answer"), [protocol])
    model, start, run = _saved(folder, more.get("device"), rewards=used.kind == "preference")
    rows: Any = read(data, used.kind or "demo", more.get("rename"), bool(more.get("skip_bad")))
    records = rows if model.kind == "encoder" else usable(rows, rows, model, bool(more.get("skip_bad")))
    name = next(iter(used.scored), used.kind)
    given = {name: records}
    for other, path in (("retain", more.get("retain")), ("unseen", more.get("unseen"))):
        if path:
            given[other] = list(read(path, used.kind or "demo", more.get("rename"), bool(more.get("skip_bad"))))
    if more.get("unseen"):
        given["holdout"] = given["unseen"]  # as the protocol `forget` calls it
    gold = load.load(more["gold"], more.get("device")) if more.get("gold") else None
    scoring = Scoring(
        records=given, start=start or model, gold=gold, seed=run.get("seed", 0), options=_options(run),
        end=_with_end(run), answer=more.get("answer"), stop=more.get("stop", ()), metrics=metrics,
    )  # fmt: skip
    own.check(metrics, used, scoring.records)

    def score(of: Model) -> dict[str, Measure]:
        return used.score(of, scoring) | own.score(metrics, partial(generate.generate, of), used, scoring)

    with chat.dated(run.get("began") or chat.today()):
        with progress.shown("the start model"):
            before = score(start) if start is not None else None
        with progress.shown("the saved model"):
            after = score(model)
        return measures.metrics(before, after, score(gold) if gold is not None else None)


def answers(
    folder: str,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    device: str | None = None,
    stop: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Answers of a saved model and of the model it was trained from, side by side."""
    model, start, _ = _saved(folder, device, rewards=False)
    after = generate.generate(model, prompts, max_new_tokens, temperature, stop=stop)
    before = (
        generate.generate(start, prompts, max_new_tokens, temperature, stop=stop)
        if start is not None
        else [""] * len(prompts)
    )
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]


class Chat:
    """A conversation with a saved model and with the one it was trained from, each with its own answers in its history.

    Through the tokenizer's chat template where it has one; else the lines of the conversation are the prompt.
    """

    def __init__(
        self, folder: str, max_new_tokens: int = 64, temperature: float = 0.0, device: str | None = None
    ) -> None:
        after, before, _ = _saved(folder, device, rewards=False)
        self.models = {"before": before, "after": after} if before is not None else {"after": after}
        self.how = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.turns: dict[str, list[dict[str, str]]] = {name: [] for name in self.models}

    def say(self, text: str) -> dict[str, str]:
        """What each model answers."""
        said = {}
        for name, model in self.models.items():
            history = self.turns[name]
            history.append({"role": "user", "content": text})
            plain = "\n".join(turn["content"] for turn in history)
            prompt = Messages(history) if model.tokenizer.chat_template else plain
            said[name] = generate.sample(model, [prompt], 1, self.how)[0][0].strip()
            history.append({"role": "assistant", "content": said[name]})
        return said


def _with_end(run: Mapping[str, Any]) -> bool | None:
    """Whether a run counted the end token of answers, so that what is said of it later counts alike."""
    said = run.get("end_token")
    return None if said is None else said == "counted"


def _options(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options as its method takes them; none where no run is known."""
    if "options" not in run:
        return {}
    entry = catalogue.entry(run["method"])
    function = getattr(importlib.import_module(entry["module"]), entry["function"])
    values = {name: run["options"][name]["value"] for name in options.flat(entry) if name in run["options"]}
    return registry.assemble(function, values)


def _saved(folder: str, device: str | None, rewards: bool = True) -> tuple[Model, Model | None, dict[str, Any]]:
    """A saved model, the one it was trained from where result.json names it, and the run's result.

    A reward model is opened only where rewards are wanted.
    """
    root = Path(folder)
    place = early.saved(folder)
    judge = rewards and reward_functions.is_reward_model(place)
    model = reward_functions.opened(str(place), device) if judge else load.load(place, device)
    told = files.read_json(root / "result.json") if (root / "result.json").exists() else {}
    run = told if isinstance(told, dict) and told.get("verb") == "run" else {}
    start = (run.get("model") or {}).get("path")
    if start is None and places.adapter_config(place):
        start = places.base_of(place)
    if start == "embedded example":
        return model, example(run["method"], run["seed"]).model, run
    if start is None or not Path(start).exists():
        return model, None, run
    before = load.load(start, device)
    if (run.get("request") or {}).get("chat_template") and before.processor is not None and model.processor is not None:
        before.processor.chat_template = model.processor.chat_template
    return model, before, run
