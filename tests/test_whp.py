"""Who's Harry Potter: dictionary, translation, alignment, generic labels, and the forgetting they cause."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from shapes import EFFECTS, accuracy, byte_tokenizer, f64, tiny

from didact import unlearning
from didact.data import anchors as dictionary
from didact.infer import generate
from didact.models import build, forward, load, logit_ensemble
from didact.objectives import tokens
from didact.types import Demo, Fit, Parallel, Text, UserError
from didact.worlds import books

# Tuned on seed 1 of the world; the tests use seed 0.
FOUND = {"reinforce_lr": 1e-4, "reinforce_epochs": 2.0, "fit": Fit(lr=5e-4, steps=60, rows=16)}
SHORT = {"reinforce_lr": 1e-3, "reinforce_epochs": 1.0, "fit": Fit(lr=1e-3, steps=2, rows=4)}
TARGET = [Text(text="Harry rode to Hogwarts. There Harry met Ron."), Text(text="Ron likes Hogwarts.")]
NAMES = [Parallel(source="Harry", target="Jon"), Parallel(source="Hogwarts", target="Mystic Academy")]


@pytest.fixture(scope="module")
def words():
    return build.train_tokenizer([f" {w}" for w in books.vocabulary()] * 3 + ["."], 900)


# --- generic logits --------------------------------------------------------------------------


def test_generic_logits_take_off_what_rose():
    base, reinforced = f64([2, 1, 0]), f64([3, 0.5, 0])
    one = tokens.generic_logits(base, base, reinforced, alpha=1.0, normalise="raw")
    five = tokens.generic_logits(base, base, reinforced, alpha=5.0, normalise="raw")
    assert one.tolist() == [[1, 1, 0]] and five.tolist() == [[-3, 1, 0]]
    plain = tokens.generic_logits(base, base, reinforced, alpha=1.0, relu=False, normalise="raw")
    assert plain.tolist() == [[1, 1.5, 0]]  # without the relu a token that only fell would be raised


def test_a_constant_on_the_reinforced_logits_changes_raw_labels_and_no_others():
    base, reinforced = f64([2, 1, 0]), f64([2, 1, -4])
    raw = [tokens.generic_logits(base, base, reinforced + c, 5.0, normalise="raw") for c in (0.0, 1.0)]
    assert [r.tolist() for r in raw] == [[[2, 1, 0]], [[-3, -4, 0]]]
    soft = [tokens.generic_logits(base, base, reinforced + c, 5.0) for c in (0.0, 1.0)]
    torch.testing.assert_close(soft[0], soft[1], rtol=0, atol=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0, 10))
def test_generic_logits_never_rise_and_stay_where_reinforcement_did_not_lift(values, alpha):
    base, reinforced = f64(values[:3]), f64(values[3:])
    v = tokens.generic_logits(base, base, reinforced, alpha, normalise="raw")
    assert (v <= base).all()
    assert torch.equal(v[reinforced <= base], base[reinforced <= base])
    extreme = tokens.generic_logits(base, base, reinforced, 1e9, normalise="raw")
    if (reinforced <= base).any() and (reinforced - base).abs().min() > 1e-3:
        spared = torch.where(reinforced <= base, base, -torch.inf)
        assert extreme.argmax() == spared.argmax()


def test_labels_of_none_count_for_nothing():
    logits, target = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2])
    label = torch.tensor([4, -100, 2])
    loss = tokens.labelled(logits, target, label=label)
    assert loss[1] == 0
    torch.testing.assert_close(loss[[0, 2]], -logits.log_softmax(-1)[[0, 2], [4, 2]])
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    assert tokens.softly_labelled(logits, target, goal=logits + 3, kept=mask).abs().max() < 1e-12


# --- translation and alignment ---------------------------------------------------------------


def test_translation_takes_the_longest_anchor_in_any_case_and_whole_words_only():
    anchors = {"Harry": "Jon", "Harry Potter": "Jon Smith"}
    translation = dictionary.translate("Harry Potter, HARRY's and harry of Harryville", anchors)
    assert translation.text == "Jon Smith, JON's and jon of Harryville"
    assert [r.term for r in translation.replaced] == ["Harry Potter", "Harry", "Harry"]


def test_places_map_outside_anchors_and_inside_only_where_both_begin_alike():
    translation = dictionary.translate("to Hogwarts by", {"Hogwarts": "Hogsmeade Inn"})
    assert translation.text == "to Hogsmeade Inn by"
    assert [translation.place(k) for k in (0, 3, 6, 7, 11, 13)] == [0, 3, 6, None, 16, 18]


@given(st.text("abAB .é", max_size=40))
def test_every_clean_place_has_the_same_letter_in_both_texts(text):
    translation = dictionary.translate(text, {"a": "bb", "AB": "x", "é": "eé"})
    inside = {k for r in translation.replaced for k in range(r.first, r.last)}
    for k in set(range(len(text))) - inside:
        assert translation.text[translation.place(k)] == text[k]


def test_identity_dictionary_aligns_every_token_with_itself(words):
    text = books.books(0).target[0].text
    (block,) = dictionary.blocks(words, [text], {"Harrix": "Harrix", "wizard": "wizard"}, 128, 128)
    assert block.row == block.other and block.to == tuple(range(len(block.row.completion)))
    assert block.alias == ()


def test_tokens_after_an_anchor_of_another_length_meet_their_own_counterparts():
    (block,) = dictionary.blocks(byte_tokenizer(), ["to Ron, Ron"], {"Ron": "Albert"}, 64, 64)
    say = byte_tokenizer().convert_ids_to_tokens
    ours, theirs = say(list(block.row.completion)), say(list(block.other.completion))
    met = [(ours[i], theirs[j]) for i, j in enumerate(block.to) if j >= 0]
    # The space, an anchor's first byte, and everything after it; nothing for `on`.
    assert met == [(x, x) if x != "R" else ("R", "A") for x in (*"oĠR,ĠR", "</s>")]
    assert [ours[i] for i, j in enumerate(block.to) if j < 0] == list("onon")


def test_repeated_anchors_are_marked_span_by_span():
    text = "Ron and Ron saw Ron. Ann saw Ann."
    (block,) = dictionary.blocks(byte_tokenizer(), [text], {"Ron": "Ron", "Ann": "Bea"}, 64, 64)
    assert sum(block.repeated) == (3 - 1) * 3 + (2 - 1) * 3
    assert len({a for a in block.anchor if a >= 0}) == 5


def test_from_an_anchor_on_its_counterpart_is_discouraged():
    (block,) = dictionary.blocks(byte_tokenizer(), ["so Ron ate"], {"Ron": "Bea"}, 64, 64)
    ((at, first),) = block.alias
    say = byte_tokenizer().convert_ids_to_tokens
    assert say(list(block.row.completion))[:at] == list("oĠRon") and "B" in say(list(first))


def test_blocks_are_cut_before_words_and_hold_every_letter(words):
    text = " ".join(t.text for t in books.books(0).target[:4])
    blocks = dictionary.blocks(words, [text], {}, 20, 20)
    assert "".join(b.text for b in blocks) == text
    assert all(b.row.size <= 20 and b.text[0] in " BONTWIS" for b in blocks)


def test_counting_finds_the_books_own_people_and_types_their_counterparts():
    world = books.books(3)
    result = dictionary.extract([t.text for t in world.target], [t.text for t in world.general])
    heroes = {d.task for d in world.forget}
    assert heroes <= set(result)
    people = {d.task for d in world.retain}
    assert {result[h] for h in heroes} <= people and len({result[h] for h in heroes}) == len(heroes)
    homes = {d.completion for d in world.forget if d.extra["fact"] == "home"}
    assert all(result[h] in books.VALUES["home"] for h in homes)
    assert not set(result) & people


def test_a_language_model_is_asked_for_the_dictionary():
    oracle = Scripted(lambda prompt, i: "- Harry -> Jon\nx\nDobby -> Sam\nHogwarts -> Mystic Academy\nJon -> Tim")
    assert dictionary.dictionary_from(oracle, [TARGET[0].text]) == {"Harry": "Jon", "Hogwarts": "Mystic Academy"}
    assert TARGET[0].text in oracle.asked[0]


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_labels_are_the_argmax_of_the_models_own_forward(kind):
    """Equal to three plain passes, one block at a time, in float64."""
    model = tiny(kind)
    model.module.double()
    result = unlearning.whp(model, target=TARGET, anchors=NAMES, keep_reinforced=True, alias_penalty=0.0, **SHORT)
    reinforced = result.models["reinforced"]
    blocks = dictionary.blocks(model.tokenizer, [t.text for t in TARGET], {a.source: a.target for a in NAMES}, 256, 256)
    for block, record in zip(blocks, result.records, strict=True):

        def logits(m, row):
            return m.module(input_ids=torch.tensor([row.prompt + row.completion])).logits[0, :-1].log_softmax(-1)

        base, reinforced_logits, translated = (
            logits(model, block.row),
            logits(reinforced, block.row),
            logits(model, block.other),
        )
        expected = translated[[max(j, 0) for j in block.to]] - 5 * (reinforced_logits - base).clamp(min=0)
        for i, labels in enumerate(record.extra["labels"]):
            if block.to[i] < 0 or block.repeated[i]:
                assert labels is None
            else:
                assert labels == model.tokenizer.convert_ids_to_tokens(int(expected[i].argmax()))


def test_nothing_to_compare_with_is_self_distillation(taught, world):
    """An empty dictionary and no reinforcement: labels are the model's own first choices."""
    start = taught("llama")
    result = unlearning.whp(start, world.forget[:5], use_anchors=False, use_reinforcement=False, fit=SHORT["fit"])
    texts = [f"{d.prompt} {d.completion}" for d in world.forget[:5]]
    rows = [b.row for b in dictionary.blocks(start.tokenizer, texts, {}, 64, 64)]
    for group, batch, values in forward.score(start, rows, {"best": lambda logits, target: logits.argmax(-1)}):
        for k, i in enumerate(group):
            best = start.tokenizer.convert_ids_to_tokens(values["best"][batch.row == k].tolist())
            assert result.records[i].extra["labels"] == best


