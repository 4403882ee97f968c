"""Demonstrations a model mines itself: cycle check, word by word, selection, stages; exact answers of the card."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from didact import prompting
from didact.data import lexicon, retrieval, shown
from didact.data.lexicon import Pair
from didact.data.shown import Pick
from didact.infer.ask import Asking
from didact.infer.mining import Words
from didact.types import Parallel, Text, UserError

XLING = Path("/work/shared/data/xling_bli")
WORDS = st.text("abcde", min_size=1, max_size=3)


# --- the cycle check -----------------------------------------------------------------------------


@given(st.dictionaries(WORDS, WORDS, min_size=1), st.dictionaries(WORDS, WORDS))
def test_what_passes_leads_back_and_no_two_words_have_one_translation(forward, back):
    pairs = lexicon.cycle_check([(s, t, 0.0) for s, t in forward.items()], back, copies=True)
    saved = [p for p in pairs if p.kept]
    assert all(back[p.target] == p.source for p in saved)
    assert len({p.target for p in saved}) == len(saved)
    assert len(pairs) == len(forward)


def test_inverses_keep_all_and_a_constant_at_most_one():
    translations = {f"s{i}": f"t{i}" for i in range(9)}
    mined_pairs = [(s, t, 0.0) for s, t in translations.items()]
    assert all(p.kept for p in lexicon.cycle_check(mined_pairs, {t: s for s, t in translations.items()}))
    assert [
        p.source for p in lexicon.cycle_check(mined_pairs, dict.fromkeys(translations.values(), "s3")) if p.kept
    ] == ["s3"]


def test_why_a_word_is_rejected():
    candidates = [("Taxi", "taxi", 0.0), ("dog", None, 0.0), ("cat", "Katze", 0.0), ("cow", "Kuh", 0.0)]
    pairs = lexicon.cycle_check(candidates, {"taxi": "Taxi", "Katze": "kitten", "Kuh": "Cow."})
    assert [p.reason for p in pairs] == ["copied", "no translation", "comes back as kitten", ""]
    assert lexicon.cycle_check(candidates[:1], {"taxi": "taxi"}, copies=True)[0].kept


# --- word by word --------------------------------------------------------------------------------


def test_word_by_word_keeps_order_length_and_what_it_does_not_know():
    dictionary = {"der": "the", "hund": "dog", "bellt": "barks"}
    assert lexicon.word_by_word("Der Hund  bellt, heute!", dictionary) == "the dog  barks, heute!"
    assert lexicon.word_by_word("我喜欢狗", {"喜欢": "like ", "狗": "dogs"}) == "我like dogs"


@given(st.lists(WORDS, min_size=1, max_size=8), st.dictionaries(WORDS, WORDS))
def test_as_many_words_come_out_as_went_in(sentence, dictionary):
    assert len(lexicon.word_by_word(" ".join(sentence), dictionary).split()) == len(sentence)


def test_frequent_words_are_letters_in_lower_case():
    assert lexicon.frequent(["The dog, the 3 dogs.", "THE dog-cart x2"], 3) == ["the", "dog", "dogs"]


@pytest.mark.skipif(not XLING.exists(), reason="the dictionaries lie beside the repository")
@pytest.mark.parametrize("language", ["de", "it"])
def test_a_real_dictionary_is_its_own_gold_and_noise_costs_precision_as_counted(language):
    lines = (XLING / f"yacle.test.freq.2k.en-{language}.tsv").read_text(encoding="utf-8").splitlines()
    gold = [tuple(line.split("\t")) for line in lines]
    pairs = [Pair(s, t) for s, t in gold]
    whole = lexicon.accuracy(pairs, gold, [s for s, _ in gold])
    assert (whole.precision, whole.recall) == (1, 1) and whole.known == len({lexicon.folded(s) for s, _ in gold})
    noisy = [Pair(p.source, "zzz") if i % 4 == 0 else p for i, p in enumerate(pairs)]
    assert lexicon.accuracy(noisy, gold, [s for s, _ in gold]).precision == pytest.approx(0.75, abs=0.01)
    backward = {}
    for s, t in gold:
        backward.setdefault(t, s)
    saved = [p for p in lexicon.cycle_check([(s, t, 0.0) for s, t in gold], backward) if p.kept]
    assert 1500 < len(saved) < 2000 and len({p.target for p in saved}) == len(saved)  # several words of one translation
    assert not any(lexicon.folded(p.source) == lexicon.folded(p.target) for p in saved)


# --- selection -----------------------------------------------------------------------------------

POOL = ["red dog runs", "red cat sleeps", "a blue bird sings", "red dog sleeps", "nothing alike"]


def near(queries):
    vectors = retrieval.TfIdf(POOL)
    return np.asarray((retrieval.embedded(vectors, queries) @ retrieval.embedded(vectors, POOL).T).todense())


def picked(similarity=(1, 1, 1, 1, 1), **how):
    queries = ["red dog sleeps now"]
    return shown.pick(queries, POOL, similarity, near(queries), Pick(**how))


def test_bm25_of_one_document_that_has_the_term_once():
    assert retrieval.BM25(["term"]).scores(["term"])[0, 0] == pytest.approx(math.log(1 + 0.5 / 1.5), abs=1e-6)
    assert retrieval.BM25(POOL).scores(["zebra"]).max() == 0


def test_the_most_relevant_stands_last_and_a_large_k_is_the_whole_pool():
    assert picked(shots=2, near=5, tau="-1").places == [[0, 3]]
    whole = picked(shots=99, near=99, tau="-1")
    assert sorted(whole.places[0]) == list(range(5)) and whole.fell_back == 0


def test_as_many_near_as_shots_are_only_put_in_order_and_all_near_is_bm25_alone():
    few, topk = picked(shots=3, near=3, tau="-1"), picked(shots=3, near=3, tau="-1", how="topk")
    assert set(few.places[0]) == set(topk.places[0])
    assert picked(shots=3, near=99, tau="-1") == picked(shots=3, how="bm25", tau="-1")


def test_tau_filters_pairs_or_nearness_and_falls_back_to_the_likest():
    alike = (0.2, 0.95, 0.9, 0.89, 0.1)
    assert picked(alike, shots=2, near=5, tau="0.9") == shown.Picked([[2, 1]], 0)  # 0.9 itself passes
    assert picked(alike, shots=2, near=5, tau="1.1") == shown.Picked([[2, 1]], 1)
    assert picked(alike, shots=1, near=5, tau="0.5", on="query").places == [[3]]
    assert picked(alike, shots=3, near=5, tau="0.9", on="query").fell_back == 1
    assert picked(alike, shots=1, near=5, tau="q0.5").places == [[3]]
    assert shown.pick(["x"], [], [], np.zeros((1, 0)), Pick()) == shown.Picked([[]], 0)


# --- the whole method ----------------------------------------------------------------------------

TRUE = {"ka": "uno", "ri": "dos", "mo": "tres", "su": "cuatro", "te": "cinco"}
BACK = {t: s for s, t in TRUE.items()}
NAMES = {"source_lang": "Kari", "target_lang": "Espa"}
SENTENCES = ["ka ri mo", "mo su", "su te ka", "ri ka"]
TARGETS = ["tres cinco", "uno dos", "cuatro tres uno", "dos dos tres", "cinco uno"]


def translator(wrong=()):
    """Knows the language except for wrong words (in the direction out); translates sentences word by word."""

    def write(prompt, i):
        line, name = prompt.rsplit("\n", 1)
        text, forward = line.rpartition(": ")[2], name.startswith("Espa")
        dictionary = TRUE if forward else BACK
        if " word" in name:
            return wrong[text] if text in wrong and forward else dictionary.get(text, "?") + "\nKari: more"
        return " ".join(dictionary.get(w, w) for w in text.split())

    return Scripted(write, lambda p, c: -0.1 * len(c))


def mined(lm=None, test=None, **how):
    test = test or [Parallel(source="ka mo", target="uno tres", **NAMES)]
    how = {"words": Words(count=9, shots=2), "pick": Pick(shots=2, tau="-1")} | how
    return prompting.self_mining(
        lm or translator(), [Text(text="\n".join(SENTENCES))], [Text(text=t) for t in TARGETS], test, **how
    )


def test_it_translates_with_pairs_whose_target_is_natural_and_remembers_what_it_said():
    lm = translator()
    result = mined(lm, dictionary=[Parallel(source=s, target=t) for s, t in TRUE.items()])
    assert result.predict(["Kari: ka mo\nEspa:", "te", "Source: mo\nTarget:"]) == ["uno tres", "cinco", "tres"]
    assert {r.target for r in result.records} == set(TARGETS)  # byte for byte
    assert result.findings["dictionary"]["after the check"] == {"precision": 1.0, "recall": 1.0, "known": 5}
    assert result.findings["word_by_word"]["chrf"] == 100
    (shown_,) = [p for p in lm.asked if isinstance(p, str) and p.endswith("Kari: ka mo\nEspa:")]
    pairs = [block.split("\n")[1].removeprefix("Espa: ") for block in shown_.split("\n\n")[:-1]]
    assert len(pairs) == 2 and set(pairs) <= set(TARGETS)


def test_no_word_is_shown_its_own_translation():
    lm = translator()
    mined(lm, words=Words(count=9, shots=9))
    again = [p for p in lm.asked if isinstance(p, str) and p.count("Kari word:") > 1]
    assert again
    for prompt in again:
        texts = [line.rpartition(": ")[2] for line in prompt.split("\n") if ": " in line]
        assert Counter(texts)[texts[-1]] == 1


def test_the_cycle_check_takes_out_what_is_wrong():
    result = mined(translator(wrong={"ka": "dos", "te": "te"}), words=Words(count=9, rounds=0))
    assert result.findings["words"] == {"asked": 5, "kept": 3, "comes back as another": 1, "copied": 1}


def test_references_of_the_test_are_left_out_of_the_target_text():
    result = mined(test=[Parallel(source="ri ri mo", target="Dos dos  tres", **NAMES)])
    assert "dos dos tres" not in {r.target for r in result.records}
    assert result.findings["references_left_out"] == 1 and "references of the test" in result.warnings[0]


def test_copies_and_silence_are_dropped_from_the_pool():
    silent = Scripted(lambda prompt, i: "" if prompt.endswith("Kari:") else "x")
    result = mined(silent, asking=Asking(tries=2))
    assert all(r.extra["reason"] == "no translation" for r in result.records)
    assert result.predict(["te"]) == ["x"] and result.findings["pairs"]["kept"] == 0


def test_every_stage_is_written_and_a_second_run_asks_for_none_of_it(tmp_path):
    first = translator()
    one = mined(first, stages=str(tmp_path / "s"))
    rows = [json.loads(line) for line in (tmp_path / "s" / "words.jsonl").read_text().splitlines()]
    assert {"source", "target", "score", "reason"} <= rows[0].keys() and len(rows) == 5
    second = translator()
    two = mined(second, stages=str(tmp_path / "s"))
    prompts = [p for p in second.asked if isinstance(p, str)]
    assert len(prompts) == 1 and prompts[0].endswith("Kari: ka mo\nEspa:") and two.records == one.records
    with pytest.raises(UserError, match="stages of another run"):
        mined(translator(), stages=str(tmp_path / "s"), seed=5)


def test_a_second_round_shows_the_likest_pairs_of_the_first():
    lm = translator()
    result = mined(lm, rounds=2)
    assert set(result.findings["calls_by_role"]) >= {"back-translation, round 1", "back-translation, round 2"}


def test_similarity_of_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "enc.py").write_text(
        "def lengths(texts): return [[float(len(t)), 1.0] for t in texts]\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert mined(similarity="enc:lengths").findings["likeness"] != mined().findings["likeness"]
    with pytest.raises(UserError, match="hidden states"):
        mined(similarity="model")


def test_without_a_test_it_still_answers():
    result = prompting.self_mining(
        translator(), [Text(text=t) for t in SENTENCES], [Text(text=t) for t in TARGETS], words=Words(shots=2),
        pick=Pick(shots=2, tau="-1"), source_lang="Kari", target_lang="Espa",
    )  # fmt: skip
    assert result.predict(["ka te"]) == ["uno cinco"]


def test_text_without_sentences_is_one_line():
    with pytest.raises(UserError, match="source: no sentence"):
        prompting.self_mining(translator(), [Text(text=" ")], [Text(text="x")])
