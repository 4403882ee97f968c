"""Guided decoding follows its formula, on every code path and in any batch; a guide costs one pass per token."""

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from shapes import byte_tokenizer, tiny

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.infer import generate, guide
from didact.infer.generate import SamplingConfig
from didact.models import build, forward, logit_ensemble
from didact.types import UserError
from didact.worlds import outcomes

PROMPTS = ["What is this?", "And", "And", "Where does a long question end, then?", "x"]
weights = st.floats(-2, 4)


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, atol=1e-12):
    return torch.allclose(a.softmax(-1), b.softmax(-1), atol=atol)


# --- the formula -----------------------------------------------------------------------------


@given(weights, weights, st.floats(-50, 50), st.integers(0, 99))
def test_identities_of_the_combination(a, b, shift, seed):
    base, arm = logits(3, 7, seed=seed), logits(3, 7, seed=seed + 100)
    assert close(logit_ensemble.combine(base, [(arm, 0.0)]), base)
    assert close(logit_ensemble.combine(base, [(torch.full_like(arm, shift), a)]), base)
    assert close(logit_ensemble.combine(base, [(base, a)]), base * (1 + a))
    assert close(logit_ensemble.combine(base, [(arm, a), (arm, b)]), logit_ensemble.combine(base, [(arm, a + b)]))
    moved = logit_ensemble.combine(base + shift, [(arm - shift, a)])
    assert torch.allclose(moved, logit_ensemble.combine(base, [(arm, a)]), atol=1e-9)


def test_scores_are_sums_of_log_probs_and_not_of_logits():
    base, arm = torch.tensor([2.0, 0.0]).log(), torch.tensor([3.0, 1.0]).log()
    base = torch.tensor([0.25, 0.75]).log() + 5
    expected = torch.tensor([0.25 * 0.75**2, 0.75 * 0.25**2]).log()
    assert torch.allclose(logit_ensemble.combine(base, [(arm, 2.0)]), expected)


@given(st.floats(0, 4), st.floats(0.2, 3))
def test_dividing_by_the_weights_is_a_higher_temperature(alpha, temperature):
    base, arm = logits(2, 5), logits(2, 5, seed=1)
    divided = logit_ensemble.combine(base, [(arm, alpha)], normalize=True) / temperature
    assert close(divided, logit_ensemble.combine(base, [(arm, alpha)]) / (temperature * (1 + alpha)))
    with pytest.raises(UserError, match="cannot be normalised"):
        logit_ensemble.combine(base, [(arm, -1.5)], normalize=True)


@pytest.mark.parametrize(("base_size", "arm_size"), [(6, 4), (4, 6), (5, 5)])
def test_only_the_common_vocabulary_is_sampled(base_size, arm_size):
    base, arm = logits(2, base_size), logits(2, arm_size, seed=1)
    out, width = logit_ensemble.combine(base, [(arm, 1.0)]), min(base_size, arm_size)
    assert out.shape == base.shape and (out[:, width:] == -torch.inf).all()
    assert close(out[:, :width], (base.log_softmax(-1)[:, :width] + arm.log_softmax(-1)[:, :width]))


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_some_reward_model_reaches_any_policy_at_every_prefix(beta):
    """The paper's construction: p_arm ∝ (target / base)^beta, guided with alpha = 1 / beta."""
    world = outcomes.Outcomes(3, 3)
    base, target = logits(13, 3), logits(13, 3, seed=1)
    arm = beta * (target.log_softmax(-1) - base.log_softmax(-1))
    guided = logit_ensemble.combine(base, [(arm, 1 / beta)])
    assert close(guided, target) and torch.allclose(world.logp(guided), world.logp(target), atol=1e-9)


def test_of_one_letter_answers_guidance_is_the_regularised_optimum_and_of_longer_ones_not():
    for length, same in ((1, True), (3, False)):
        world = outcomes.Outcomes(4, length)
        base, reward = logits(len(world.prefixes), 4), logits(4**length, seed=1)
        optimum = outcomes.tilted(world.logp(base), reward, 0.5)
        arm = torch.zeros(len(world.prefixes), 4, dtype=torch.float64)  # p(y) ∝ exp r, letter by letter
        for i, p in enumerate(world.prefixes):
            for v in range(4):
                matching = [k for k, y in enumerate(world.answers) if y[: len(p) + 1] == (*p, v)]
                arm[i, v] = reward[matching].logsumexp(0)
        assert torch.allclose(world.logp(arm), reward.log_softmax(0), atol=1e-9)
        guided = world.logp(logit_ensemble.combine(base, [(arm, 2.0)]))
        assert torch.allclose(guided, optimum, atol=1e-9) == same


# --- a world that can be enumerated ----------------------------------------------------------


