"""Small models every test file can use: taught once a session, never changed (methods teach copies)."""

import fcntl
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

os.environ["DIDACT_CACHE"] = tempfile.mkdtemp(prefix="didact-test-cache-")  # no test reads what another run kept

import torch

from didact import baselines
from didact.models import build as builder
from didact.models.load import load
from didact.models.model import Model
from didact.types import Fit
from didact.worlds.authors import authors

# A busy machine is no failure. The suite tries the same few examples each time; `make soak` tries many new ones.
settings.register_profile("same", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("DIDACT_EXAMPLES", "same"))

torch.set_num_threads(1)  # models this small lose by two, and one gives the same bits wherever the tests run

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
    """`fresh(arch)`: a new untaught model, 16 wide by default."""

    def make(arch, d=16, layers=2, heads=2, context=64, **more):
        return builder.build(arch, tokenizer, d=d, layers=layers, heads=heads, context=context, **more)

    return make


@pytest.fixture(scope="session")
def taught(world, fresh, tmp_path_factory):
    """`taught(arch)`: a model that knows every author but the holdout, and `taught(arch, gold=True)` one never told
    what is to be forgotten; each trained on first use, by the first worker that needs it."""
    made, root = {}, tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def teach(arch, gold=False):
        if (arch, gold) not in made:
            place = root / f"{arch}-{gold}"
            with open(f"{place}.lock", "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not place.exists():
                    told = [*([] if gold else world.forget), *world.retain, *world.unseen]
                    how = Fit(lr=LR[arch], epochs=60, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)
                    baselines.sft(fresh(arch, d=64, heads=4), told, fit=how).models["model"].save(place)
            kept = load(place, device="cpu")
            made[arch, gold] = Model(kept.module, kept.processor)  # from no folder, as the tests' other models
        return made[arch, gold]

    return teach


@pytest.fixture(scope="module")
def browser():
    """A real one, for pages."""
    if not os.path.exists(CHROMIUM) and not os.environ.get("CI"):
        pytest.skip("no chromium here: apt-get install -y chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()
