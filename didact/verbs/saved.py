"""`didact evaluate` and `didact try`: what became of a model that was taught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from didact import files
from didact.data.read import read
from didact.evaluate import protocols
from didact.infer import generate, guide
from didact.learn import reward_functions
from didact.models import load
from didact.models.model import Model
from didact.types import Metric, UserError
from didact.verbs.job import example


def evaluate(folder: str, data: str, protocol: str, **more: Any) -> dict[str, Metric]:
    """Score a saved model on a file; beside it the start model's numbers where the run is known.

    A reward model is scored by its rewards (`prefer` only), one that guides as the guided policy.
    """
    model, start = _saved(folder, more.get("device"), rewards=protocol == "prefer")
    if guides := _guides(folder, model, start):
        model = guide.policy(*guides)
    kind = {"answer": "demo", "forget": "demo", "prefer": "preference", "text": "text"}[protocol]
    records: Any = read(data, kind, more.get("rename"), bool(more.get("skip_bad")))
    score: Any = getattr(protocols, protocol)
    before = score(start, records) if start is not None else None
    return protocols.compare(before, score(model, records))


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, device: str | None = None
) -> list[dict[str, str]]:
    """Answers of a saved model and of the model it was taught from, side by side."""
    model, start = _saved(folder, device)
    how = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    if guides := _guides(folder, model, start):
        base, arms, normalize = guides
        made = guide.completions(base, arms, prompts, 1, how, normalize)
    else:
        made = generate.completions(model, prompts, 1, how)
    after = [row[0].text for row in made]
    before = (
        generate.generate(start, prompts, max_new_tokens, temperature) if start is not None else [""] * len(prompts)
    )
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]


def _saved(folder: str, device: str | None, rewards: bool = False) -> tuple[Model, Model | None]:
    """A saved model, and the one it was taught from where result.json names it; a reward model where that will do."""
    root = Path(folder)
    place = root / "model" if (root / "model").is_dir() else root
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a model folder")
    judge = rewards and reward_functions.is_reward_model(place)
    model = reward_functions.opened(str(place), device) if judge else load.load(place, device)
    kept = files.read_json(root / "result.json") if (root / "result.json").exists() else {}
    start = (kept.get("model") or {}).get("path")
    if start == "embedded example":
        return model, example(kept["method"], kept["seed"]).model
    if start is None or not Path(start).exists():
        return model, None
    return model, load.load(start, device)


def _guides(folder: str, model: Model, start: Model | None) -> tuple[Model, list[tuple[Model, float]], bool] | None:
    """Where the saved model is a reward model that guides: the start model, what guides it, and how; else None."""
    place = Path(folder) / "result.json"
    told = files.read_json(place).get("findings", {}).get("guided") if place.exists() else None
    if told is None:
        return None
    if start is None:
        raise UserError(f"{folder}: holds a reward model, which guides the start model, and that is not there any more")
    further = [load.load(other, str(start.device)) for other in told["others"]]
    return start, list(zip([model, *further], told["alphas"], strict=True)), told["normalize"]