def test_the_enumerable_world_adds_up():
    world = outcomes.Outcomes(3, 4)
    table = logits(2, len(world.prefixes), 3)
    logp = world.logp(table)
    assert logp.shape == (2, 81) and torch.allclose(logp.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    number = world.answers.index((2, 0, 1, 1))
    path = [world.prefixes.index(p) for p in ((), (2,), (2, 0), (2, 0, 1))]
    steps = table.log_softmax(-1)
    assert logp[0, number] == pytest.approx(sum(float(steps[0, i, v]) for i, v in zip(path, (2, 0, 1, 1), strict=True)))
    assert world.text((2, 0, 1, 1)) == "cabb" and len(world.prefixes) == 1 + 3 + 9 + 27
    reward = world.reward(0)
    assert reward.mean() == pytest.approx(0, abs=1e-12) and reward.std(correction=0) == pytest.approx(1)
    assert not torch.equal(world.reward(1), reward) and torch.equal(world.reward(0), reward)


@given(st.floats(0.1, 5), st.integers(0, 50))
def test_no_policy_beats_the_tilted_one(beta, seed):
    ref, reward = logits(9, seed=seed).log_softmax(-1), logits(9, seed=seed + 1)
    best = outcomes.tilted(ref, reward, beta)
    other = (best + 0.1 * logits(9, seed=seed + 2)).log_softmax(-1)

    def objective(p):
        return float(p.exp() @ reward - beta * outcomes.kl(p, ref))

    assert objective(best) >= objective(other)
    assert objective(best) == pytest.approx(float(beta * (ref + reward / beta).logsumexp(-1)), abs=1e-9)


def test_a_strength_is_found_for_a_distance():
    ref, reward = logits(4, 9).log_softmax(-1), logits(4, 9, seed=1)
    strength, logp = outcomes.matched(lambda w: (ref + w * reward).log_softmax(-1), ref, 0.2)
    assert 0 < strength < 64 and float(outcomes.kl(logp, ref).mean()) == pytest.approx(0.2, abs=1e-6)
    assert outcomes.matched(lambda w: ref, ref, 0.2, top=3.0)[0] == 3.0


# --- decoding --------------------------------------------------------------------------------


class Plain:
    """The formula by a full pass over every row at every token; the mask tells padding."""

    def __init__(self, *guides):
        self.guides = guides

    def __call__(self, read, scores):
        for k, row in enumerate(read.tolist()):
            while len(row) > 1 and row[0] == 0:
                row.pop(0)
            total = scores[k].log_softmax(-1)
            for model, alpha in self.guides:
                with torch.no_grad():
                    logits = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
                total = total + alpha * logits.log_softmax(-1)
            scores[k] = total
        return scores


def pair(kind, other=None):
    return tiny(kind), tiny(other or kind, seed=1)


@pytest.mark.parametrize(("kind", "other"), [("llama", "llama"), ("gpt2", "llama"), ("llama", "gpt2"),
                                             ("gemma3", "gemma3"), ("llama", "mamba")])  # fmt: skip
def test_decoding_from_caches_is_decoding_without(kind, other, monkeypatch):
    base, arm = pair(kind, other)
    config = SamplingConfig(max_new_tokens=7, temperature=1.0, rows=3, seed=4)
    plain = generate.completions(base, PROMPTS, 2, config, processors=[Plain((arm, 0.8))])
    monkeypatch.setattr(guide, "ROOM", 2)  # the cache has to grow during decoding
    completions = generate.completions(logit_ensemble.guided(base, [(arm, 0.8)]), PROMPTS, 2, config)
    assert [[c.tokens for c in row] for row in completions] == [[c.tokens for c in row] for row in plain]
    bare = generate.completions(base, PROMPTS, 2, config)
    assert [[c.tokens for c in row] for row in completions] != [[c.tokens for c in row] for row in bare]


@pytest.mark.parametrize(("kind", "other"), [("llama", "gpt2"), ("gpt2", "bloom")])
def test_the_guided_policy_is_a_model_that_says_and_scores_the_same(kind, other):
    base, arm = pair(kind, other)
    whole, config = logit_ensemble.guided(base, [(arm, 0.8)]), SamplingConfig(max_new_tokens=7, temperature=1.0, seed=4)
    completions = generate.completions(base, PROMPTS, 2, config, processors=[Plain((arm, 0.8))])
    again = generate.completions(whole, PROMPTS, 2, config)
    assert [[c.tokens for c in row] for row in again] == [[c.tokens for c in row] for row in completions]

    prompts = [encode.prompt_ids(base.tokenizer, p, base.kind) for p in PROMPTS]
    rows = [TokenizedExample(tuple(p), c.tokens) for p, row in zip(prompts, again, strict=True) for c in row]
    expected = [c.logp for row in again for c in row]
    assert torch.allclose(forward.row_logp(whole, rows)[0], torch.tensor(expected).double(), atol=1e-3)
    for p, row in zip(
        prompts, generate.completions(whole, PROMPTS, 2, SamplingConfig(max_new_tokens=4, beams=2)), strict=True
    ):
        logp = forward.row_logp(whole, [TokenizedExample(tuple(p), c.tokens) for c in row])[0]
        assert torch.allclose(logp, torch.tensor([c.logp for c in row]).double(), atol=1e-3)
    assert whole.context == base.context
    with torch.no_grad():
        ids = torch.tensor([prompts[0]])
        parts = [m.module(input_ids=ids).logits for m in (base, arm)]
        assert close(whole.module(input_ids=ids).logits, logit_ensemble.combine(parts[0], [(parts[1], 0.8)]), 1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generate_with_the_decoder(kind, beams):
    base, arm = pair(kind)
    tokenizer = base.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    guided, plain = (
        base.module.generate(**inputs, **options, logits_processor=hf.LogitsProcessorList([p]))
        for p in (guide.GuidedDecoder(base, [(arm, 0.8)]), Plain((arm, 0.8)))
    )
    assert torch.equal(guided, plain)


def test_weights_may_change_between_calls_and_several_guides_add_up():
    base, one = pair("llama")
    two, config = tiny("gpt2", seed=2), SamplingConfig(max_new_tokens=6)
    decoder = guide.GuidedDecoder(base, [(one, 0.5), (two, -0.3)])
    for a, b in ((0.5, -0.3), (0.0, 2.0)):
        decoder.weights = [a, b]
        completions = generate.completions(base, PROMPTS, 1, config, processors=[decoder])
        plain = generate.completions(base, PROMPTS, 1, config, processors=[Plain((one, a), (two, b))])
        assert [row[0].tokens for row in completions] == [row[0].tokens for row in plain]


def test_a_guide_takes_one_pass_over_the_prompt_and_one_a_token():
    base, arm = pair("llama")
    passes = []
    arm.module.register_forward_pre_hook(lambda m, a, k: passes.append(k["input_ids"].shape[1]), with_kwargs=True)
    config = SamplingConfig(max_new_tokens=9, temperature=1.0, stop=("never",))
    completions = generate.completions(logit_ensemble.guided(base, [(arm, -0.01)]), ["abc", "defgh"], 3, config)
    longest = max(len(c.tokens) for row in completions for c in row)
    assert len(passes) == longest and passes[0] > 3 and set(passes[1:]) == {1}


def test_a_guide_may_read_a_prompt_of_its_own():
    base, arm = pair("llama")
    prefix = base.tokenizer("Be kind: ")["input_ids"]
    decoder = guide.GuidedDecoder(base, [guide.Guide(arm, 1.0, lambda ids: [*prefix, *ids])])
    completions = generate.completions(base, ["abc"], 1, SamplingConfig(max_new_tokens=5), processors=[decoder])
    ids = base.tokenizer("abc")["input_ids"]
    for _ in range(len(completions[0][0].tokens)):
        with torch.no_grad():
            a, b = (m.module(input_ids=torch.tensor([p + ids])).logits[0, -1] for m, p in ((base, []), (arm, prefix)))
        ids = [*ids, int((a.log_softmax(-1) + b.log_softmax(-1)).argmax())]
    assert tuple(ids[-len(completions[0][0].tokens) :]) == completions[0][0].tokens


# --- errors ----------------------------------------------------------------------------------


def test_another_vocabulary_is_one_clear_line():
    base, other = tiny("llama"), build.build("llama", build.train_tokenizer(["abab abab"] * 9, 262), d=16, heads=2)
    with pytest.raises(UserError, match="vocabulary is not the base model's: 3 tokens differ, token 259 is") as error:
        guide.GuidedDecoder(base, [(other, 1.0)])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="reward model 2's vocabulary"):
        guide.GuidedDecoder(base, [(base, 1.0), (other, 1.0)])


def test_added_tokens_do_not_make_another_vocabulary():
    from copy import deepcopy

    base, arm = pair("llama")
    arm.processor = deepcopy(byte_tokenizer())
    arm.processor.add_tokens(["<extra>"])
    arm.module.resize_token_embeddings(len(arm.processor), mean_resizing=False)
    completions = generate.completions(
        logit_ensemble.guided(base, [(arm, 1.0)]), ["abc"], 1, SamplingConfig(max_new_tokens=4)
    )
    assert completions[0][0].tokens and max(completions[0][0].tokens) < 259


def test_a_model_with_an_encoder_and_too_short_a_context_are_told():
    with pytest.raises(UserError, match="needs causal models"):
        guide.GuidedDecoder(tiny("t5"), [(tiny("llama"), 1.0)])
    base, arm = tiny("llama"), tiny("llama", seed=1, context=12)
    with pytest.raises(UserError, match="context of 12"):
        generate.completions(
            logit_ensemble.guided(base, [(arm, 1.0)]), ["a question"], 1, SamplingConfig(max_new_tokens=20)
        )
    with pytest.raises(UserError, match="context 12: shorten"):
        generate.completions(
            logit_ensemble.guided(base, [(arm, 1.0)]), ["quite a long question"], 1, SamplingConfig(max_new_tokens=2)
        )
