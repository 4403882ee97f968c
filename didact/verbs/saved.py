"""`didact evaluate` and `didact try`: what became of a model that was trained."""

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
    folder: str, data: str, protocol: str, *, retain: str | None = None, unseen: str | None = None, **how: Any
) -> dict[str, Metric]:
    """Score a saved model on a file; beside it the start model's numbers where the run is known.

    Args:
        folder: of a run, or a model's own.
        data: the records.
        protocol: how they are scored.
        retain: records that must stay.
        unseen: records of the same sort that no model saw.
        how: of `requests.Common`; what is not said is as the run had it.
    """
    asked = early.as_run(folder, how, early.OF_SCORES)
    used, metrics = protocols.named(protocol), own.named(asked.metric)
    final_answers.checked(asked.final_answer, [protocol])
    model, start, run = _saved(folder, asked, rewards=used.kind == "preference")
    named = {next(iter(used.scored), used.kind): data, "retain": retain, "unseen": unseen}
    given = {name: _records(path, used.kind or "demo", model, asked) for name, path in named.items() if path}
    if unseen:
        given["holdout"] = given["unseen"]  # as the protocol `forget` calls it
    gold = opened.model(asked.gold, asked) if asked.gold else None
    scoring = Scoring(
        records=given, start=start or model, gold=gold, seed=run.get("seed", 0), options=_options(run),
        end=_with_end(run), answer=asked.final_answer, stop=asked.stops, metrics=metrics,
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


def _records(path: str, kind: str, model: Model, asked: Common) -> list[Record]:
    """A file's records as the model is given them."""
    rows: Any = read(path, kind, asked.rename, asked.skip_bad, asked.turns)
    if model.processor is not None:
        chat.chat_choice(model.processor, rows, asked.chat)
    records = templates.as_chat(rows, asked.chat)
    return records if model.kind == "encoder" else usable(records, rows, model, asked.skip_bad)


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, **how: Any
) -> list[dict[str, str]]:
    """Answers of a saved model and of the model it was trained from, side by side.

    `how` are fields of `requests.Common` (`device`, `stops`, `chat`); what is not said is as the run had it.
    """
    asked = early.as_run(folder, how)
    model, start, run = _saved(folder, asked, rewards=False)

    def ask(of: Model) -> list[str]:
        said = _as_users(prompts) if _spoken(of, asked, run, unsaid=False) else prompts
        return generate.generate(of, said, max_new_tokens, temperature, stop=asked.stops)

    after = ask(model)
    before = ask(start) if start is not None else [""] * len(prompts)
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]


def _as_users(prompts: Sequence[str]) -> list[Messages]:
    return [Messages([{"role": "user", "content": prompt}]) for prompt in prompts]


def _spoken(model: Model, asked: Common, run: Mapping[str, Any], unsaid: bool) -> bool:
    """Whether a model is asked through its chat template: as was said, else as its run's records were put to it; else
    `unsaid`.

    Raises:
        UserError: it is said, and there is none.
    """
    trained = {of.get("chat") for of in run.get("data", {}).values()} - {None}
    wanted = unsaid if asked.chat == "auto" and not trained else "template" in (asked.chat, *trained)
    if asked.chat == "template":
        chat.chat_choice(model.tokenizer, (), "template")
    return wanted and asked.chat != "plain" and chat.has_template(model.tokenizer)


class Chat:
    """A conversation with a saved model and with the one it was trained from, each with its own answers in its history.

    Through the tokenizer's chat template where it has one; else the lines of the conversation are the prompt. `how` is
    as `answers` has it.
    """

    def __init__(self, folder: str, max_new_tokens: int = 64, temperature: float = 0.0, **how: Any) -> None:
        asked = early.as_run(folder, how)
        after, before, run = _saved(folder, asked, rewards=False)
        self.models = {"before": before, "after": after} if before is not None else {"after": after}
        self.spoken = {name: _spoken(model, asked, run, unsaid=True) for name, model in self.models.items()}
        self.how = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, stop=asked.stops)
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
            prompt = Messages(history) if self.spoken[name] else plain
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


def _saved(folder: str, asked: Common, rewards: bool = True) -> tuple[Model, Model | None, dict[str, Any]]:
    """A saved model, the one it was trained from where result.json names it, and the run's result.

    A reward model is opened only where rewards are wanted.
    """
    place, run = early.saved(folder), early.told(folder)
    judge = rewards and reward_functions.is_reward_model(place)
    model = (
        opened.limited(reward_functions.opened(str(place), asked.device), asked)
        if judge
        else opened.model(place, asked)
    )
    start = (run.get("model") or {}).get("path")
    if start is None and places.adapter_config(place):
        start = places.base_of(place)
    if start == "embedded example":
        own = example(run["method"], run["seed"]).model
        return model, own if isinstance(own, Model) else None, run
    if start is None or not Path(start).exists():
        return model, None, run
    before = opened.model(start, asked, asked.quantize)
    if (run.get("request") or {}).get("chat_template") and before.processor is not None and model.processor is not None:
        before.processor.chat_template = model.processor.chat_template
    return model, before, run
