"""dual-form: exact identities, recorded attention, similarities with their controls, momentum attention."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import tiny

from didact import mechanisms
from didact.evaluate import dual_form, dual_study
from didact.evaluate.three_way import Episode, LanguageReader, Way
from didact.learn.subset import Tuning
from didact.models import attention, insert, modules, momentum, projections
from didact.types import Demo, Fit, Text, UserError

COLOURS = ["red", "blue"]
DEMOS = [Demo(prompt=f"{w}{w}:", completion=COLOURS[i % 2], choices=COLOURS) for i, w in enumerate("abcdefghij")]
EPISODE = Episode(tuple(DEMOS[:3]), tuple(DEMOS[5:8]))
F64 = torch.float64


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), context=st.integers(1, 8), own=st.integers(1, 5))
def test_attention_without_softmax_is_an_update_of_weights(seed: int, context: int, own: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(context + own, d, generator=generator, dtype=F64) for d in (6, 4))
    query, start = torch.randn(6, generator=generator, dtype=F64), torch.randn(4, 6, generator=generator, dtype=F64)
    update = dual_form.implicit_update(values[:context], keys[:context])
    with_them = dual_form.linear_attention(values, keys, query)
    alone = dual_form.linear_attention(values[context:], keys[context:], query)
    torch.testing.assert_close(with_them - alone, update @ query)
    assert torch.linalg.matrix_rank(update) <= min(context, 4)
    permutation = torch.randperm(context, generator=generator)
    torch.testing.assert_close(
        update, dual_form.implicit_update(values[:context][permutation], keys[:context][permutation])
    )
    # One step of gradient descent on 1/2 ||W x - y||^2: the values are -lr (W0 x - y).
    step = start - 0.3 * (keys @ start.T - values).T @ keys
    errors = -0.3 * (keys @ start.T - values)
    torch.testing.assert_close(step @ query, start @ query + dual_form.linear_attention(errors, keys, query))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "gemma2", "gpt_neox", "opt"])
def test_what_is_recorded_is_what_the_model_does(kind: str) -> None:
    model = tiny(kind)
    ids = torch.arange(40, 52)[None]
    implementation = model.config._attn_implementation
    with torch.no_grad():
        plain = model.module(input_ids=ids, use_cache=False).logits
        with attention.recorded(model.module) as tape:
            again = model.module(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == implementation and len(tape.passes) == 1 and len(tape.passes[0]) == 2
    for layer, out in zip(tape.passes[0], tape.outputs[0], strict=True):
        mixed = torch.einsum("bhs,bhsd->bhd", layer.weights(), layer.value)
        torch.testing.assert_close(mixed, layer.heads[:, -1], atol=1e-5, rtol=1e-4)
        assert out.shape == (1, 12, 32)
        result = dual_form.split(layer, slice(1, 9))
        both = (1 - result.share)[:, None] * result.rest + result.share[:, None] * result.shown
        torch.testing.assert_close(both, layer.heads[0, -1].double(), atol=1e-5, rtol=1e-4)
        # The share is Z_demo / (Z_demo + Z_rest), of exponentials of the scores.
        scores = layer.scores(1)[0, :, 0] if layer.mask is None else (layer.scores(1)[0, :, 0] + layer.mask[0, :, -1])
        z = scores.double().exp()
        torch.testing.assert_close(result.share, z[:, 1:9].sum(-1) / z.sum(-1), atol=1e-5, rtol=1e-4)


def test_momentum_is_the_decayed_sum_of_what_came_before() -> None:
    values, one = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], dtype=F64), torch.zeros(1, 4, dtype=torch.long)

    def sums(eta: float, documents: torch.Tensor = one, queries: int | None = None) -> list[float]:
        return momentum.decayed(values, eta, documents, queries).flatten().tolist()

    assert sums(0.5) == [0, 0.5, 1.25, 2.125] and sums(1.0) == [0, 1, 3, 6] and sums(0.0) == [0] * 4
    assert sums(0.5, queries=1) == [2.125]
    assert sums(0.5, torch.tensor([[-1, 0, 0, 0]])) == [0, 0, 1, 2]  # padding contributes nothing
    assert sums(0.5, torch.tensor([[0, 0, 1, 1]])) == [0, 0.5, 0, 1.5]  # nor do other documents


@settings(max_examples=15)
@given(seed=st.integers(0, 999), eta=st.floats(0.05, 0.95), length=st.integers(1, 9))
def test_the_sum_is_the_recurrence(seed: int, eta: float, length: int) -> None:
    values = torch.randn(1, length, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    state, rows = torch.zeros(3, dtype=F64), []
    for t in range(length):
        rows.append(state)
        state = eta * (state + values[0, t])
    result = momentum.decayed(values, eta, torch.zeros(1, length, dtype=torch.long))
    torch.testing.assert_close(result[0], torch.stack(rows))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_momentum_in_a_model(kind: str, tmp_path: Path) -> None:
    """Identity at gate 0; by hand at gate 1; causal; the same with a cache; the same after saving and loading."""
    model, ids = tiny(kind), torch.arange(40, 52)[None]
    with torch.no_grad():
        plain = model.module(input_ids=ids).logits
        gated = momentum.insert_momentum(model, 0.5)
        assert torch.equal(gated.module(input_ids=ids).logits, plain)
        whole = momentum.insert_momentum(model, 0.5, gated=False)
        full = whole.module(input_ids=ids).logits
        assert (full - plain).abs().max() > 0.01
        torch.testing.assert_close(whole.module(input_ids=ids[:, :7]).logits, full[:, :7], atol=1e-4, rtol=1e-4)
        # The first position has no past: there the model is unchanged.
        torch.testing.assert_close(full[:, :1], plain[:, :1], atol=1e-5, rtol=1e-5)
        generated = whole.module.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        again = whole.module(input_ids=generated[:, :-1], use_cache=False).logits.argmax(-1)
        assert torch.equal(generated[0, 12:], again[0, 11:])
        by_hand = _by_hand(model, ids, 0.5)
        torch.testing.assert_close(full, by_hand, atol=1e-4, rtol=1e-4)
    for mixer in gated.module.mixers:  # type: ignore[union-attr]
        torch.nn.init.constant_(mixer.gate, 0.3)
    assert gated.save(tmp_path / "m") == "didact"
    opened = modules.load_module(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(opened.module(input_ids=ids).logits, gated.module(input_ids=ids).logits)


def _by_hand(model: Any, ids: torch.Tensor, eta: float) -> torch.Tensor:
    """Momentum added to the heads' outputs, before the output projection, by a hook of that projection."""
    handles = []
    for layer in insert.attentions(model.module):
        kept: dict[str, torch.Tensor] = {}

        def remember(module: Any, args: Any, given: Any, kept: Any = kept, layer: Any = layer) -> None:
            states = args[0] if args else given["hidden_states"]
            kept["v"] = projections.values(layer, states)

        def add(module: Any, args: Any, kept: Any = kept) -> Any:
            v = kept["v"]
            rows, state = [], torch.zeros_like(v[:, 0])
            for t in range(v.shape[1]):
                rows.append(state)
                state = eta * (state + v[:, t])
            summed = torch.stack(rows, 1)
            size = 8
            each = summed.view(*summed.shape[:2], -1, size)
            return (args[0] + each.repeat_interleave(4 // each.shape[2], 2).flatten(2),)

        name = next(n for n in ("o_proj", "c_proj", "dense") if hasattr(layer, n))
        handles += [
            layer.register_forward_pre_hook(remember, with_kwargs=True),
            getattr(layer, name).register_forward_pre_hook(add),
        ]
    out: torch.Tensor = model.module(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return out


def test_similarities_know_equal_and_random_updates() -> None:
    model = tiny("llama")
    reader = LanguageReader(model, loss="text")
    before = dual_form.before(reader, EPISODE)
    same = dual_form.update_similarity(before, [icl.updates for _, icl in before.traces])
    torch.testing.assert_close(same, torch.ones(2, dtype=F64), atol=1e-5, rtol=0)
    assert dual_form.update_similarity(before, dual_form.random_updates(before, "normal", 0)).abs().max() < 0.4
    assert dual_form.score_similarity(before, [zero for zero, _ in before.traces]) < 1
    way = Way.of("kv", Tuning(lr=0.05, per="tokens"))
    tuned = dual_form.after(reader, EPISODE, before, way, before.lessons)
    assert tuned.size > 0 and len(tuned.asked) == 3 and math.isfinite(dual_form.rank_similarity(before, tuned))
    assert [t.shape for t in tuned.asked[0]] == [(4, before.lessons[0].size - 1, 8)] * 2
    # The weights are restored, and the reading equals the reader's own.
    again = [*reader.tuned(EPISODE, way)][-1]
    torch.testing.assert_close(tuned.reading.tokens, again.tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reader.without(EPISODE).tokens, before.zero.tokens)


def test_controls_are_what_they_say() -> None:
    relabelled = dual_form.relabelled(EPISODE, 0)
    assert all(
        a.prompt == b.prompt and a.completion != b.completion
        for a, b in zip(relabelled.demos, EPISODE.demos, strict=True)
    )
    rows = LanguageReader(tiny("gpt2"), loss="text").lessons(EPISODE)
    other = dual_form.unrelated(rows, list(range(100, 200)), 0)
    assert [(len(r.prompt), r.size) for r in other] == [(len(r.prompt), r.size) for r in rows]
    assert all(r.prompt[0] == s.prompt[0] for r, s in zip(rows, other, strict=True))


@pytest.mark.parametrize(
    ("value", "control", "verdict"),
    [
        ([0.5, 0.52, 0.48, 0.5], [0.2, 0.21, 0.19, 0.2], "supported"),
        ([0.5, 0.52, 0.48, 0.5], [0.5, 0.53, 0.48, 0.5], "not supported"),
        ([0.5, 0.9, 0.1, 0.5], [0.2, 0.21, 0.7, 0.2], "inconclusive"),
    ],
)
def test_a_control_that_explains_a_similarity_is_told(value: Any, control: Any, verdict: str) -> None:
    assert dual_form.supported(value, {"far": [-1.0, -1.1, -0.9, -1.0], "near": control})[0] == verdict


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_examines_a_users_model(kind: str) -> None:
    model = tiny(kind)
    before = model.fingerprint()
    result = mechanisms.dual_form(model, DEMOS[:6], DEMOS[6:], shots=3, lrs=(0.05, 0.2), draws=3, queries=2)
    findings = result.findings
    assert model.fingerprint() == before and findings["draws"] == 2 and len(findings["grid"]) == 2
    assert (
        set(findings["SimAOU"]) == {"fine-tuned", *dual_study.CONTROLS}
        and len(findings["SimAOU by layer"]["other text"]) == 2
    )
    assert findings["measures"]["mixture error"]["estimate"] < 1e-5
    assert all(0 < s < 1 for s in findings["attention to demonstrations by layer"]) and len(result.figures) == 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [("mamba", "has no attention layer"), ("t5", "causal model"), ("bloom", "cannot be recorded")],
)
def test_attention_that_cannot_be_looked_into_is_one_line(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        mechanisms.dual_form(tiny(kind), DEMOS, DEMOS, shots=2, lrs=(0.1,), draws=3, queries=2)
    assert "\n" not in str(error.value)
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="flash"), attention.recorded(model.module):
        pass


TEXTS = [Text(text=f"the {w} is {c} and the {c} one is {w}. " * 3) for w in "fox dog cat cow".split() for c in COLOURS]
BRIEF = Fit(lr=1e-2, steps=3, rows=2)


def test_momentum_from_scratch_and_inserted() -> None:
    new = mechanisms.dual_form_momentum(TEXTS, layers=1, d=16, heads=2, context=32, vocabulary=270, fit=BRIEF)
    assert set(new.findings["perplexity"]["arms"]) == {"momentum", "plain"} and "gates" not in new.findings
    model = tiny("llama")
    start = model.fingerprint()
    for only in (False, True):
        result = mechanisms.dual_form_momentum(TEXTS, model, TEXTS[:2], gates_only=only, context=32, fit=BRIEF)
        gates = torch.tensor(result.findings["gates"])
        assert gates.shape == (2, 4) and gates.abs().min() > 0 and model.fingerprint() == start
        arms = set(result.findings["perplexity"]["arms"])
        assert arms == {"momentum", "start"} | (set() if only else {"plain"})
        trained: Any = result.models["model"]
        weights = (trained.module.base.parameters(), model.module.parameters())
        equal = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
        assert equal == only


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (TEXTS, {"gates_only": True}, "give --model"),
        (TEXTS, {"d": 15, "heads": 2}, "heads must divide d"),
        (TEXTS[:1], {}, "one document"),
    ],
)
def test_what_momentum_cannot_be_trained_on_is_one_line(texts: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mechanisms.dual_form_momentum(texts, **options)


def test_gates_of_every_head_may_decay_otherwise() -> None:
    with pytest.raises(UserError, match="one for each of 4 heads"):
        momentum.Momentum(4, [0.5, 0.5])
    states = torch.randn(1, 5, 32)
    layer = insert.attentions(tiny("gpt2").module)[0]
    reading = insert.Reading(None, torch.zeros(1, 5, dtype=torch.long), 0)
    same, each = (momentum.Momentum(4, eta, gated=False)(states, reading, layer) for eta in (0.5, [0.5] * 3 + [0.2]))
    assert not torch.allclose(same, each)
    torch.testing.assert_close(same, momentum.Momentum(4, [0.5] * 4, gated=False)(states, reading, layer))
