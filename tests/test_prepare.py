"""The data pipeline: its parts against their formulas, and the command on files."""

import gzip
import json
import pydoc_data.topics
import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from didact import cli
from didact.data import blending, contamination, formats, fuzzy, quality
from didact.types import UserError

# --- blending --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "order"),
    [([0.5, 0.25, 0.25], [0, 1, 2, 0, 0, 1, 2, 0]), ([0.7, 0.3], [0, 1, 0, 0, 1, 0, 0, 1, 0, 0])],
)
def test_the_order_of_a_blend(weights, order):
    assert list(blending.order(weights, len(order))) == order


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=6), st.integers(1, 200))
def test_a_blend_is_never_far_from_its_weights(weights, count):
    result = list(blending.order(weights, count))
    for end in range(1, count + 1):
        for source, weight in enumerate(weights):
            off = result[:end].count(source) - weight / sum(weights) * end
            assert abs(off) < (1 if len(weights) == 2 else len(weights) - 1) + 1e-9


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("nan"), 1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UserError, match="weights"):
        blending.Blend(weights)


# --- near duplicates -------------------------------------------------------------------------


def test_the_probability_of_being_compared():
    assert fuzzy.probability(0.8) == pytest.approx(0.6789, abs=5e-5)
    assert fuzzy.probability(0.5) == pytest.approx(0.00972, abs=5e-6)
    assert fuzzy.probability(0.1**0.1) == pytest.approx(1 - 0.9**10)


def letters(rng, count):
    return "".join(rng.choices(string.ascii_lowercase, k=count))


def pair(rng, share, size=400):
    """Return two texts whose pieces have about this Jaccard similarity, and the exact similarity."""
    same = round(2 * share * size / (1 + share))
    first = letters(rng, same + 4)
    a, b = first + letters(rng, size - same), first + letters(rng, size - same)
    return a, b, fuzzy.similarity(fuzzy.pieces(a), fuzzy.pieces(b))


def test_the_last_piece_counts_and_so_do_short_texts():
    assert fuzzy.pieces("abcdefg") == {"abcde", "bcdef", "cdefg"}
    assert fuzzy.pieces("abcdef") != fuzzy.pieces("abcdex")
    assert fuzzy.pieces("Ab  c") == {"ab c"} and fuzzy.pieces("") == {""}
    a, b = fuzzy.pieces("abcdefgh"), fuzzy.pieces("abcdef")
    assert [fuzzy.similarity(a, b, measure) for measure in ("union", "min", "max")] == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_minhashes_agree_as_often_as_pieces_are_common(share):
    a, b, similarity = pair(random.Random(1), share)
    one, two = (fuzzy.sketch(fuzzy.pieces(t), 1000).hashvalues for t in (a, b))
    assert abs((one == two).mean() - similarity) < 4 * np.sqrt(similarity * (1 - similarity) / 1000)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.9])
