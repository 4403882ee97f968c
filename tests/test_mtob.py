"""Translating with a dictionary, sentences and a grammar: retrieval, prompts, decontamination, and a scripted
translator that only looks words up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from shapes import tiny

from didact import prompting
from didact.data import materials, translation
from didact.data.materials import Materials
from didact.data.read import read
from didact.evaluate import materials as worth
from didact.evaluate.materials import Coverage
from didact.infer.ask import Asking
from didact.types import Parallel, Text, UserError
from didact.worlds import tongues

CONCEPTS = tongues.Concepts(nouns=6, verbs=3, adjectives=3)
ONE, OTHER = tongues.invented(3, 2, CONCEPTS, alike=True)
SOME = tongues.meanings(3, 12, CONCEPTS)
TEST, PAIRS = tongues.pairs(ONE, OTHER, SOME[:4]), tongues.pairs(ONE, OTHER, SOME[4:])
WORDS = tongues.dictionary(ONE, OTHER)
BOOK = [Text(text=f"{ONE.rules()}\n" + "Something else is said here .\n" * 5)]


def looked_up(prompt, i=0):
    """Translates every word with the dictionary in its prompt and nothing else."""
    entries = dict(re.findall(r"^- (\S+) = (\S+)$", str(prompt), re.MULTILINE))
    line = str(prompt).rsplit("\n", 1)[0].rpartition(": ")[2]
    return " ".join(entries.get(w, "?") for w in line.split())


def run(lm=None, **how):
    how = {"wordlist": WORDS, "pairs": PAIRS, "book": BOOK} | how
    return prompting.mtob(lm or Scripted(looked_up), how.pop("test", TEST), **how)


def test_padding_tells_a_word_from_one_that_holds_it():
    assert materials.Lookup(["banana", "ana", "xx"])(["ana"], 2) == [[1, 0]]
    assert materials.Lookup(["first", "second"])(["q"], 1) == [[0]]  # ties by position


def test_ten_thousand_entries_are_looked_up_at_once():
    pool = materials.Lookup([f"word{i}" for i in range(10_000)])
    assert pool(["word77", "word9999"], 1) == [[77], [9999]]


def test_words_are_asked_without_stops_and_commas():
    assert materials.lookup_words(" Ma he, yuon. ") == ["Ma", "he", "yuon"]
    assert materials.lookup_words("我看书。") == ["我", "看", "书", "。"]
    source = Materials("A", "B", [Parallel(source=f"w{i}", target="x") for i in range(9)])
    for once, count in ((False, 6), (True, 2)):  # only spaces in common: each word retrieves the same two
        assert len(source.blocks("Ma he, yuon.", ["wordlist"], 2, 2, 2, once)) == count


def test_capital_letters_count_where_that_is_wanted():
    assert materials.Lookup(["ba", "Ma"])(["MA"], 1) == [[1]]
    assert materials.Lookup(["ma", "Mb"], case=True)(["MA"], 1) == [[1]]
    assert materials.Lookup(["ma", "Mb"])(["MA"], 1) == [[0]]


def test_chunks_overlap_and_stop_where_the_end_is_reached():
    assert materials.chunks([1] * 1024, 512, 256) == [(0, 512), (256, 768), (512, 1024)]
    assert materials.chunks([1] * 10, 512, 256) == [(0, 10)] and materials.chunks([], 4, 2) == []
    assert materials.chunks([600, 1, 1], 512, 256) == [(0, 1), (1, 3)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(2, 20), st.data())
def test_every_unit_is_in_a_chunk(sizes, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    result = materials.chunks(sizes, size, overlap)
    assert {i for a, b in result for i in range(a, b)} == set(range(len(sizes)))
    assert all(sum(sizes[a:b]) <= size or b - a == 1 for a, b in result)


def test_a_prompt_grows_with_its_materials_and_without_any_it_is_the_plain_one():
    lm = Scripted(looked_up)
    lm.context = 10_000
    run(lm)
    prompts = {c: [] for c in ("-", "W", "S", "W+S+G")}
    sources = Materials(ONE.name, OTHER.name, WORDS, PAIRS, ["a passage of the book"], book="the book")
    translator = worth.Translator(type("A", (), {"lm": lm, "how": Asking()})(), Coverage())
    for name in prompts:
        prompts[name] = len(translator.prompt(sources, TEST[0].source, name))
    plain = translator.prompt(sources, TEST[0].source, "-")
    assert plain == f"{ONE.name}: {TEST[0].source}\n{OTHER.name}:" and " = " not in plain
    assert translator.prompt(sources, "x", "W+B").startswith(translator.prompt(sources, "y", "S+B")[:20])
    assert prompts["-"] < prompts["W"] < prompts["W+S+G"] and prompts["-"] < prompts["S"] < prompts["W+S+G"]
    assert translator.prompt(sources, "x", "B").startswith("A grammar:\nthe book")


def test_where_order_is_the_same_the_dictionary_alone_translates_exactly():
    result = run()
    scores = result.findings["forward"]["scores"]
    assert scores["W"] == {"chrf": 100, "interval": (100, 100), "exact": 1} == scores["word by word"]
    assert scores["-"]["exact"] == 0 and "copied source" in scores
    gain = result.findings["forward"]["gains"]["W over -"]
    assert gain["interval"][0] > 50 and "W+S over S" in result.findings["forward"]["gains"]
    assert result.findings["conditions"] == ["-", "W", "S", "G", "W+S", "W+G", "S+G", "W+S+G"]
    assert result.predict([f"{ONE.name}: {TEST[1].source}\n{OTHER.name}:"]) == [TEST[1].target]
    assert result.records[0].extra["translations"]["W"] == TEST[0].target


def test_the_other_language_s_dictionary_translates_nothing():
    unrelated = [Parallel(source=f"zz{i}", target=p.target) for i, p in enumerate(WORDS)]
    assert run(wordlist=unrelated, conditions=("W",)).findings["forward"]["scores"]["W"]["exact"] == 0


def test_both_directions_turn_everything_around():
    result = run(direction="both", conditions=("W",))
    assert result.findings["back"]["scores"]["W"]["exact"] == 1
    backward, forward = f"{OTHER.name}: {TEST[0].target}\n{ONE.name}:", f"{ONE.name}: {TEST[0].source}\n{OTHER.name}:"
    assert result.predict([backward, forward]) == [TEST[0].source, TEST[0].target]
    assert {(r.source_lang, r.target_lang) for r in result.records} == {
        (ONE.name, OTHER.name), (OTHER.name, ONE.name)
    }  # fmt: skip
    assert run(direction="back", conditions=("W",)).predict([backward]) == [TEST[0].source]


def test_the_test_and_canaries_are_taken_out_of_pairs_and_book():
    canary = Parallel(source="c", target="c", extra={materials.MARK: "x"})
    lines = f"good line\n{TEST[0].source.upper()} means {TEST[0].target}\nThe canary GUID is below\nsecret-42 text\n"
    guid = "id 12345678-1234-1234-1234-123456789abc\n"
    lm = Scripted(looked_up)
    result = run(
        lm, pairs=[*PAIRS, TEST[0], canary], book=[Text(text=lines + guid)], canary="secret-42",
        conditions=("S+G", "B"), test=[*TEST, canary],
    )  # fmt: skip
    assert result.findings["left_out"] == {"places of the book": 5, "entries": 0, "pairs": 2}
    assert any("5 places of the book hold sentences of the test" in w for w in result.warnings)
    prompts = "".join(map(str, lm.asked))
    assert "good line" in prompts and not any(t in prompts for t in ("canary", "secret-42", "12345678"))
    assert TEST[0].source.upper() not in prompts
    assert TEST[0].target not in prompts and len(result.records) == 4


def test_what_does_not_fit_is_left_out_from_the_end_and_counted():
    lm = Scripted(looked_up)
    lm.context = 120
    result = run(lm, conditions=("W+S",), asking=Asking(max_new_tokens=10))
    assert all(len(str(p).split()) <= 110 for p in lm.asked)
    assert any("W+S" in w and "did not fit" in w for w in result.warnings)
    assert result.findings["forward"]["scores"]["W+S"]["exact"] == 1  # the dictionary comes first


def test_passages_by_shared_words_and_a_missing_material():
    assert run(retrieval="bm25", conditions=("G",)).findings["conditions"] == ["G"]
    with pytest.raises(UserError, match="'W' needs wordlist, which is not given"):
        run(wordlist=None, conditions=("W",))
    with pytest.raises(UserError, match="'X' is none of W, S, G, E, B"):
        run(conditions=("X",))


def test_few_sentences_do_not_establish_small_differences():
    lm = Scripted(lambda prompt, i: "ab cd ef" if "From a grammar" in prompt else "ab cd eg")
    test = [Parallel(source=f"a b{i}", target="ab cd ef " + "long " * 9) for i in range(3)]
    assert any("do not establish" in w for w in run(lm, test=test, conditions=("-", "G")).warnings)


@pytest.mark.parametrize("source_lang", ["", "Kari"])
def test_records_of_both_directions_in_one_file_are_each_translated_their_own_way(source_lang):
    mixed = [TEST[0], materials.turn(TEST[1])]
    wordlist = [materials.turn(WORDS[0]), *WORDS[1:]]
    result = run(test=mixed, wordlist=wordlist, conditions=("W",), source_lang=source_lang)
    assert [result.findings[direction]["scores"]["W"]["exact"] for direction in ("forward", "back")] == [1, 1]
    assert [r.extra["prediction"] for r in result.records] == [TEST[0].target, TEST[1].source]
    assert result.predict([translation.prompt(p) for p in mixed]) == [TEST[0].target, TEST[1].source]


def test_names_in_prompts_are_the_users_and_answers_go_by_the_records_own():
    plain = [Parallel(source=p.source, target=p.target) for p in TEST]
    lm = Scripted(looked_up)
    result = run(lm, test=plain, conditions=("W",), source_lang="Kari", target_lang="Dutch")
    assert lm.asked[0].endswith(f"Kari: {TEST[0].source}\nDutch:")
    assert result.predict([translation.prompt(plain[0]), TEST[1].source]) == [TEST[0].target, TEST[1].target]


def test_a_sentence_of_the_test_is_taken_out_of_a_book_wherever_its_lines_end():
    held = [Parallel(source="kato mo bira sun", target="the dog sees us")]
    book = "Before. Kato mo\n  bira sun, he said.\nThe dog sees uses. A canary sings; the dog sees us.\nAfter."
    remaining, count = materials.cleaned(book, held)
    assert count == 2 and "bira" not in remaining and "sees us." not in remaining
    assert all(text in remaining for text in ("Before.", "he said.", "The dog sees uses. A canary sings;", "After."))


def test_explanations_are_the_book_without_the_sentences_of_the_pairs():
    book = [Text(text=f"Verbs come last, as in: {PAIRS[0].source} , which is {PAIRS[0].target} . Nouns do not.")]
    lm = Scripted(looked_up)
    run(lm, book=book, conditions=("E",))
    assert "Verbs come last" in lm.asked[0] and not any(PAIRS[0].source in str(p) for p in lm.asked)
    run(lm, book=book, conditions=("G",))
    assert PAIRS[0].source in lm.asked[-1]
    with pytest.raises(UserError, match="'E' needs pairs and book"):
        run(pairs=None, conditions=("E",))


def test_a_book_that_does_not_fit_is_told_and_its_beginning_taken():
    book = [Text(text="word " * 990 + "last")]
    with pytest.raises(UserError, match=r"the book has 991 tokens, and \d+ fit this model: --shown.book_tokens \d+"):
        run(book=book, conditions=("W", "B"))
    lm = Scripted(looked_up)
    result = run(lm, book=book, conditions=("W+B",), shown=Coverage(book_tokens=50))
    # All get the same beginning of the book
    assert all(str(p).count("word ") == 49 and "word\n\nTranslate" in p for p in lm.asked)
    assert result.findings["forward"]["scores"]["W+B"]["exact"] == 1
    assert 50 < result.findings["tokens"]["W+B"] < 150


def test_a_refusal_is_asked_again_with_a_nudge():
    def shy(prompt, i):
        return looked_up(prompt) if worth.NUDGE in prompt else "I'm sorry, but I cannot translate this."

    result = run(Scripted(shy), conditions=("W",), asking=Asking(tries=1))
    assert result.findings["forward"]["scores"]["W"]["exact"] == 1
    assert result.findings["unreadable"] == len(TEST) and result.findings["calls"] == 2 * len(TEST)
    assert worth._read("I can't see the dog", "English") == "I can't see the dog"


def test_passages_are_found_by_vectors_too():
    book = [Text(text="nothing of it " * 30 + f"{TEST[0].source.split()[0]} is a noun " + "nothing of it " * 30)]
    options = {"book": book, "conditions": ("G",), "test": TEST[:1], "shown": Coverage(size=8, overlap=4, passages=1)}
    run(lm := Scripted(looked_up), retrieval="test_mtob:by_first_word", **options)
    assert f"{TEST[0].source.split()[0]} is" in lm.asked[0]
    with pytest.raises(UserError, match="a server does not show its hidden states"):
        run(retrieval="model", **options)
    tokens = tiny("llama")
    assert run(tokens, retrieval="model", asking=Asking(max_new_tokens=2, tries=1), **options).findings["complete"]


def by_first_word(texts):
    word = TEST[0].source.split()[0]
    return [[float(word in text.split()), 0.1] for text in texts]


def test_a_word_list_is_a_table_of_two_columns(tmp_path):
    (tmp_path / "w.tsv").write_text("source\ttarget\tpos\nama\tbird\tnoun\n", encoding="utf-8")
    source = Materials("A", "B", read(tmp_path / "w.tsv", Parallel))
    assert [b.text for b in source.blocks("ama", ["wordlist"], 1, 1, 1, True)] == ["- ama (noun) = bird"]