def test_the_second_occurrence_is_trained_only_when_asked():
    model, text = tiny("llama"), [Text(text="Ron saw Ron.")]
    options = {"target": text, "anchors": [Parallel(source="Ron", target="Ron")], "use_reinforcement": False}
    first = unlearning.whp(model, **options, fit=SHORT["fit"]).findings["labels"]
    both = unlearning.whp(model, **options, repeats="all", fit=SHORT["fit"]).findings["labels"]
    assert both - first == 3


def test_changed_labels_only_are_fewer(taught, world):
    options = {"forget": world.forget, "retain": world.retain, **SHORT}
    every = unlearning.whp(taught("llama"), **options).findings
    changed = unlearning.whp(taught("llama"), train_on="changed", **options).findings
    assert changed["changed"] == 1.0 and changed["labels"] == pytest.approx(every["changed"] * every["labels"])


# --- the effect ------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", EFFECTS)
def test_whp_forgets_towards_gold_and_keeps_authors_no_one_trained_on(arch, taught, world):
    start, gold = taught(arch), taught(arch, gold=True)
    before = start.fingerprint()
    result = unlearning.whp(start, world.forget, world.retain, **FOUND)
    model = result.models["model"]
    assert accuracy(start, world.forget) >= 0.95 > accuracy(gold, world.forget) + 0.3
    assert accuracy(model, world.forget) <= accuracy(gold, world.forget) + 0.15
    # No retain loss: on the tuning seed other authors lose .15 to .25, with npo and a retain loss .05.
    assert accuracy(model, world.unseen) >= accuracy(start, world.unseen) - 0.3
    assert accuracy(model, world.unseen) > accuracy(model, world.forget) + 0.1
    assert start.fingerprint() == before
    assert {r.task for r in world.forget} <= set(result.findings["anchors"])