def test_planted_pairs_are_compared_as_often_as_the_formula_says_and_joined_only_if_they_are_alike(share):
    rng, count = random.Random(int(100 * share)), 150
    pairs = [pair(rng, share) for _ in range(count)]
    texts = [t for a, b, _ in pairs for t in (a, b)]
    anything, alike = (fuzzy.Groups(texts.__getitem__, similar) for similar in (0.2, 0.8))
    for number, text in enumerate(texts):
        anything.add(number, text)
        alike.add(number, text)
    expected = np.mean([fuzzy.probability(similarity) for *_, similarity in pairs])
    low, high = stats.binom.interval(0.999, count, expected)
    assert low <= len(anything.all()) <= high
    assert all(members == [first, first + 1] for first, members in anything.all().items())
    for first, members in alike.all().items():
        assert members == [first, first + 1] and pairs[first // 2][2] >= 0.8


@given(
    st.lists(st.text("ab ", max_size=14), max_size=9), st.sampled_from([0.5, 0.8]), st.sampled_from(["union", "min"])
)
def test_groups_are_the_components_of_all_pairs_that_are_alike(texts, similar, by):
    """With one hash per band, no pair with a noticeable overlap is missed."""
    groups = fuzzy.Groups(texts.__getitem__, similar, bands=64, rows=1, by=by)
    for number, text in enumerate(texts):
        groups.add(number, text)
    own = [fuzzy.pieces(t) for t in texts]
    joined = {(i, j) for i in range(len(texts)) for j in range(i) if fuzzy.similarity(own[i], own[j], by) >= similar}
    for i, j in joined:
        assert groups.first(i) == groups.first(j)
    for members in groups.all().values():
        reached = {members[0]}
        while frontier := {i for i in members if any((max(i, j), min(i, j)) in joined for j in reached)} - reached:
            reached |= frontier
        assert reached == set(members) and groups.first(members[-1]) == min(members)


# --- test items ------------------------------------------------------------------------------

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen"


def cut(document, items, **how):
    cutter = contamination.Cutter(items, **({"window": 10, "shortest": 1, "sentences": True} | how))
    cutter.count(document)
    return cutter.cut(document)


def test_a_cut_goes_on_to_the_ends_of_sentences():
    document = f"First stays. Then a sentence before {ITEM}, and on it goes after it! Last stays? Yes."
    assert cut(document, [ITEM]) == (["First stays.", " Last stays? Yes."], 1)


def test_what_stands_between_the_words_does_not_move_the_end():
    spread = ITEM.replace(" ", " --  ")
    document = f"Before. {spread}. {'x' * 20}. After."
    assert cut(document, [ITEM], window=0)[0] == ["Before.", f" {'x' * 20}. After."]
    assert cut(document, [ITEM], window=0, sentences=False)[0] == ["Before. ", f" {'x' * 20}. After."]


def test_short_items_are_looked_for_whole():
    short = "one two three four five six seven eight"
    document = f"Before. {short}. After."
    assert cut(document, [short], whole=8, window=0)[0] == ["Before.", " After."]
    assert cut(document, [short], window=0) == ([document], 0)
    assert cut(document, ["three four five"], whole=8, window=0) == ([document], 0)


@given(st.data(), st.integers(0, 10**6))
def test_no_planted_item_remains_and_clean_documents_are_untouched(data, seed):
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(60)]
    items = [" ".join(rng.sample(words, 13)) for _ in range(3)]
    documents = []
    for _ in range(5):
        parts = [
            rng.choice([" ".join(rng.sample(words, 9)) + rng.choice(".!? "), *items]) for _ in range(rng.randint(1, 8))
        ]
        documents.append(data.draw(st.sampled_from([" ", "\n", ", "])).join(parts))
    contaminated = contamination.audit(items, documents, 13)
    cutter = contamination.Cutter(items, window=5, shortest=1, most_pieces=99, sentences=True)
    for document in documents:
        cutter.count(document)
    cleaned = [cutter.cut(document) for document in documents]
    assert not contamination.audit(items, [p for pieces, _ in cleaned for p in pieces], 13).dirty.any()
    for number, (pieces, cuts) in enumerate(cleaned):
        holds = any(gram in " ".join(contamination.words(documents[number])) for gram in items)
        assert (cuts > 0) == holds and (cuts or pieces == [documents[number]])
        assert "".join(pieces) in documents[number] or len(pieces) > 1
    assert contaminated.dirty.any() == any(cuts for _, cuts in cleaned)


# --- quality ---------------------------------------------------------------------------------


def manual():
    """Return passages of Python's manual."""
    out = []
    for topic in pydoc_data.topics.topics.values():
        parts = [p for p in topic.split("\n\n") if len(p) > 80]
        out += ["\n\n".join(parts[i : i + 4]) for i in range(0, len(parts), 4)]
    result = [text for text in out if len(text) > 400]
    random.Random(1).shuffle(result)
    return result


def shuffled(text, rng):
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


@pytest.mark.parametrize(("score", "expected"), [(0, 0.001953), (0.5, 0.026012), (0.9, 0.424098), (1, 1)])
def test_the_probability_of_being_kept(score, expected):
    assert contamination.keep_probability(score) == pytest.approx(expected, abs=5e-7)


def test_the_filter_tells_a_manual_from_its_shuffled_words_on_documents_it_did_not_see():
    rng = random.Random(0)
    texts = manual()[:260]
    result = quality.Classifier(texts[:130], [shuffled(t, rng) for t in texts[130:]])
    assert result.auc > 0.95
    assert quality.Classifier(texts[:60], texts[60:120]).auc < 0.7
    with pytest.raises(UserError, match="4 trusted documents"):
        quality.Classifier(texts[:3], texts)


