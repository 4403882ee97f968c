"""Hidden states streamed to disk, untrained copies, and probes with their controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import KINDS, tiny
from torch import nn

from didact.evaluate import probes
from didact.evaluate.probes import ProbeConfig
from didact.models import hidden
from didact.models.model import Model
from didact.models.untrained import untrained
from didact.types import UserError

ROWS = [[5, 9, 4, 70, 31, 8], [7, 7], [12, 3, 88]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_has_what_the_model_gives_row_by_row(kind: str, tmp_path: Any) -> None:
    model = tiny(kind)
    units = [[(0,), (1, 2), (3, 4, 5)], [(1,)], [(2, 0)]]
    store = hidden.record(model, ROWS, units, folder=tmp_path)
    body = hidden.body_of(model)
    plain = [body(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS]
    assert store.layers == tuple(range(len(plain[0]))) and store.count == 5 and store.widths[0] == 32
    for layer in store.layers:
        expected = [plain[r][layer][0, list(unit)].mean(0) for r, row in enumerate(units) for unit in row]
        torch.testing.assert_close(store.take(range(5), layer), torch.stack(expected), atol=2e-5, rtol=2e-5)
    means = torch.stack([store.take([4, 1], layer) for layer in (0, 1)]).mean(0)
    torch.testing.assert_close(hidden.Store.open(tmp_path).take([4, 1], (0, 1)), means)


def test_what_is_kept_of_a_store_in_memory_is_bounded(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(hidden, "MAPPED", 1 << 20)
    store = hidden.Store.create(tmp_path, {3: 4_096}, 4_000, "bfloat16")
    rows = torch.arange(4_000.0)[:, None].expand(-1, 4_096) / 64
    before = _resident()
    for start in range(0, 4_000, 50):
        store.put(3, start, rows[start : start + 50])
    for index in torch.randperm(4_000).split(50):
        assert torch.equal(store.take(index, 3)[:, 7], (index / 64).bfloat16().float())
    assert store.file(3).stat().st_size == 4_000 * 4_096 * 2
    assert _resident() - before < 1 << 20  # of 31 MiB
    monkeypatch.setattr(hidden, "MAPPED", 1 << 30)
    index = torch.randperm(4_000)[:100]
    assert torch.equal(hidden.Store.open(tmp_path).take(index, 3), store.take(index, 3))


def _resident() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * int(next(line for line in file if line.startswith("RssFile")).split()[1])


@pytest.mark.parametrize(("rows", "layers", "reason"), [
    ([[3] * 300], None, "record 1: 300 tokens; the model takes 1 to 256"),
    ([[3], []], None, "record 2: 0 tokens"),
    ([[3]], [5], r"layers: 5: the model has 0 \(embeddings\) to 2"),
    ([], None, "no rows"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(rows: Any, layers: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        hidden.record(tiny("llama"), rows, layers=layers)


def test_a_module_without_hidden_states_is_told() -> None:
    with pytest.raises(UserError, match="Linear: gives no hidden states"):
        hidden.record(Model(nn.Linear(2, 2), tiny("llama").processor), ROWS)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "gemma3"])
def test_an_untrained_copy_keeps_embeddings_where_asked(kind: str) -> None:
    model = tiny(kind)
    fresh, saved = untrained(model, 1), untrained(model, 1, keep_embeddings=True)
    own = model.module.state_dict()
    table = next(n for n in own if own[n].data_ptr() == model.module.get_input_embeddings().weight.data_ptr())
    assert not torch.equal(fresh.module.state_dict()[table], own[table])
    assert torch.equal(saved.module.state_dict()[table], own[table])
    inside = [n for n in own if ".0." in n and own[n].dim() == 2]
    assert inside and not any(torch.equal(saved.module.state_dict()[n], own[n]) for n in inside)
    assert untrained(model, 1).fingerprint() == fresh.fingerprint() != untrained(model, 2).fingerprint()


def world(n: int = 1200, words: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """Vectors whose first number gives the label, beside the one-hot word; labels do not depend on the word."""
    rng = np.random.default_rng(seed)
    word, label = rng.integers(words, size=n), rng.integers(3, size=n)
    vectors = np.eye(words)[word] + 0.05 * rng.standard_normal((n, words))
    vectors = np.concatenate([np.eye(3)[label] + 0.1 * rng.standard_normal((n, 3)), vectors], 1)
    groups = (np.arange(n) // 4).tolist()
    return torch.from_numpy(vectors).float(), torch.from_numpy(label), word.tolist(), groups


def test_what_is_there_is_found_and_what_is_not_is_not() -> None:
    vectors, labels, words, groups = world()
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    result = probes.examine(
        {"trained": {0: vectors.__getitem__}, "untrained": {0: noise.__getitem__}}, labels, words, groups
    )
    trained, blank = result["models"]["trained"][0], result["models"]["untrained"][0]
    assert trained["accuracy"]["low"] > 0.93 and blank["accuracy"]["high"] < 0.45
    assert result["majority"]["estimate"] < 0.4 and trained["gain"]["low"] > 0.5 and "gain" not in blank
    # The vectors contain the words too: a probe can memorise their control labels, and is not selective.
    assert trained["control"]["low"] > 0.9 and abs(trained["selectivity"]["estimate"]) < 0.08
    blind = probes.examine({"trained": {0: vectors[:, :3].__getitem__}}, labels, words, groups)
    assert blind["models"]["trained"][0]["selectivity"]["low"] > 0.4


def test_probes_side_by_side_are_trained_as_each_alone() -> None:
    vectors, labels, words, groups = world(400)
    parts = probes.split(groups, 0.25, 0.2)
    other = probes.control(labels, words)
    config = ProbeConfig(epochs=6)
    both = probes.classify(vectors.__getitem__, {"a": labels, "b": other}, parts, config)
    assert torch.equal(both["a"], probes.classify(vectors.__getitem__, {"a": labels}, parts, config)["a"])


def test_the_best_epoch_is_kept_and_training_stops() -> None:
    """The held-out loss has its minimum after few steps: training goes past it, and restores the best weights."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    parts = probes.Parts(torch.arange(10), torch.arange(10, 12), torch.arange(12, 14))

    def losses(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p": (module.weight - (0.15 if index.min() >= 10 else 5.0)).square().sum()}

    config = probes.Training(lr=0.1, rows=10, patience=3)
    history = probes.train({"p": module}, losses, parts, config)["p"]
    assert len(history) == history.index(min(history)) + 1 + 3 < 20
    assert float((module.weight.detach() - 0.15).square()) == pytest.approx(min(history))


@given(st.lists(st.integers(0, 40), min_size=3, max_size=120).filter(lambda g: len(set(g)) >= 3), st.integers(0, 5))
def test_no_record_stands_in_two_parts(groups: list[int], seed: int) -> None:
    parts = probes.split(groups, 0.25, 0.15, seed)
    held = [{groups[i] for i in part.tolist()} for part in parts]
    assert all(held) and sum(map(len, held)) == len(set(groups))
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(len(groups)))


def test_a_control_task_is_a_function_of_the_word_alone() -> None:
    _, labels, words, _ = world()
    labels[5] = probes.NONE
    result = probes.control(labels, words, 3)
    assert result[5] == probes.NONE
    by_word = {w: {int(result[i]) for i, x in enumerate(words) if x == w and i != 5} for w in set(words)}
    assert all(len(controls) == 1 for controls in by_word.values()) and len(set(result.tolist())) == 4


def test_a_single_label_is_refused() -> None:
    vectors, labels, words, groups = world(100)
    with pytest.raises(UserError, match="two different labels"):
        probes.examine({"m": {0: vectors.__getitem__}}, torch.zeros_like(labels), words, groups)
