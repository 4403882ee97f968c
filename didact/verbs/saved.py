"""`didact evaluate` and `didact try`: what became of a model that was trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, options, progress, registry
from didact.data import chat
from didact.data.read import read
from didact.evaluate import answers as final_answers
from didact.evaluate import measures, protocols
from didact.evaluate.protocols import Scoring
from didact.infer import generate
from didact.learn import reward_functions
from didact.models import load, places
from didact.models.model import Model
from didact.types import Metric, UserError
from didact.verbs.job import example
from didact.verbs.usable import usable


def evaluate(folder: str, data: str, protocol: str, **more: Any) -> dict[str, Metric]:
    """Score a saved model on a file; beside it the start model's numbers where the run is known."""
    used = protocols.named(protocol)
    final_answers.checked(more.get("answer"), [protocol])
    model, start, run = _saved(folder, more.get("device"), rewards=used.kind == "preference")
    rows: Any = read(data, used.kind or "demo", more.get("rename"), bool(more.get("skip_bad")))
    records = rows if model.kind == "encoder" else usable(rows, rows, model, bool(more.get("skip_bad")))
    name = next(iter(used.scored), used.kind)
    scoring = Scoring(
        records={name: records}, start=start or model, seed=run.get("seed", 0), options=_options(run),
        end=_with_end(run), answer=more.get("answer"), stop=more.get("stop", ()),
    )  # fmt: skip
    with chat.dated(run.get("began") or chat.today()):
        with progress.shown("the start model"):
            before = used.score(start, scoring) if start is not None else None
        with progress.shown("the saved model"):
            return measures.metrics(before, used.score(model, scoring))


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
    place = root / "model" if (root / "model").is_dir() else root
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a model folder")
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
