"""dual-process: the effect of active forgetting on weights and optimizer, the battery, probes, and bad input."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import tiny

from didact import baselines
from didact.data.encode import TokenizedExample
from didact.data.streams import Batches, Stream, collate
from didact.evaluate import structural, word_probes
from didact.learn import fit as loop
from didact.learn import language, resets
from didact.learn.resets import ForgetConfig, Forgetting
from didact.methods.mechanisms.dual_process import dual_process
from didact.methods.mechanisms.dual_process_pretrain import dual_process_pretrain
from didact.methods.mechanisms.dual_process_probe import dual_process_probe
from didact.models import build, forward, load
from didact.models.model import Model, sharing
from didact.report import runs
from didact.types import Demo, Fit, Text, UserError
from didact.worlds import parts_of_speech
from didact.worlds.parts_of_speech import PartsOfSpeech

WORLD = PartsOfSpeech(words=40, unseen=16, zipf=1.0, ambiguous=0.2)
DEMOS = WORLD.sentences(0, 60)
BATTERY = WORLD.battery(1, 12)
FIT = Fit(lr=1e-2, steps=12, rows=4, schedule="constant", seed=3)
ROWS = [TokenizedExample((5, 6, 7), (8, 9 + i)) for i in range(12)]


def train(
    config: ForgetConfig, model: Model | None = None, fit: Fit = FIT, hooks: Any = ()
) -> tuple[Model, Forgetting]:
    model = model or tiny("gpt2")
    result, hook = resets.train(model, ROWS, config, fit, resets.counts(ROWS, model.embedded or 0), hooks)
    return result.model, hook


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def same(a: Model, b: Model) -> bool:
    return a.fingerprint() == b.fingerprint()


class Spy(loop.Hook):
    """Record the weights around every step, and Adam's moments of the embeddings; runs after the forgetting hook."""

    def __init__(self) -> None:
        self.starts: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []
        self.moments: list[dict[str, Any]] = []

    def before(self, step: loop.Step) -> None:
        table = resets.tables(step.module)[0]
        copies = {n: p.detach().clone() for n, p in step.module.named_parameters()}
        self.starts.append(copies)
        state = step.optimizer.state.get(step.masters.of(table), {})
        self.moments.append({k: v.clone() for k, v in state.items()})

    def after(self, step: loop.Step) -> None:
        self.ends.append({n: p.detach().clone() for n, p in step.module.named_parameters()})


# --- forgetting in the loop ------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 60))
def test_the_number_of_resets_is_the_papers(every: int, until: int, steps: int) -> None:
    config = ForgetConfig(mode="temporary", every=every, until=until)
    count = sum(resets.due(config, step, steps) for step in range(steps))
    assert count == max(0, min(until, steps) - 1) // every
    active = ForgetConfig(mode="active", every=every, until=until)
    assert sum(resets.due(active, step, steps) for step in range(steps)) == (steps - 1) // every


@pytest.mark.parametrize("config", [
    ForgetConfig(until=0, every=2), ForgetConfig(mode="active", every=99), ForgetConfig(every=3, until=3),
])  # fmt: skip
def test_without_a_reset_training_is_ordinary_to_the_bit(config: ForgetConfig) -> None:
    ours, hook = train(config)
    plain, _ = train(ForgetConfig(mode="none"))
    ordinary = language.train(tiny("gpt2"), {"text": language.single(ROWS)}, language.nll, FIT).model
    assert hook.count == 0 and same(ours, plain) and same(plain, ordinary)
    assert not same(train(ForgetConfig(every=3, until=4))[0], plain)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_reset_forgets_the_embeddings_and_nothing_else(kind: str) -> None:
    spy = Spy()
    config = ForgetConfig(mode="temporary", every=5, until=6)
    model, hook = train(config, tiny(kind, tie_word_embeddings=True), hooks=[spy])
    assert (hook.count, hook.last) == (1, 5)
    before, after = spy.ends[4], spy.starts[5]  # the reset is the only change between the two
    table = next(n for n, p in model.module.named_parameters() if p is resets.tables(model.module)[0])
    assert all(torch.equal(before[n], after[n]) for n in before if n != table)
    old, new = before[table], after[table]
    cosine = float(torch.nn.functional.cosine_similarity(old.flatten(), new.flatten(), dim=0))
    assert abs(cosine) < 4 / old.numel() ** 0.5
    assert float(new.std()) == pytest.approx(0.02, rel=0.05) and abs(float(new.mean())) < 0.002
    assert spy.moments[4]["step"] == 4 and not spy.moments[5] and spy.moments[6]["step"] == 1
    other_spy = Spy()
    train(
        ForgetConfig(mode="temporary", every=5, until=6, moments=False),
        tiny(kind, tie_word_embeddings=True),
        hooks=[other_spy],
    )
    assert other_spy.moments[5]["step"] == 5 and other_spy.moments[5]["exp_avg"].any()


