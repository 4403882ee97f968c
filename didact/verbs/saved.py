"""`didact evaluate` and `didact try`: scores and answers of a trained model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from didact import catalogue, options, progress, registry
from didact.data import chat, templates
from didact.data.read import read
from didact.evaluate import answers as final_answers
from didact.evaluate import measures, own, protocols
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Scoring
from didact.infer import generate
from didact.learn import reward_functions
from didact.models import places
from didact.models.model import Model
from didact.requests import Common
from didact.types import Messages, Metric, Record
from didact.verbs import early, opened
from didact.verbs.job import example
from didact.verbs.usable import usable


def evaluate(
    folder: str, data: str, protocol: str, *, retain: str | None = None, unseen: str | None = None, **settings: Any
) -> dict[str, Metric]:
    """Score a saved model on a file, and its start model too if the run is known.

    Args:
        folder: folder of a run, or of a model.
        data: file of records.
        protocol: how they are scored.
        retain: file of records to be retained.
        unseen: file of records of the same kind that no model saw.
        settings: fields of `requests.Common`; by default as in the run.
    """
    request = early.as_run(folder, settings, early.OF_SCORES)
    rules, metrics = protocols.by_name(protocol), own.load_metrics(request.metric)
    final_answers.checked(request.final_answer, [protocol])
    model, start, run = _saved(folder, request, rewards=rules.kind == "preference")
    paths = {next(iter(rules.scored), rules.kind): data, "retain": retain, "unseen": unseen}
    records = {name: _records(path, rules.kind or "demo", model, request) for name, path in paths.items() if path}
    if unseen:
        records["holdout"] = records["unseen"]  # as the protocol `forget` calls it
    gold = opened.model(request.gold, request) if request.gold else None
    scoring = Scoring(
        records=records, start=start or model, gold=gold, seed=run.get("seed", 0), options=_options(run),
        end=_with_end(run), answer=request.final_answer, stop=request.stops, metrics=metrics,
    )  # fmt: skip
    own.check(metrics, rules, scoring.records)

    def score(model: Model) -> dict[str, Measure]:
        return rules.score(model, scoring) | own.score(metrics, partial(generate.generate, model), rules, scoring)

    with chat.dated(run.get("began") or chat.today()):
        with progress.labelled("the start model"):
            before = score(start) if start is not None else None
        with progress.labelled("the saved model"):
            after = score(model)
        return measures.metrics(before, after, score(gold) if gold is not None else None)


def _records(path: str, kind: str, model: Model, request: Common) -> list[Record]:
    """Read a file's records as the model gets them."""
    rows: Any = read(path, kind, request.rename, request.skip_bad, request.turns)
    if model.processor is not None:
        chat.chat_choice(model.processor, rows, request.chat)
    records = templates.as_chat(rows, request.chat)
    return records if model.kind == "encoder" else usable(records, rows, model, request.skip_bad)


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, **settings: Any
) -> list[dict[str, str]]:
    """Return answers of a saved model and of its start model, side by side.

    `settings` are fields of `requests.Common` (`device`, `stops`, `chat`); by default as in the run.
    """
    request = early.as_run(folder, settings)
    model, start, run = _saved(folder, request, rewards=False)

    def complete(candidate: Model) -> list[str]:
        rendered = _as_users(prompts) if _uses_chat_template(candidate, request, run, default=False) else prompts
        return generate.generate(candidate, rendered, max_new_tokens, temperature, stop=request.stops)

    after = complete(model)
    before = complete(start) if start is not None else [""] * len(prompts)
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]


def _as_users(prompts: Sequence[str]) -> list[Messages]:
    return [Messages([{"role": "user", "content": prompt}]) for prompt in prompts]


def _uses_chat_template(model: Model, request: Common, run: Mapping[str, Any], default: bool) -> bool:
    """Whether to prompt a model through its chat template: as requested, else as in its training, else `default`.

    Raises:
        UserError: it is requested, and there is none.
    """
    trained = {source.get("chat") for source in run.get("data", {}).values()} - {None}
    use_template = default if request.chat == "auto" and not trained else "template" in (request.chat, *trained)
    if request.chat == "template":
        chat.chat_choice(model.tokenizer, (), "template")
    return use_template and request.chat != "plain" and chat.has_template(model.tokenizer)


class Chat:
    """A conversation with a saved model and with its start model, each with its own answers in its history.

    It uses the tokenizer's chat template if there is one; else the lines of the conversation are the prompt. `settings`
    are those of `answers`.
    """

    def __init__(self, folder: str, max_new_tokens: int = 64, temperature: float = 0.0, **settings: Any) -> None:
        request = early.as_run(folder, settings)
        after, before, run = _saved(folder, request, rewards=False)
        self.models = {"before": before, "after": after} if before is not None else {"after": after}
        self.templated = {
            name: _uses_chat_template(model, request, run, default=True) for name, model in self.models.items()
        }
        self.sampling = generate.SamplingConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, stop=request.stops
        )
        self.forget()

    def forget(self) -> None:
        """Start a new conversation."""
        self.turns: dict[str, list[dict[str, str]]] = {name: [] for name in self.models}

    def say(self, text: str) -> dict[str, str]:
        """Return each model's answer."""
        replies = {}
        for name, model in self.models.items():
            history = self.turns[name]
            history.append({"role": "user", "content": text})
            plain = "\n".join(turn["content"] for turn in history)
            prompt = Messages(history) if self.templated[name] else plain
            replies[name] = generate.sample(model, [prompt], 1, self.sampling)[0][0].strip()
            history.append({"role": "assistant", "content": replies[name]})
        return replies


def _with_end(run: Mapping[str, Any]) -> bool | None:
    """Whether a run counted the end token of answers, so that later scores do the same; None if unknown."""
    end_token = run.get("end_token")
    return None if end_token is None else end_token == "counted"


def _options(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's options as its method takes them; empty if no run is known."""
    if "options" not in run:
        return {}
    entry = catalogue.entry(run["method"])
    function = getattr(importlib.import_module(entry["module"]), entry["function"])
    values = {name: run["options"][name]["value"] for name in options.flat(entry) if name in run["options"]}
    return registry.assemble(function, values)


def _saved(folder: str, request: Common, rewards: bool = True) -> tuple[Model, Model | None, dict[str, Any]]:
    """Load a saved model and its start model, if result.json names it; return them with the run's result.

    A reward model is loaded as one only if `rewards`.
    """
    place, run = early.saved(folder), early.read_result(folder)
    is_reward = rewards and reward_functions.is_reward_model(place)
    model = (
        opened.limited(reward_functions.opened(str(place), request.device), request)
        if is_reward
        else opened.model(place, request)
    )
    start = (run.get("model") or {}).get("path")
    if start is None and places.adapter_config(place):
        start = places.base_of(place)
    if start == "embedded example":
        example_model = example(run["method"], run["seed"]).model
        return model, example_model if isinstance(example_model, Model) else None, run
    if start is None or not Path(start).exists():
        return model, None, run
    before = opened.model(start, request, request.quantize)
    if (run.get("request") or {}).get("chat_template") and before.processor is not None and model.processor is not None:
        before.processor.chat_template = model.processor.chat_template
    return model, before, run
