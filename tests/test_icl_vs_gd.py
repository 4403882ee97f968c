"""icl-vs-gd: fine-tuning parts of a model and restoring them, three prompt settings, and the findings."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import tiny

from didact import mechanisms
from didact.data.encode import TokenizedExample
from didact.evaluate import equivalence, layer_tests, learners, three_way
from didact.evaluate.linear_reader import LinearReader
from didact.evaluate.references import gradient
from didact.evaluate.three_way import Episode, LanguageReader, Way
from didact.learn import subset
from didact.learn.subset import Tuning
from didact.models import insert, mixers, projections
from didact.models.model import Model
from didact.types import Demo, UserError

COLOURS = ["red", "blue"]
DEMOS = [Demo(prompt=f"{w}:", completion=COLOURS[i % 2], choices=COLOURS) for i, w in enumerate("abcdefghij")]
ROWS = [TokenizedExample((1, 40 + i), (60 + i, 70)) for i in range(4)]
EPISODE = Episode(tuple(DEMOS[:3]), tuple(DEMOS[5:8]))


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def test_small_steps_on_narrow_weights_add_up() -> None:
    """Each step alone is smaller than half the spacing of bfloat16 numbers."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny("llama")
        model.module.to(torch.bfloat16).to(dtype)
        (part, *_) = parts = projections.parts(model, "kv")
        before = part.weight.detach().float().clone()
        with contextlib.closing(subset.epochs(model, parts, ROWS, Tuning(lr=3e-4, epochs=30))) as training:
            assert len([*itertools.islice(training, 30)]) == 30
            moved[dtype] = float((part.weight.detach().float() - before).norm())
    assert moved[torch.bfloat16] == pytest.approx(moved[torch.float32], rel=0.2)


@pytest.mark.parametrize(
    ("kind", "selection"),
    [("llama", "kv"), ("gpt2", "kv"), ("gpt_neox", "v"), ("opt", "q"), ("gemma3", "v@middle"), ("bloom", "k")],
)
def test_only_these_weights_move_and_every_bit_comes_back(kind: str, selection: str) -> None:
    model = tiny(kind)
    before, state = weights(model), [p.requires_grad for p in model.module.parameters()]
    parts = projections.parts(model, selection)
    with contextlib.closing(subset.epochs(model, parts, ROWS, Tuning(lr=0.1, epochs=2))) as training:
        next(training)
        moved = {n: p.detach() - before[n] for n, p in model.module.named_parameters()}
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert state == [p.requires_grad for p in model.module.parameters()] and not model.module.training
    assert all(p.grad is None for p in model.module.parameters())
    mine = {n for n, change in moved.items() if change.any()}
    names = {id(p): n for n, p in model.module.named_parameters()}
    assert mine and mine <= {names[id(part.weight)] for part in parts}
    for part in parts:
        if part.mask is not None:
            change = moved[names[id(part.weight)]]
            assert not change[part.mask == 0].any() and (part.weight.dim() < 2 or change[part.mask == 1].any())


@pytest.mark.parametrize("letter", "qkv")
def test_a_slice_of_a_fused_projection_makes_that_letter(letter: str) -> None:
    """Zeroing the slice zeroes the right part of the layer: GPT-2's thirds, and GPT-NeoX's interleaved heads."""
    model = tiny("gpt2")
    for part in projections.parts(model, f"{letter}@0"):
        with torch.no_grad():
            part.weight[part.mask == 1] = 0.0
    layer: Any = insert.attentions(model.module)[0]
    thirds = layer.c_attn(torch.randn(1, 3, 32)).split(32, dim=2)
    assert [not t.any() for t in thirds] == [name == letter for name in "qkv"]
    neox = tiny("gpt_neox")
    for part in projections.parts(neox, f"{letter}@0"):
        with torch.no_grad():
            part.weight[part.mask == 1] = 0.0
    layer = insert.attentions(neox.module)[0]
    heads = layer.query_key_value(torch.randn(1, 3, 32)).view(1, 3, 4, -1).chunk(3, dim=-1)
    assert [not t.any() for t in heads] == [name == letter for name in "qkv"]


def test_one_epoch_one_by_one_depends_on_order_by_the_second_order_of_the_rate() -> None:
    """w_12 - w_21 = lr^2 a_1 a_2 (b_2 - b_1) for L_i = a_i/2 (w - b_i)^2, from wherever w starts."""

    def after(w: float, order: list[int], lr: float = 0.1, a: tuple = (2.0, 3.0), b: tuple = (1.0, -4.0)) -> float:
        value = torch.tensor([w], dtype=torch.float64, requires_grad=True)
        step = torch.optim.SGD([value], lr=lr)
        for i in order:
            step.zero_grad()
            (a[i] / 2 * (value - b[i]) ** 2).sum().backward()
            step.step()
        return value.item()

    for start in (-1.0, 0.0, 7.0):
        assert after(start, [0, 1]) - after(start, [1, 0]) == pytest.approx(0.01 * 6 * -5, abs=1e-12)