def test_some_rows_are_forgotten_and_the_moments_of_those_alone() -> None:
    spy = Spy()
    train(ForgetConfig(every=5, until=6, rows="batch"), hooks=[spy])
    table = "transformer.wte.weight"
    changed = (spy.ends[4][table] != spy.starts[5][table]).any(1).nonzero()[:, 0].tolist()
    zero = (spy.moments[5]["exp_avg"] == 0).all(1)
    assert {5, 6, 7, 8} < set(changed) and len(changed) <= 8 and zero[changed].all()
    unchanged = sorted(set(range(9, 21)) - set(changed))
    assert not zero[unchanged].all()
    by_frequency = Spy()
    train(ForgetConfig(every=5, until=6, rows="rare", below=2), hooks=[by_frequency])
    changed = (by_frequency.ends[4][table] != by_frequency.starts[5][table]).any(1).nonzero()[:, 0].tolist()
    assert not {5, 6, 7, 8} & set(changed) and {9, 20, 30} <= set(changed)


@pytest.mark.parametrize("draw", ["matched", "permuted"])
def test_what_comes_instead(draw: Any) -> None:
    table = 3 + torch.randn(4000, 4) * torch.tensor([0.1, 1.0, 2.0, 5.0])
    new = resets.fresh(table, torch.arange(4000), draw, 0.02, torch.Generator().manual_seed(0))
    torch.testing.assert_close(new.mean(0), table.mean(0), atol=0.3, rtol=0.1)
    torch.testing.assert_close(new.std(0), table.std(0), atol=0.0, rtol=0.1)
    assert not torch.equal(new, table) and (draw != "permuted" or torch.equal(new.sort(0).values, table.sort(0).values))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_probabilistic_forgetting_leaves_embeddings_to_the_bit(kind: str, tied: bool) -> None:
    start, spy = tiny(kind, tie_word_embeddings=tied), Spy()
    assert len(resets.tables(start.module)) == 2 - tied
    model, _ = train(ForgetConfig(mode="probabilistic", share=1.0), start, hooks=[spy])
    before, after = weights(start), weights(model)
    names = [n for n, p in model.module.named_parameters() if any(p is t for t in resets.tables(model.module))]
    assert all(torch.equal(before[n], after[n]) for n in names) and not same(start, model)
    both = [spy.starts[0][n] for n in names]
    changed = [(one != before[n]).any(1).nonzero()[:, 0].tolist() for n, one in zip(names, both, strict=True)]
    batch = {5, 6, 7, 8}
    assert all(batch < set(own) and len(own) == 8 for own in changed)  # 4 shared by all, 4 of the four rows
    assert all(torch.equal(own[changed[0]], both[0][changed[0]]) for own in both)  # the same row in both tables
    never, _ = train(ForgetConfig(mode="probabilistic", share=0.0), start)
    still = resets.ready(start, ForgetConfig(mode="probabilistic"))
    frozen = language.train(still, {"text": language.single(ROWS)}, language.nll, FIT).model
    assert same(never, frozen) and not same(never, model)


