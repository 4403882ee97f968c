"""`didact merge`: an adapter and its start model as whole weights, which must say what the two said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from didact import files
from didact.data import general
from didact.evaluate import general as scoring
from didact.models import adapters, load
from didact.types import UserError
from didact.verbs import card, given, inputs

TEXTS = 8  # that both are scored on
AGREE = 1e-3  # nats a token that float32 sums in another order may differ by


def merge(
    folder: str, out: str | None = None, texts: str | None = None, device: str | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Whole weights in `out` (`FOLDER-merged`), opened again and scored against the adapter on a few texts.

    Raises:
        UserError: there is no adapter, it is no update of weights, or what was saved does not agree.
    """
    place = Path(given.place(folder))
    if not (place / "adapter_config.json").exists():
        raise UserError(f"{folder}: no adapter (no adapter_config.json): its weights are whole already")
    target = Path(out or f"{str(folder).rstrip('/')}-merged")
    inputs.check_apart(str(target), [("adapter", folder)])
    files.replaceable(target)
    model = load.load(place, device, dtype)
    some = general.texts(texts, "keep")[:TEXTS]
    logp, count = scoring.text_logp(model, some)
    with files.new_folder(target) as fresh:
        adapters.merged(model).save(fresh)
        after, _ = scoring.text_logp(load.load(fresh, device, dtype), some)
        off = float(np.abs((after - logp) / count).max())
        if not off < (AGREE if dtype in ("float32", "float64") else 0.1):
            raise UserError(f"{folder}: merged, it differs by {off:.2g} nats a token: not kept (try --dtype float32)")
        kept = place / card.NAME
        if kept.exists():  # the adapter's own card, of whole weights now
            told = kept.read_text(encoding="utf-8").replace("library_name: peft", "library_name: transformers")
            was, now = (card.OPENED[kind].format(place=place.name) for kind in ("peft", "hf"))
            (fresh / card.NAME).write_text(told.replace(was, now), encoding="utf-8")
    return {"out": str(target), "before": -logp.sum() / count.sum(), "after": -after.sum() / count.sum(), "off": off}