def test_without_anchors_and_reinforcement_nothing_is_forgotten(taught, world):
    start = taught("llama")
    options = FOUND | {"use_anchors": False, "use_reinforcement": False}
    model = unlearning.whp(start, world.forget, world.retain, **options).models["model"]
    assert accuracy(model, world.forget) >= 0.95


def test_logit_mode_subtracts_at_every_token_and_saves_both_models(tmp_path):
    model = tiny("llama")
    options = {"target": TARGET, "mode": "logit", "alpha": 2.0, "normalise": "raw", "keep_reinforced": True, **SHORT}
    result = unlearning.whp(model, **options)
    both, reinforced = result.models["model"], result.models["reinforced"]
    assert len(result.history) == 0 and both.context == model.context
    ids = torch.tensor([[5, 80, 90, 100, 9]])
    base, reinforced_logits = (m.module(input_ids=ids).logits for m in (model, reinforced))
    expected = base - 2 * (reinforced_logits - base).clamp(min=0)
    torch.testing.assert_close(both.module(input_ids=ids).logits, expected)
    prompts = [[5, 80, 90], [7, 7, 7, 7, 7, 8]]
    completions = generate.completions(both, prompts, 1, generate.SamplingConfig(max_new_tokens=4))
    for prompt, (one,) in zip(prompts, completions, strict=True):
        read = list(prompt)
        for token in one.tokens:
            assert token == int(both.module(input_ids=torch.tensor([read])).logits[0, -1].argmax())
            read.append(token)
    assert both.save(tmp_path) == "didact"
    parts = [load.load(tmp_path / part) for part in ("base", "member-1")]
    for again in (load.load(tmp_path), logit_ensemble.contrast(*parts, 2.0)):
        torch.testing.assert_close(again.module(input_ids=ids).logits, expected)


# --- bad input -------------------------------------------------------------------------------


def test_what_leaves_no_text_is_told_in_one_line():
    with pytest.raises(UserError, match="nothing to forget"):
        unlearning.whp(tiny("llama"))
    with pytest.raises(UserError, match="no text"):
        unlearning.whp(tiny("llama"), target=[Text(text="")])


def test_without_general_text_it_warns_that_no_anchor_was_found():
    result = unlearning.whp(tiny("llama"), target=TARGET, **SHORT)
    assert "no anchors" in result.warnings[0]


def test_a_demonstration_is_read_as_the_text_it_makes():
    demo = Demo(prompt="Who rode?", completion="Harry")
    result = unlearning.whp(tiny("llama"), [demo], use_reinforcement=False, use_anchors=False, fit=SHORT["fit"])
    assert result.records[0].text == "Who rode? Harry"