def test_borrowed_rows_come_back_when_a_step_fails() -> None:
    start = tiny("gpt2")
    shared = sharing(start)
    before = weights(start)

    class Fails(loop.Hook):
        def before(self, step: loop.Step) -> None:
            assert not torch.equal(resets.tables(step.module)[0], before["transformer.wte.weight"])
            raise KeyboardInterrupt

    shared.module.requires_grad_(True)
    resets.tables(shared.module)[0].requires_grad_(False)
    hook = Forgetting(ForgetConfig(mode="probabilistic", share=1.0), FIT)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(shared.module, Batches({"t": Stream.of(ROWS, 4)}, 0), lambda m, b: {}, FIT, [hook, Fails()], steps=2)
    assert all(torch.equal(before[n], p) for n, p in weights(start).items())


def test_a_killed_run_forgets_on_where_it_was(tmp_path: Path) -> None:
    config = ForgetConfig(mode="active", every=4)
    whole, hook = train(config, fit=FIT.replace(schedule="linear"))

    class Dies(loop.Hook):
        def after(self, step: loop.Step) -> None:
            if step.step == 6:
                raise KeyboardInterrupt

    fit = FIT.replace(schedule="linear", folder=str(tmp_path), save_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, fit=fit, hooks=[Dies()])
    again, resumed = train(config, fit=fit, hooks=[loop.Hook()])
    assert same(again, whole) and resumed.count == hook.count == 2


def test_the_embeddings_rate_begins_anew() -> None:
    rates = []

    class Watch(loop.Hook):
        def after(self, step: loop.Step) -> None:
            table = resets.tables(step.module)[0]
            by_group = {len(g["params"]) == 1 and g["params"][0] is table: g["lr"] for g in step.optimizer.param_groups}
            rates.append((by_group.get(True, by_group[False]), by_group[False]))

    fit = FIT.replace(schedule="linear", lr=0.012)
    train(ForgetConfig(mode="active", every=4), fit=fit, hooks=[Watch()])
    np.testing.assert_allclose([own for own, _ in rates], [0.012, 0.011, 0.010, 0.009] * 3, rtol=1e-9)
    np.testing.assert_allclose([rest for _, rest in rates], [0.001 * n for n in range(12, 0, -1)], rtol=1e-9)


def test_an_untied_head_keeps_what_it_knows() -> None:
    spy = Spy()
    model, _ = train(ForgetConfig(every=5, until=6, untie=True), hooks=[spy])
    assert len(resets.tables(model.module)) == 2
    assert torch.equal(spy.ends[4]["lm_head.weight"], spy.starts[5]["lm_head.weight"])
    assert not torch.equal(spy.ends[4]["transformer.wte.weight"], spy.starts[5]["transformer.wte.weight"])


def test_weights_in_bfloat16_forget_in_their_copies_too() -> None:
    start = tiny("gpt2")
    start.module.bfloat16()
    ours, hook = train(ForgetConfig(every=11, until=12), start)
    table = resets.tables(ours.module)[0].float()
    assert hook.count == 1 and float(table.std()) < 0.03 < float(resets.tables(start.module)[0].float().std())


# --- world and battery -----------------------------------------------------------------------


def test_the_truth_table_and_zipf() -> None:
    assert parts_of_speech.answer("red", "red").split() == ["red", "red", "red"]
    assert parts_of_speech.answer("red", "cow").split() == ["red", "cow", "cow"]
    mass = PartsOfSpeech(words=200).frequencies
    assert float(mass[:20].sum()) == pytest.approx(0.6936, abs=5e-5)
    for demo in WORLD.sentences(5, 300):
        first, second, third, query = demo.prompt.split()
        adjective, noun = (second, third) if first == "is" else (third, first)
        assert (first == "is") != (second == "is") and adjective != noun
        assert demo.completion == f"{adjective} {query} {query}" and query in (adjective, noun)


def test_ambiguous_words_occur_as_both_and_others_as_one() -> None:
    world = PartsOfSpeech(words=40, zipf=0.0, ambiguous=0.5)
    roles: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for demo in world.sentences(0, 4000):
        first, second, third, _ = demo.prompt.split()
        adjective, noun = (second, third) if first == "is" else (third, first)
        roles[adjective]["a"] += 1
        roles[noun]["n"] += 1
    assert world.both.sum() == 10
    for rank, both in enumerate(world.both):
        for kind in "an":
            share = roles[f"{kind}{rank}"][kind] / sum(roles[f"{kind}{rank}"].values())
            assert (0.35 < share < 0.65) if both else share == 1


