"""The label-token forward pass equals the plain one: by model type, padding, chunk, reference and cache."""

import itertools
import tempfile

import pytest
import shapes
import torch
from shapes import KINDS, plain_logits, tiny

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.learn import language
from didact.models import cache, forward, head
from didact.models import model as models
from didact.models.model import copy_of
from didact.objectives import tokens as token_functions

ROWS = [
    TokenizedExample((3, 4, 5), (6, 7)),
    TokenizedExample((8,), (9, 10, 11, 12, 13)),
    TokenizedExample((14, 15, 16, 17, 18, 19, 20), (21,)),
    TokenizedExample((22, 23), (24, 25, 26)),
]
V = shapes.VOCABULARY


def batch_of(model, rows=ROWS):
    return collate(rows, model.kind, model.pad, model.start)


def labels(rows=ROWS):
    return torch.tensor([t for r in rows for t in r.completion])


def test_every_model_type_of_the_list_is_tested_here():
    types = {kind: tiny(kind).config.model_type for kind in KINDS}
    assert set(types.values()) == forward.LINEAR_HEAD | forward.CAPPED_HEAD | forward.APART
    assert not forward.LINEAR_HEAD & forward.CAPPED_HEAD
    assert types["gemma2"] not in forward.LINEAR_HEAD  # it caps its logits


@torch.no_grad()
def test_a_head_that_is_not_tied_or_not_capped_is_read_as_it_is():
    for model in (tiny("t5", tie_word_embeddings=False), tiny("gemma2", final_logit_softcapping=None)):
        logits, target = plain_logits(model, ROWS), labels()
        actual = forward.tokens(model, batch_of(model))["logp"]
        expected = logits.log_softmax(-1)[range(len(target)), target]
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=2e-6)


@torch.no_grad()
def test_a_type_no_list_names_takes_the_plain_path():
    for kind in ("llama", "t5"):
        model = tiny(kind)
        expected = forward.tokens(model, batch_of(model))["logp"]
        model.config.model_type = "unheard_of"
        states = forward.label_states(model, batch_of(model))
        assert states.shape == (11, V) and forward.logits_of(model, states) is states
        torch.testing.assert_close(forward.tokens(model, batch_of(model))["logp"], expected, rtol=0, atol=2e-6)
        shared = batch_of(model, [ROWS[0], TokenizedExample(ROWS[0].prompt, (9, 9))])
        assert forward.label_states(model, shared).shape == (4, V)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_label_tokens_are_scored_as_the_plain_full_forward_scores_them(kind):
    model = tiny(kind)
    fns = {"logp": token_functions.logp, "entropy": token_functions.entropy}
    actual = forward.tokens(model, batch_of(model), fns)
    logits, target = plain_logits(model, ROWS), labels()
    torch.testing.assert_close(actual["logp"], logits.log_softmax(-1)[range(len(target)), target], rtol=1e-6, atol=1e-6)
    p = logits.softmax(-1)
    torch.testing.assert_close(actual["entropy"], -(p * p.log()).sum(-1), rtol=0, atol=2e-6)
    assert actual["logp"].std() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_chunks_change_neither_values_nor_gradients(kind, monkeypatch):
    model, reference = tiny(kind), tiny(kind, seed=1)
    model.module.double(), reference.module.double()
    batch = batch_of(model)
    columns = {"weight": torch.arange(1.0, len(batch.target) + 1)}
    fns = {
        "kl": lambda logits, target, *, ref_logits, weight: (
            weight * token_functions.kl_from(logits, target, ref_logits=ref_logits)
        ),
        "logp": lambda logits, target, *, ref_logits, weight: weight * token_functions.logp(logits, target),
    }

    calls = []

    def run(chunk):
        monkeypatch.setattr(forward, "CHUNK", chunk)
        calls.clear()
        counting = fns | {"count": lambda logits, target, **_: (calls.append(len(target)), target.float())[1]}
        with torch.no_grad():
            ref_states = forward.label_states(reference, batch)
        out = forward.tokens(model, batch, counting, columns, (reference, ref_states))
        model.module.zero_grad()
        (out["kl"].sum() + out["logp"].sum()).backward()
        return out, {n: p.grad.clone() for n, p in model.module.named_parameters()}, calls[:]

    whole, whole_grad, one = run(1 << 24)
    pieces, pieces_grad, whole_rows = run(3 * V)
    assert one == [11] and whole_rows[:4] == [3, 3, 3, 2]
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-10, atol=1e-10)
    for name in whole_grad:
        torch.testing.assert_close(pieces_grad[name], whole_grad[name], rtol=1e-9, atol=1e-9, msg=name)


