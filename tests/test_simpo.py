"""simpo generalises a preference to held-out prompts, without a reference."""

import numpy as np
import pytest
from shapes import EFFECTS

from didact import baselines
from didact.evaluate import protocols
from didact.evaluate.protocols import Scoring
from didact.learn.pairs import groups
from didact.models import forward
from didact.types import Fit, Preference

FIT = Fit(lr=1e-3, steps=30, rows=16, schedule="linear")


def pairs(records):
    """The longer of two wordings of an unknown answer is preferred, so that only the rule can be learned."""
    rng = np.random.default_rng(0)
    answers = [str(rng.choice(r.perturbed)) for r in records]
    return [
        Preference(prompt=r.prompt, chosen=f"the {a}, sir", rejected=a) for r, a in zip(records, answers, strict=True)
    ]


def margins(model, preferences):
    """Return the margin between the chosen and the rejected completion's mean log-prob, nats per token."""
    sides = [forward.row_logp(model, rows) for rows in zip(*groups(model, preferences), strict=True)]
    chosen, rejected = (total / count for total, count in sides)
    return (chosen - rejected).numpy()


@pytest.mark.parametrize("arch", EFFECTS)
def test_a_preference_is_carried_to_prompts_it_never_saw(arch, taught, world):
    start, held_out = taught(arch), pairs(world.holdout)
    assert (margins(start, held_out) > 0).mean() < 0.5
    result = baselines.simpo(start, pairs(world.retain[:40]), fit=FIT)
    model = result.models["model"]
    assert (margins(model, held_out) > 0).mean() > 0.9 and result.history[-1]["accuracy"] == 1
    scored = protocols.by_name("prefer").score(model, Scoring(records={"": held_out}, start=start))
    assert scored["reward_accuracy"].value > 0.9


def test_a_margin_that_is_reached_pulls_no_more(taught, world):
    start, train = taught("llama"), pairs(world.retain[:40])
    reached = [baselines.simpo(start, train, gamma=gamma, fit=FIT).history[-1]["margin"] for gamma in (0.0, 4.0)]
    assert 0 < reached[0] < reached[1]


def test_the_loss_of_a_pair_and_of_its_reversal_differ_by_the_margin(fresh, world):
    start, (pair,) = fresh("llama"), pairs(world.retain[:1])
    swapped = Preference(prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen)
    one = Fit(lr=0.0, steps=1, rows=1)
    first, second = (baselines.simpo(start, [p], gamma=0.0, fit=one).history[0] for p in (pair, swapped))
    assert first["simpo"] - second["simpo"] == pytest.approx(-first["margin"], abs=1e-5)
    assert first["margin"] == pytest.approx(-second["margin"], abs=1e-6)