def test_documents_are_kept_by_their_scores_however_they_come():
    scores = np.random.default_rng(0).random(40_000)
    rng = np.random.default_rng([3, 61])
    parts = np.concatenate([contamination.drawn(part, rng) for part in np.array_split(scores, 7)])
    assert (parts == contamination.quality_filter(scores, 3)).all()
    at = (scores * 10).astype(int)
    saved, expected = (np.bincount(at, w) for w in (parts, contamination.keep_probability(scores)))
    count = np.bincount(at)
    chi = ((saved - expected) ** 2 / (expected * (1 - expected / count))).sum()
    assert stats.chi2.sf(chi, 10) > 1e-3


# --- streaming -------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(
            st.just(""), st.just("   "), st.just("nonsense"), st.text(max_size=5).map(lambda t: json.dumps({"text": t}))
        ),
        max_size=6,
    )
)
def test_streamed_rows_are_the_rows(lines):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("\n".join(['{"text": "first"}', *lines]))
        archive = path.with_suffix(".jsonl.gz")
        archive.write_bytes(gzip.compress(path.read_bytes()))
        plain = [(position, str(row)) for position, row in formats.rows(path)]
        assert [(position, str(row)) for position, row in formats.streamed(path)] == plain
        assert [str(row) for _, row in formats.streamed(archive)] == [row for _, row in plain]


def test_a_row_is_there_before_the_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n\xff\xfe\n')
    rows = formats.streamed(path)
    assert [next(rows)[1]["text"], next(rows)[1]["text"]] == ["one", "two"]
    with pytest.raises(UserError, match=r"a\.jsonl:3: not UTF-8"):
        next(rows)
    (tmp_path / "b.jsonl").write_text('{\n "text": "one"\n}\n')
    assert [row for _, row in formats.streamed(tmp_path / "b.jsonl")] == [{"text": "one"}]


# --- the command -----------------------------------------------------------------------------


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


@pytest.fixture
def corpora(tmp_path):
    """A trusted source, a crawl with junk, repeats and test items, and the items."""
    rng = random.Random(0)
    texts = manual()
    good, crawled = texts[:120], texts[120:200]
    test = [" ".join(t.split()[20:45]) for t in crawled[:10]]
    crawl = [
        *crawled,
        *(shuffled(t, rng) for t in texts[200:300]),
        *(f"{t[:-8]} changed" for t in good[:20]),
        *crawled[10:20],
    ]
    paths = lines(tmp_path / "good.jsonl", good), lines(tmp_path / "crawl.jsonl", crawl)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"prompt": t, "completion": ""}) + "\n" for t in test))
    return *paths, str(tmp_path / "test.jsonl"), good, crawl, test