def in_blocks(monkeypatch):
    """Chunks of four rows and 70 of the 259 tokens of the vocabulary."""
    for name, size in (("BLOCK", 1), ("COLUMNS", 70), ("CHUNK", 4 * 70)):
        monkeypatch.setattr(head, name, size)


@pytest.mark.parametrize(
    "kind, trained, dtype",
    [
        *((kind, False, torch.float64) for kind in ("llama", "gpt2", "t5", "gemma2")),  # gemma2 caps its logits
        ("llama", True, torch.float64),
        ("gemma3", False, torch.float32),
    ],
)
def test_a_large_vocabulary_has_the_values_and_gradients_of_a_small_one(kind, trained, dtype, monkeypatch):
    model, reference = tiny(kind), tiny(kind, seed=1)
    model.module.to(dtype), reference.module.to(dtype)
    inner = model.module
    inner.get_output_embeddings().requires_grad_(trained)
    batch, like = batch_of(model), torch.linspace(-1, 1, 11).to(dtype)
    calls = []
    for name in ("logp", "values"):
        head_function = getattr(head, name)
        monkeypatch.setattr(
            head, name, lambda *a, head_function=head_function, name=name: (calls.append(name), head_function(*a))[1]
        )
    others = ("kl_from", "kl_to", "undial")  # of the reference
    alone = {f: getattr(token_functions, f) for f in ("logp", "entropy", "weighted_ascent", "correct")}

    def run(fns, against=None):
        inner.zero_grad()
        out = forward.tokens(model, batch, fns, reference=against)
        sum((like * v).sum() for v in out.values() if v.requires_grad).backward()
        return out, {n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None}

    def all_ways():
        reference_states = (reference, forward.label_states(reference, batch).detach())
        fns = {f: getattr(token_functions, f) for f in others}
        return [run({"logp": token_functions.logp}), run(alone), run(fns, reference_states)]

    plain = all_ways()
    assert not calls
    monkeypatch.setattr(head, "LARGE", 1)
    in_blocks(monkeypatch)
    monkeypatch.setattr(forward, "CHUNK", 3 * V)
    large = all_ways()
    first = "values" if kind == "gemma2" else "logp"
    assert calls == ([] if trained else [first, "values", "values"])
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for (values, gradients), (ours, our_gradients) in zip(plain, large, strict=True):
        assert gradients.keys() == our_gradients.keys()
        for name, expected in (values | gradients).items():
            torch.testing.assert_close((ours | our_gradients)[name], expected, **near, msg=name)


def test_blocks_of_a_vocabulary_whose_logits_grow_or_fall_by_more_than_exp_can_hold(monkeypatch):
    states = torch.randn(9, 5, dtype=torch.float64)
    states[:, 0] = torch.linspace(-60, 60, 9)  # times up to 30: logits to 1,800, the greatest first or last
    weight = torch.randn(V, 5, dtype=torch.float64)
    weight[:, 0] = torch.linspace(-30, 30, V)
    target = torch.arange(9) * 32
    in_blocks(monkeypatch)
    blocked, plain = [], []
    for results, fn in ((blocked, lambda x: head.logp(x, weight, target)),
                     (plain, lambda x: token_functions.logp(x @ weight.t(), target))):  # fmt: skip
        x = states.clone().requires_grad_()
        value = fn(x)
        (torch.linspace(-1, 1, 9) * value).sum().backward()
        results += [value.detach(), x.grad]
    torch.testing.assert_close(blocked, plain, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@torch.no_grad()
def test_a_large_vocabulary_is_scored_in_chunks_that_change_nothing(kind, monkeypatch):
    model = tiny(kind)
    expected = forward.tokens(model, batch_of(model))["logp"]
    monkeypatch.setattr(head, "LARGE", 1)
    in_blocks(monkeypatch)
    torch.testing.assert_close(forward.tokens(model, batch_of(model))["logp"], expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "gemma2"])