def test_a_policy_by_heart_and_one_by_context_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfect in-weights: seen 1, conflict 0; perfect in-context: all 1. Ambiguous words by heart: at most half."""
    tokenizer = build.word_tokenizer(f"{d.prompt} {d.completion}" for d in (*DEMOS, *BATTERY))
    model = build.build("gpt2", tokenizer, 16, 1, 2, context=8)
    size = len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(range(size))

    def say(by_heart: bool) -> None:
        def states(model: Model, batch: Any, **how: Any) -> torch.Tensor:
            logits = torch.zeros(len(batch.target), size)
            for n, (row, at) in enumerate(
                zip(batch.row.tolist(), (batch.at % batch.input_ids.shape[1]).tolist(), strict=True)
            ):
                tokens = [names[i] for i in batch.input_ids[row].tolist()]
                adjective = tokens[1] if tokens[0] == "is" else tokens[2]
                pair = [w for w in tokens[:3] if w != "is"]
                if by_heart and len(ambiguous := [w for w in pair if w.startswith("a")]) == 1:
                    adjective = ambiguous[0]
                logits[n, names.index(adjective if at == 3 else tokens[3])] = 1
            return logits

        monkeypatch.setattr("didact.models.forward.label_states", states)
        monkeypatch.setattr("didact.models.forward.logits_of", lambda model, logits: logits)

    counts = torch.tensor([0 if n.startswith("u") else 1 for n in names])
    items = structural.of_demos(model, BATTERY, counts)
    assert {i.task for i in items if i.fresh} == {"unseen"}
    say(by_heart=False)
    result = structural.battery(model, items)
    assert {k: v["accuracy"]["estimate"] for k, v in result.items()} == dict.fromkeys(result, 1.0)
    assert result["conflict"]["in_weights"]["estimate"] == 0
    say(by_heart=True)
    result = structural.battery(model, items)
    assert result["tail"]["accuracy"]["estimate"] == result["plain"]["accuracy"]["estimate"] == 1
    assert result["conflict"]["accuracy"]["estimate"] == 0 and result["conflict"]["in_weights"]["estimate"] == 1


def test_windows_ask_the_same_place_three_ways() -> None:
    counts = torch.zeros(60, dtype=torch.long)
    counts[:40] = torch.arange(40, 0, -1)
    windows = [[1, 2, 3, 4, 5, 3, 4, 9], [1, 2, 3], [7, 8, 1, 7, 8, 2]]
    items = structural.of_windows(windows, counts, 10)
    assert [i.task for i in items] == ["repeated", "conflict", "unseen"] * 2
    plain, conflict, unseen = items[:3]
    assert plain.row == TokenizedExample((1, 2, 3, 4, 5, 3), (4,))
    (other,), (new,) = conflict.row.completion, unseen.row.completion
    assert conflict.row.prompt == (1, 2, 3, other, 5, 3) and conflict.alternate == (conflict.row.prompt, (4,))
    assert unseen.row.prompt == (1, 2, 3, new, 5, 3) and unseen.fresh == (new,) and not counts[new] and counts[other]
    with pytest.raises(UserError, match="no pair of tokens occurs twice"):
        structural.of_windows([[1, 2, 3]], counts, 10)


def test_loss_by_frequency_adds_up() -> None:
    model = tiny("gpt2")
    counts = torch.zeros(model.embedded or 0, dtype=torch.long)
    counts[8], counts[9], counts[10] = 60, 30, 10
    result = structural.by_frequency(model, ROWS, counts)
    parts = [result[name] for name in structural.BINS if name in result]
    assert sum(p["n"] for p in parts) == result["all"]["n"] == 24
    mean = sum(p["n"] * p["loss"]["estimate"] for p in parts) / 24
    assert mean == pytest.approx(result["all"]["loss"]["estimate"], rel=1e-9)
    assert result["head"]["n"] == 12


# --- masked models ---------------------------------------------------------------------------


def test_a_masked_model_reads_masks_where_it_is_to_answer(tmp_path: Path) -> None:
    tokenizer = build.word_tokenizer(f"{d.prompt} {d.completion}" for d in DEMOS)
    model = build.build("bert", tokenizer, 16, 2, 2, context=8)
    rows = [TokenizedExample((6, 7, 8, 9), (6, 7)), TokenizedExample((6, 7), (8, 9, 10))]
    logits = forward.label_states(model, collate(rows, "masked"))
    mask = tokenizer.mask_token_id
    for row, ids, own in zip(
        rows, ([6, 7, 8, 9, mask, mask], [6, 7, mask, mask, mask]), logits.split([2, 3]), strict=True
    ):
        alone = model.module(input_ids=torch.tensor([ids])).logits[0, len(row.prompt) :]
        torch.testing.assert_close(own, alone)
    model.save(tmp_path)
    again = load.load(tmp_path, device="cpu")
    assert again.kind == "masked" and same(again, model)
    assert "AutoModelForMaskedLM" in runs.load_lines(tmp_path.parent, tmp_path.name, "hf: x")["lines"]
    with pytest.raises(UserError, match="needs a causal or seq2seq model: this one is masked"):
        baselines.sft(again, DEMOS)
    result = dual_process(DEMOS, model=again, beside=False, forget=ForgetConfig(mode="probabilistic"), fit=FIT)
    ours: Any = result.models["model"]
    assert torch.equal(*(resets.tables(m.module)[0] for m in (again, ours))) and ours.kind == "masked"


# --- the methods -----------------------------------------------------------------------------


def test_from_scratch_every_arm_stands_beside_the_others() -> None:
    result = dual_process(
        DEMOS, BATTERY, forget=ForgetConfig(every=2, until=5), layers=1, d=16, heads=2, look_every=4, fit=FIT
    )
    assert set(result.models) == {"model", "none", "active"}
    assert result.findings["resets"] == {"temporary": 2, "none": 0, "active": 5}
    assert [row["step"] for row in result.findings["over_training"]["none"]] == [0, 4, 8, 12]
    none = result.findings["battery"]["none"]["conflict"]["accuracy"]["estimate"]
    assert result.metrics["conflict_accuracy"].before == none and len(result.figures) == 3
    again = dual_process(DEMOS, BATTERY, forget=ForgetConfig(every=2, until=5), layers=1, d=16, heads=2, beside=False,
                         look_every=4, fit=FIT)  # fmt: skip
    assert again.models["model"].fingerprint() == result.models["model"].fingerprint()  # type: ignore[attr-defined]


def test_without_a_battery_words_of_held_out_demos_are_renamed() -> None:
    model = tiny("llama")
    demos = [Demo(prompt=f"{c}{d}=", completion=c) for c in "abcdef" for d in "12345"]
    result = dual_process(demos, model=model, forget=ForgetConfig(every=2, until=5), beside=False, fit=FIT)
    assert set(result.findings["battery"]["temporary"]) == {"seen", "unseen", "unseen (initial)"}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ones_own_training_run(kind: str) -> None:
    corpus = [Text(text=f"the cat {i} saw the cat {i} and the dog {i}. " * 3) for i in range(12)]
    fit = FIT.replace(steps=4, lr=1e-3)
    start = tiny(kind)
    result = dual_process_pretrain(
        corpus, start, window=64, questions=6, forget=ForgetConfig(mode="probabilistic"), fit=fit
    )
    assert set(result.findings["battery"]) == set(result.findings["by_frequency"]) == {"start", "probabilistic", "none"}
    assert {"repeated_accuracy", "conflict_accuracy", "unseen_accuracy", "loss"} <= set(result.metrics)
    ours: Any = result.models["model"]
    assert torch.equal(*(resets.tables(m.module)[0] for m in (start, ours))) and not same(start, ours)
    with pytest.raises(UserError, match="under lora"):
        dual_process_pretrain(corpus, start, window=64, forget=ForgetConfig(mode="active"), fit=fit.replace(lora=2))
    adapted = dual_process_pretrain(corpus, start, window=64, questions=6, beside=False, fit=fit.replace(lora=2))
    assert adapted.findings["resets"] == {"probabilistic": 0}


TAGGED = [
    Text(text="", extra={"tokens": ["the", noun, verb, "a", adj, "man"],
                         "upos": ["DET", "NOUN", "VERB", "DET", "ADJ", "NOUN"]})
    for noun in ("dog", "cat", "cow") for verb in ("saw", "bit", "met") for adj in ("old", "big", "red")
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_probes_of_a_given_model(kind: Any) -> None:
    tokenizer = build.word_tokenizer(" ".join(text.extra["tokens"]) for text in TAGGED)
    model = build.build(kind, tokenizer, 32, 2, 4, context=8)
    before = model.fingerprint()
    result = dual_process_probe(TAGGED, model, layers=(0, -1), most=60)
    layers = result.findings["layers"]
    assert model.fingerprint() == before and set(layers) == {"model", "untrained"} and set(layers["model"]) == {0, 2}
    assert result.findings["words"] == 60 and result.findings["guessing"] == pytest.approx(1 / 3)
    assert len(result.figures) == 3 and json.dumps(result.findings)
    assert layers["model"][0]["seen"]["estimate"] == 1.0
    if kind == "llama":  # embeddings carry the word but not its position
        zero = layers["model"][0]
        assert zero["word"]["estimate"] > 0.9 and zero["place"]["estimate"] < 0.1
        assert zero["unseen"]["estimate"] < 0.6


def test_conditions_change_the_word_and_nothing_else() -> None:
    model = tiny("llama")
    sampled, names = word_probes.words(TAGGED, ("tokens", "upos"), ("NOUN", "VERB"), 10)
    rows, used = word_probes.rows(model, sampled, word_probes.lexicon(TAGGED, ("tokens", "upos"), names))
    assert len(used) == len(sampled) == 10 and collections.Counter(w.kind for w in sampled) == {0: 5, 1: 5}
    text = model.tokenizer.decode
    for n, word in enumerate(used):
        before = " ".join(word.words[: word.at])
        assert text(rows.rows["seen"][n]).strip() == f"{before} {word.words[word.at]}".strip()
        assert text(rows.rows["conflict"][n]).strip().split()[:-1] == before.split()
        assert rows.rows["unseen"][n][-1] in rows.fresh and rows.other[n] != word.kind
        assert all(own[n][0] == (len(rows.rows[name][n]) - 1,) for name, own in rows.units.items())


@pytest.mark.parametrize(("extra", "classes", "message"), [
    ({"tokens": ["a"], "upos": ["X", "Y"]}, ("NOUN", "VERB"), "record 28: 1 words in 'tokens', 2 in 'upos'"),
    ({"tokens": ["a"]}, ("NOUN", "VERB"), "record 28: field 'upos': must list"),
    ({"tokens": "a", "upos": ["X"]}, ("NOUN", "VERB"), "record 28: field 'tokens': must list"),
    ({"tokens": ["a"], "upos": ["X"]}, ("NOUN", "INTJ"), "no word is tagged INTJ"),
    ({"tokens": ["a"], "upos": ["X"]}, ("NOUN",), "a probe tells two at least apart"),
])  # fmt: skip
def test_bad_records_are_one_line(extra: dict[str, Any], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dual_process_probe([*TAGGED, Text(text="", extra=extra)], tiny("gpt2"), classes=classes)


def test_what_cannot_be_trained_so_is_one_line() -> None:
    with pytest.raises(UserError, match="heads must divide"):
        dual_process(DEMOS, d=16, heads=3)
    with pytest.raises(UserError, match="leave none on one side"):
        dual_process(DEMOS[:1], fit=FIT)
    with pytest.raises(UserError, match="no token embeddings"):
        resets.tables(torch.nn.Linear(2, 2))
    frozen = tiny("gpt2")
    frozen.module.requires_grad_(True)
    resets.tables(frozen.module)[0].requires_grad_(False)
    with pytest.raises(UserError, match="embeddings are not trained"):
        train(ForgetConfig(mode="active", every=2), frozen)
