"""`didact merge`: merge an adapter into its start model; the merged model must agree with the two."""

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

TEXTS = 8  # to score both on
AGREE = 1e-3  # nats per token by which float32 sums in another order may differ


def merge(
    folder: str, out: str | None = None, texts: str | None = None, device: str | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Write merged weights to `out` (`FOLDER-merged`), load them again and compare with the adapter on a few texts.

    Raises:
        UserError: there is no adapter, it cannot be merged, or the saved model does not agree with it.
    """
    place = Path(given.place(folder))
    if not (place / "adapter_config.json").exists():
        raise UserError(f"{folder}: not an adapter (no adapter_config.json): there is nothing to merge")
    target = Path(out or f"{str(folder).rstrip('/')}-merged")
    inputs.check_out(str(target), [("adapter", folder)])
    files.replaceable(target)
    model = load.load(place, device, dtype)
    sample = general.texts(texts, "keep")[:TEXTS]
    logp, count = scoring.text_logp(model, sample)
    with files.new_folder(target) as fresh:
        adapters.merged(model).save(fresh)
        after, _ = scoring.text_logp(load.load(fresh, device, dtype), sample)
        gap = float(np.abs((after - logp) / count).max())
        if not gap < (AGREE if dtype in ("float32", "float64") else 0.1):
            raise UserError(f"{folder}: merged, differs by {gap:.2g} nats per token: not saved (try --dtype float32)")
        card_file = place / card.NAME
        if card_file.exists():  # the adapter's card, adapted to merged weights
            text = card_file.read_text(encoding="utf-8").replace("library_name: peft", "library_name: transformers")
            old, new = (card.OPENED[kind].format(place=place.name) for kind in ("peft", "hf"))
            (fresh / card.NAME).write_text(text.replace(old, new), encoding="utf-8")
    return {"out": str(target), "before": -logp.sum() / count.sum(), "after": -after.sum() / count.sum(), "off": gap}
