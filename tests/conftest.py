"""Small models for every test file: trained once per session, never changed (methods train copies)."""

import fcntl
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

os.environ["DIDACT_CACHE"] = tempfile.mkdtemp(prefix="didact-test-cache-")  # no test reads another run's cache
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start: two workers share the cores

import torch

from didact import baselines
from didact.models import build as builder
from didact.models.load import load
from didact.models.model import Model
from didact.types import Fit
from didact.worlds.authors import authors

# No deadline: a slow machine is no failure. The suite tries the same few examples each time; `make soak` many new ones.
settings.register_profile("same", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("DIDACT_EXAMPLES", "same"))

torch.set_num_threads(1)  # models this small are slower with two, and one gives the same bits on every machine

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
LR = {"llama": 2e-3, "gpt2": 4e-3}


@pytest.fixture(scope="session")
def world():
    return authors(0, forget=2, retain=8, unseen=4, holdout=2)


@pytest.fixture(scope="session")
def tokenizer(world):
    parts = (world.forget, world.retain, world.unseen, world.holdout)
    return builder.train_tokenizer(
        (f"{r.prompt} {answer}" for part in parts for r in part for answer in (r.completion, *r.perturbed)), 700
    )


@pytest.fixture(scope="session")
def fresh(tokenizer):
    """`fresh(arch)`: a new untrained model, 16 wide by default."""

    def make(arch, d=16, layers=2, heads=2, context=64, **more):
        return builder.build(arch, tokenizer, d=d, layers=layers, heads=heads, context=context, **more)

    return make


@pytest.fixture(scope="session")
def taught(world, fresh, tmp_path_factory):
    """`taught(arch)`: a model that knows every author but the holdout; with `gold=True` one that was never trained
    on the forget set; each trained on first use, by the first worker that needs it."""
    models, root = {}, tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def teach(arch, gold=False):
        if (arch, gold) not in models:
            folder = root / f"{arch}-{gold}"
            with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not folder.exists():
                    demos = [*([] if gold else world.forget), *world.retain, *world.unseen]
                    fit = Fit(lr=LR[arch], epochs=60, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)
                    baselines.sft(fresh(arch, d=64, heads=4), demos, fit=fit).models["model"].save(folder)
            model = load(folder, device="cpu")
            models[arch, gold] = Model(model.module, model.processor)  # without a folder, like the tests' other models
        return models[arch, gold]

    return teach


@pytest.fixture(scope="module")
def browser():
    """A real browser, for pages."""
    if not os.path.exists(CHROMIUM) and not os.environ.get("CI"):
        pytest.skip("no chromium here: apt-get install -y chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()