def test_one_step_on_all_has_no_order_and_one_by_one_has() -> None:
    """Weights after one pass in two orders: equal for one full-batch step, O(lr^2) apart for single-record steps."""
    model = tiny("llama")
    model.module.double()
    parts = projections.parts(model, "kv")

    def apart(batch: int | None, lr: float) -> float:
        results = []
        for rows in (ROWS, ROWS[::-1]):
            with contextlib.closing(subset.epochs(model, parts, rows, Tuning(lr=lr, batch=batch))) as training:
                next(training)
                results.append(torch.cat([p.weight.detach().flatten() for p in parts]))
        return float((results[0] - results[1]).norm())

    assert apart(None, 0.1) < 1e-6 < apart(1, 0.1)
    assert apart(1, 4e-3) / apart(1, 2e-3) == pytest.approx(4, rel=0.2)


def test_the_three_ways_are_the_models_own_numbers() -> None:
    """ICL, ZSL and FT against plain forward passes, and the loss of one step against its gradient."""
    model = tiny("gpt2")
    reader = LanguageReader(model)
    tokenizer = model.tokenizer

    def alone(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return model.module(input_ids=ids).logits[0, -1].log_softmax(-1)

    context = "a: red\nb: blue\nc: red\n"
    for episode, before in ((EPISODE, context), (three_way.without_demos(EPISODE), "")):
        for apart in (False, True):
            result = reader.read(episode, apart=apart)
            expected = torch.stack([alone(before + q.prompt) for q in episode.queries])
            torch.testing.assert_close(result.tokens, expected, atol=1e-4, rtol=1e-4)
    way = Way.of("all/full", Tuning(lr=1e-3))
    losses = list(subset.epochs(model, projections.parts(model, "all"), reader.lessons(EPISODE), way.how))
    by_hand = [
        -sum(
            alone(f"{d.prompt} {d.completion}"[: len(d.prompt) + i])[byte_id(model, c)]
            for i, c in enumerate(" " + d.completion)
        )
        for d in EPISODE.demos
    ]
    assert losses[0] == pytest.approx(float(sum(by_hand)) / 3, rel=1e-4)
    whole = LanguageReader(model, loss="text").lessons(EPISODE)
    assert all(len(w.prompt) == 1 for w in whole)


def byte_id(model: Model, letter: str) -> int:
    return int(model.tokenizer(letter)["input_ids"][-1])


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), shots=st.integers(1, 5))
def test_a_query_is_never_shown(seed: int, shots: int) -> None:
    for episode, other in three_way.episodes(DEMOS, DEMOS, shots, 4, 3, seed):
        queries = {q.prompt for q in episode.queries}
        assert not queries & {d.prompt for d in (*episode.demos, *other.demos)} and other.queries == episode.queries
        assert len(episode.demos) == len(other.demos) == shots and len(queries) == len(episode.queries)
    assert three_way.episodes(DEMOS, DEMOS, shots, 4, 3, seed) == three_way.episodes(DEMOS, DEMOS, shots, 4, 3, seed)


def test_tasks_are_not_mixed_and_orders_differ() -> None:
    two = [dataclasses.replace(d, task=t) for t in "xy" for d in DEMOS]
    for number, (episode, other) in enumerate(three_way.episodes(two, two, 3, 4, 4, 0)):
        assert {d.task for d in (*episode.demos, *other.demos, *episode.queries)} == {"xy"[number % 2]}
    result = three_way.orders(6, 3, 0)
    assert result[0] == [0, 1, 2] and sorted(map(tuple, result)) == sorted(set(map(tuple, result))) and len(result) == 6
    assert len(three_way.orders(9, 2, 0)) == 2


def linear(eta: float = 1.5, seed: int = 0) -> tuple[LinearReader, list[equivalence.Draw]]:
    generator = torch.Generator().manual_seed(seed)
    constructed = learners.of_module(mixers.constructed(3, 6, eta=eta, rows=5))
    samples = []
    for _ in range(8):
        w = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        x = torch.randn(15, 3, generator=generator, dtype=torch.float64)
        rows = list(zip(x, x @ w.T, strict=True))
        samples.append((Episode(tuple(rows[:5]), tuple(rows[10:])), Episode(tuple(rows[5:10]), tuple(rows[10:]))))
    return LinearReader(constructed, gradient.gd, 2.0), samples


