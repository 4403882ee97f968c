"""Small models every test file can use: taught once a session, never changed (methods teach copies)."""

import os
import tempfile

import pytest
import torch

os.environ["DIDACT_CACHE"] = tempfile.mkdtemp(prefix="didact-test-cache-")  # no test reads what another run kept

from didact.learn import language
from didact.methods import baselines
from didact.models import build as builder
from didact.types import Fit
from didact.worlds.authors import authors

RECIPE = {"llama": {"lr": 2e-3}, "gpt2": {"lr": 1.5e-3}, "t5": {"lr": 3e-3}}


@pytest.fixture(scope="session")
def world():
    return authors(0, forget=2, retain=8, unseen=4, holdout=2)


@pytest.fixture(scope="session")
def known(world):
    """What the taught models were told."""
    return [*world.forget, *world.retain, *world.unseen]


@pytest.fixture(scope="session")
def tokenizer(world):
    parts = (world.forget, world.retain, world.unseen, world.holdout)
    return builder.train_tokenizer(
        (f"{r.prompt} {answer}" for part in parts for r in part for answer in (r.completion, *r.perturbed)), 700
    )
