"""didact from Python, cell by cell: teach, ask, score, save, open again, forget. Seconds on a laptop.

Open it as a notebook (VS Code and jupytext read the cells), or run it: python examples/first_steps.py
"""

# %% A small new model, so that nothing is downloaded; `didact.load("path/or/hub-id")` opens one of yours.
import tempfile
from pathlib import Path

import didact
from didact.models.build import train_tokenizer

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi"}
demos = [didact.Demo(prompt=f"The capital of {land} is", completion=f" {town}") for land, town in CAPITALS.items()]
tokenizer = train_tokenizer((d.prompt + d.completion for d in demos), 340)
model = didact.build("llama", tokenizer, d=32, layers=2, heads=2, context=64)
print(model)

# %% A method is a function: models and records first, then its options, then how to train.
result = didact.baselines.sft(model, demos, fit=didact.Fit(lr=1e-2, steps=60, rows=6, schedule="constant"))
taught = result.models["model"]
print(result)

# %% Ask the model; score completions, in nats.
print(taught.answer("The capital of Italy is"))
print(taught.score([("The capital of Italy is", " Rome"), ("The capital of Italy is", " Lima")]))

# %% Metrics before and after, by the method's own protocol; `evaluate` takes held-out records.
print(result.metrics["token_accuracy"])
result.report()

# %% Saved, it is the same folder as a run of the command line writes: `didact report`, `try` and `evaluate` read it.
folder = Path(tempfile.mkdtemp()) / "capitals"
result.report(folder)
opened = didact.load(folder / "model")
print(opened.answer([d.prompt for d in demos]))

# %% Forget two of them again, keep the rest.
how = didact.Fit(lr=3e-3, steps=20, rows=6, schedule="constant")
unlearnt = didact.unlearning.npo(taught, forget=demos[:2], retain=demos[2:], fit=how)
unlearnt.report()