def test_where_the_two_are_one_the_instrument_says_so_and_elsewhere_not() -> None:
    reader, samples = linear()
    ways = {"descent": Way("all", Tuning(lr=1.0))}
    comparison = equivalence.Comparison(ways=ways, rates=(0.5, 1.5, 3.0), top=3)
    findings = equivalence.findings(equivalence.compare(reader, samples, comparison), comparison)
    finding = findings["ways"]["descent"]
    assert finding["verdict"] == "indistinguishable" and finding["chosen"]["lr"] == 1.5
    assert finding["cosine"]["relative"]["estimate"] == pytest.approx(1, abs=1e-9)
    assert findings["order"]["icl"]["probability"]["estimate"] < 1e-9
    opposite = LinearReader(reader.attention, lambda rate, steps: gradient.gd(-rate, steps), 2.0)
    findings = equivalence.findings(equivalence.compare(opposite, samples, comparison), comparison)
    assert findings["ways"]["descent"]["verdict"] == "uninformative"
    other = LinearReader(reader.attention, lambda rate, steps: gradient.ridge(1e-3), 2.0)
    findings = equivalence.findings(equivalence.compare(other, samples, comparison), comparison)
    assert findings["ways"]["descent"]["verdict"] == "different"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_layers_are_scaled_left_out_and_permuted(kind: str) -> None:
    model = tiny(kind)
    ids = torch.arange(40, 50)[None]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model.module(input_ids=ids).logits

    plain = logits()
    with layer_tests.scaled(model.module, {0: 1.0, 1: 1.0}):
        torch.testing.assert_close(logits(), plain, atol=1e-5, rtol=1e-5)
    with layer_tests.scaled(model.module, {0: 0.0, 1: 0.0}):
        bare = logits()
        torch.testing.assert_close(bare[:, [3]], model_at(model, ids, 3), atol=1e-5, rtol=1e-5)
    with layer_tests.shuffled(model.module, 1, 2, 9):
        moved = logits()
    torch.testing.assert_close(moved[:, :2], plain[:, :2], atol=1e-5, rtol=1e-5)
    assert (moved[:, 2:] - plain[:, 2:]).abs().max() > 1e-3
    torch.testing.assert_close(logits(), plain)
    rows = layer_tests.interventions(LanguageReader(model), [EPISODE])
    assert rows[0]["test"] == "as it is" and {r["test"] for r in rows} >= {
        "later blocks left out",
        "blocks before the exit",
    }


def model_at(model: Model, ids: torch.Tensor, at: int) -> torch.Tensor:
    """Without its blocks, a position of a decoder depends on its own token (and position) only."""
    other = torch.full_like(ids, 99)
    other[0, at] = ids[0, at]
    with torch.no_grad(), layer_tests.scaled(model.module, {0: 0.0, 1: 0.0}):
        return model.module(input_ids=other).logits[:, [at]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_examines_a_users_model(kind: str) -> None:
    model = tiny(kind)
    before = weights(model)
    result = mechanisms.icl_vs_gd(
        model, DEMOS[:6], DEMOS[6:], shots=(2,), ways=("all/full", "kv", "lora"), lrs=(0.05,), epochs=1, draws=3,
        queries=2, orders=2, layers=1,
    )  # fmt: skip
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    findings = result.findings["shots"]["2"]
    assert set(findings["ways"]) == {"all/full", "kv", "lora"} and findings["draws"] == 2 and len(findings["grid"]) == 3
    assert findings["controls"]["itself"]["cosine"]["estimate"] == pytest.approx(1)
    assert findings["order"]["all/full"]["probability"]["estimate"] < 1e-6
    assert result.findings["layers"] and result.cost.tokens > 0
    assert all(math.isfinite(result.metrics[n].after) for n in ("accuracy_icl", "accuracy_kv"))
    small = result.findings["small_weights"]["k"]["0.001"]
    assert small["by hand"] > 0.9 > small["model"]


BARE = [dataclasses.replace(d, choices=None, completion=f"c{i % 2}") for i, d in enumerate(DEMOS)]


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (DEMOS, DEMOS, {"shots": (12,)}, "too few for 12 shots"),
        (DEMOS, [*DEMOS[:1], dataclasses.replace(DEMOS[1], completion="green")], {}, "test: record 2: .*'green'"),
        (DEMOS, BARE, {}, "test: record 1: field 'choices'"),
        (DEMOS, [*DEMOS, dataclasses.replace(DEMOS[0], choices=["red", "blue", "x"])], {}, "record 11 has 3 choices"),
        (DEMOS, DEMOS, {"ways": ("w",)}, "letters of q, k, v"),
        (DEMOS, DEMOS, {"ways": ("k@7",)}, "layers 0 to 1"),
        (DEMOS, DEMOS, {"ways": ("kv/half",)}, "only /full"),
        (DEMOS, [dataclasses.replace(DEMOS[0], prompt="x" * 300)], {}, "context 256"),
    ],
)
def test_what_cannot_be_compared_is_one_line(train: Any, test: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        mechanisms.icl_vs_gd(tiny("llama"), train, test, **({"shots": (2,), "draws": 3, "queries": 2} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "message"), [("mamba", "has no attention layer"), ("t5", "causal model")])
def test_a_model_without_what_is_needed_is_one_line(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mechanisms.icl_vs_gd(tiny(kind), DEMOS, DEMOS, shots=(2,), ways=("kv",), draws=3, lrs=(0.1,))


def test_labels_come_from_the_demonstrations_where_records_name_none() -> None:
    result = mechanisms.icl_vs_gd(
        tiny("llama"), BARE, BARE, shots=(2,), ways=("v@last/full",), lrs=(0.1,), epochs=1, draws=3, queries=2, orders=2
    )
    assert set(result.findings["shots"]) == {"2"}