def prepared(tmp_path, *words):
    assert cli.main(["prepare", *map(str, words), "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    forgotten = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    return rows, forgotten, json.loads((tmp_path / "out" / "prepared.json").read_text())


def test_a_corpus_without_repeats_and_test_items(tmp_path, corpora, capsys):
    good, crawl, test, trusted, raw, items = corpora
    rows, dropped, report = prepared(tmp_path, f"good={good}", f"crawl={crawl}", "--test", test)
    assert not contamination.audit(items, [r["text"] for r in rows], 13).dirty.any()
    duplicates = [g for g in dropped if g["why"] == "duplicate"]
    assert {g["id"].rpartition(":")[2] for g in duplicates} >= {str(201 + i) for i in range(10)}  # the exact ones
    planted = [g for g in duplicates if g["of"].startswith(good) and g["source"] == "crawl"]
    assert len(planted) >= 18 and all(g["similarity"] >= 0.8 for g in planted)  # among 20, J > 0.95
    untouched = [r for r in rows if "#" not in r["id"]]
    whole = {f"{p}:{i}": t for p, texts in ((good, trusted), (crawl, raw)) for i, t in enumerate(texts, 1)}
    assert all(r["text"] == whole[r["id"]] for r in untouched) and len(untouched) > 200
    for name, row in report["sources"].items():
        assert row["read"] == row["duplicate"] + row["contaminated"] + row["cut"] + sum(
            r["source"] == name for r in untouched
        )
        assert row["epochs"] == 1 and row["written"] == sum(r["source"] == name for r in rows)
    stray = tmp_path / "out" / ".didact-tmp-0123abcd-work"  # leftovers of a kill
    stray.mkdir()
    again, *_ = prepared(tmp_path, f"good={good}", f"crawl={crawl}", "--test", test)
    assert again == rows
    assert not [p.name for p in (tmp_path / "out").iterdir() if "tmp" in p.name or "work" in p.name]


def test_junk_is_filtered_by_what_is_trusted(tmp_path, capsys):
    rng, texts = random.Random(0), manual()
    good, crawled, junk = texts[:150], texts[150:190], [shuffled(t, rng) for t in texts[190:350]]
    paths = lines(tmp_path / "good.jsonl", good), lines(tmp_path / "crawl.jsonl", [*crawled, *junk])
    arguments = f"good={paths[0]}", f"crawl={paths[1]}", "--similar", "0", "--alpha", "3"
    rows, dropped, report = prepared(tmp_path, *arguments, "--trusted", "good")
    assert report["sources"]["good"]["low quality"] == 0 and report["quality"]["auc"] > 0.8 and not report["warnings"]
    remaining = {r["text"] for r in rows}
    assert len(remaining & set(junk)) / len(junk) < 0.6 * len(remaining & set(crawled)) / len(crawled)
    assert {g["why"] for g in dropped} == {"low quality"} and all(0 <= g["score"] <= 1 for g in dropped)
    assert sum(b["kept"] for b in report["quality"]["bins"]) == len(remaining & {*junk, *crawled})
    assert "kept by score" in capsys.readouterr().out


def test_sources_are_blended_by_weight_and_repeated_only_for_tokens(tmp_path, capsys):
    a = lines(tmp_path / "a.jsonl", [f"a {i} " + "x " * 48 for i in range(10)])
    b = lines(tmp_path / "b.jsonl", [f"b {i} " + "y " * 48 for i in range(90)])
    arguments = ("prepare", f"a={a}", f"b={b}", "--similar", "0", "--weights", "a=1", "b=3")
    rows, _, report = prepared(tmp_path, *arguments[1:])
    assert [r["source"] for r in rows].count("a") == 10 and len({r["id"] for r in rows}) == len(rows) in (
        40,
        41,
        42,
        43,
    )
    assert not report["warnings"]
    rows, _, report = prepared(tmp_path, *arguments[1:], "--tokens", "10k")
    assert report["sources"]["a"]["taken"] == 2500 and report["sources"]["a"]["epochs"] == 5
    assert [r["source"] for r in rows].count("a") == 50 and {r["id"] for r in rows if r["source"] == "a"} == {
        f"{a}:{i}" for i in range(1, 11)
    }
    assert len(report["warnings"]) == 1 and "a: seen 5.0 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere"], "NAME=FILE"), (["a={a}", "a={a}"], "twice"), (["a={a}", "--trusted", "b"], "no source 'b'"),
     (["a={a}", "--trusted", "a"], "none is left"), (["a={a}", "--weights", "a=x"], "a number"),
     (["a={a}", "b={a}", "--weights", "a=1"], "none for the source 'b'"), (["a=gone.jsonl"], "no such file"),
     (["a={a}", "--similar", "2"], "--similar"), (["a={a}", "--bands", "0"], "--bands"), (["a={bad}"], "bad.jsonl:2"),
     (["a={a}", "--alpha", "0"], "--alpha"), (["a={a}", "--min-words", "99"], "nothing is left")],
)  # fmt: skip
def test_bad_words_are_one_line(words, message, tmp_path, capsys):
    a = lines(tmp_path / "a.jsonl", ["one two three"] * 3)
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": 3}\n')
    command_words = [w.format(a=a, bad=tmp_path / "bad.jsonl") for w in words]
    assert cli.main(["prepare", *command_words, "--out", str(tmp_path / "out")]) == 2
    stderr = capsys.readouterr().err.strip()
    assert message in stderr and "\n" not in stderr and stderr.startswith("didact: ")


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, capsys):
    a = lines(tmp_path / "a.jsonl", ["one two three"])
    assert cli.main(["prepare", f"a={a}", "--out", str(tmp_path)]) == 2
    assert "holds" in capsys.readouterr().err and (tmp_path / "a.jsonl").read_text()