@torch.no_grad()
def test_reference_logits_are_the_references(kind):
    model, reference = tiny(kind), tiny(kind, seed=1)
    batch = batch_of(model)
    actual = forward.tokens(
        model,
        batch,
        {"kl": token_functions.kl_from},
        reference=(reference, forward.label_states(reference, batch)),
    )["kl"]
    p, q = plain_logits(reference, ROWS).log_softmax(-1), plain_logits(model, ROWS).log_softmax(-1)
    torch.testing.assert_close(actual, (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=2e-6)
    assert actual.min() > 1e-5


@torch.no_grad()
def test_everywhere_covers_every_real_position_of_a_causal_model():
    model, reference = tiny("llama"), tiny("llama", seed=1)
    positions = batch_of(model).everywhere()
    actual = forward.tokens(
        model,
        positions,
        {"kl": token_functions.kl_to},
        reference=(reference, forward.label_states(reference, positions)),
    )["kl"]
    expected = []
    for prompt, completion in ROWS:
        ids = torch.tensor([(prompt + completion)[:-1]])
        p, q = (m.module(input_ids=ids).logits[0].log_softmax(-1) for m in (model, reference))
        expected.append((p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_token_mean_is_the_mean_whichever_positions_it_is_over(kind):
    """The term's count must equal the number of summed values, else its weight drifts with the prompts' length."""
    from didact.data.streams import Batch

    model = tiny(kind)
    batch = Batch({"s": [(r,) for r in ROWS]}, {"s": range(len(ROWS))}, model.kind, model.pad, model.start)
    (micro,) = batch.split(None)
    for everywhere in (False, True):
        term = language.token_mean(model, micro, lambda logits, target: torch.ones(len(target)), everywhere=everywhere)
        assert float(term.sum) / batch.sizes[term.per] == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("budget", [1, 20, 8192])
def test_sums_of_fixed_rows_come_back_in_their_order(kind, budget):
    model = tiny(kind)
    total, count = forward.row_logp(model, ROWS, batch_tokens=budget)
    logp = plain_logits(model, ROWS).log_softmax(-1)[range(11), labels()].double()
    expected = torch.stack([part.sum() for part in logp.split([len(r.completion) for r in ROWS])])
    torch.testing.assert_close(total, expected.detach(), rtol=0, atol=5e-6)
    assert count.tolist() == [2, 5, 1, 3]


def test_scoring_turns_dropout_off_and_leaves_the_mode_as_it_was():
    model = tiny("gpt2", dropout=0.5)
    model.module.train()
    a, b = (forward.row_logp(model, ROWS)[0] for _ in range(2))
    assert torch.equal(a, b) and model.module.training


# --- the cache on disk -----------------------------------------------------------------------


def test_cached_log_probs_are_equal_the_second_time_and_say_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    model = tiny("llama")
    first = forward.cached_row_logp(model, ROWS)
    assert "cache" not in capsys.readouterr().err
    monkeypatch.setattr(forward, "row_logp", None)  # a second pass over the model would crash
    again = forward.cached_row_logp(model, ROWS)
    assert torch.equal(first, again)
    (saved,) = tmp_path.rglob("*.tensors")
    assert capsys.readouterr().err == f"reference log-probs of 4 rows: from the cache {saved}\n"


def test_the_cache_key_changes_with_all_that_changes_the_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    model = tiny("llama")
    nudged, rotated = copy_of(model), copy_of(model)
    with torch.no_grad():
        next(nudged.module.parameters())[0, 0] += 1e-6
    rotated.module = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 77.0}).module
    rotated.module.load_state_dict(model.module.state_dict())
    assert not torch.equal(forward.row_logp(rotated, ROWS)[0], forward.row_logp(model, ROWS)[0])
    wider = copy_of(model)
    wider.module.double()
    calls = [(model, ROWS), (nudged, ROWS), (rotated, ROWS), (wider, ROWS), (model, ROWS[:3]), (model, ROWS[::-1])]
    for n, (scorer, rows) in enumerate(calls, 1):
        forward.cached_row_logp(scorer, rows)
        assert len(list(tmp_path.rglob("*.tensors"))) == n


def written(kept, tensors):
    entry = cache.Entry("logp")
    entry.path = kept
    entry.write(tensors)


def a_directory(kept):
    kept.unlink()
    kept.mkdir()


DAMAGES = {
    "truncated": lambda kept: kept.write_bytes(kept.read_bytes()[:40]),
    "empty": lambda kept: kept.write_bytes(b""),
    "a flipped bit": lambda kept: kept.write_bytes(kept.read_bytes()[:-1] + bytes([kept.read_bytes()[-1] ^ 1])),
    "other names": lambda kept: written(kept, {"x": torch.zeros(4)}),
    "a directory": a_directory,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_cache_entry_is_computed_anew_and_told_in_a_line(how, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    model = tiny("llama")
    first = forward.cached_row_logp(model, ROWS)
    (saved,) = tmp_path.rglob("*.tensors")
    DAMAGES[how](saved)
    assert torch.equal(forward.cached_row_logp(model, ROWS), first)
    assert capsys.readouterr().err.count(f"didact: {saved}: ") == 1 + (how == "a directory")  # writing fails too
    assert torch.equal(forward.cached_row_logp(model, ROWS), first)
    assert ("from the cache" in capsys.readouterr().err) == (how != "a directory")


def in_the_way(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "file"))


def no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("DIDACT_CACHE")
    monkeypatch.setattr("pathlib.Path.expanduser", raises)


def raises(*_):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("how", [in_the_way, no_home])
def test_where_nothing_can_be_kept_it_is_gone_without(how, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cache, "_warned", set())
    how(monkeypatch, tmp_path)
    model = tiny("llama")
    first, again = (forward.cached_row_logp(model, ROWS) for _ in range(2))
    assert torch.equal(first, again)
    stderr = [line for line in capsys.readouterr().err.splitlines() if "cache" in line]
    assert 1 <= len(stderr) <= 2 and all(line.startswith("didact: ") for line in stderr)


def test_a_private_cache_without_a_temporary_folder_keeps_nothing(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    monkeypatch.setattr(cache, "_warned", set())
    with cache.private():
        assert cache.folder() is None
    assert capsys.readouterr().err == "didact: no cache for this work: No such file or directory\n"


def test_no_cache_is_kept_where_it_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("DIDACT_CACHE", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert forward.cached_row_logp(tiny("llama"), ROWS).shape == (4,)
    assert not list(tmp_path.rglob("*"))


def test_fingerprints_follow_the_weights_only():
    model = tiny("gpt2")
    other = copy_of(model)
    assert other.fingerprint() == model.fingerprint()
    for _, p in itertools.islice(other.module.named_parameters(), 1):
        p.data[0, 0] += 1
    assert other.fingerprint() != model.fingerprint()


def test_a_frozen_copy_has_no_gradient_and_no_dropout_and_leaves_the_original():
    model = tiny("llama")
    model.module.train()
    still = models.frozen(model)
    assert not still.module.training and not any(p.requires_grad for p in still.module.parameters())
    assert model.module.training and all(p.requires_grad for p in model.module.parameters())
