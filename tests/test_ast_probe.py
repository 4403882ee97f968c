"""Trees to lists and back, the subspace probe, and the study on programs of a world, of Python and of a user."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import f64, tiny, tokenizer_of

from didact.claims.mechanisms import ast_probe_real
from didact.data import parsing, trees
from didact.data.trees import EMPTY, Code, Leaf, Node
from didact.evaluate import probes, syntax, syntax_scores, syntax_study
from didact.methods.mechanisms.ast_probe import ast_probe
from didact.models.modules import load_module
from didact.models.subspace import Subspace
from didact.types import Text, UserError
from didact.worlds import code

# The paper's example, the else-block of figure 2: `selected = element break`.
PAPER = ["block", ["expression_statement", ["assignment", "selected", "=", "element"]], ["break_statement", "break"]]
QUICK = probes.Training(lr=1e-2, epochs=2)


def test_the_papers_example() -> None:
    tree = trees.of_lists(PAPER, "selected = element break")
    result = trees.encode(tree)
    assert result.d == (2, 1, 3)
    assert result.c == ("expression_statement<sep>assignment", EMPTY, "block")
    assert result.u == (EMPTY, EMPTY, EMPTY, "break_statement")
    gold = trees.constituents(result)
    assert set(gold) == {
        ("block", 0, 3),
        ("expression_statement", 0, 2),
        ("assignment", 0, 2),
        ("break_statement", 3, 3),
    }
    predicted = [*gold[:2], trees.Constituent("augmented_assignment", 0, 2)]
    scores = trees.score(predicted, gold)
    assert scores == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert trees.score([gold[0]] * 3, gold).recall == 1 / 4
    assert trees.score([gold[0]] * 3, gold, official=True).recall == 3 / 4


def nodes(most: int = 4) -> Any:
    """Trees as nested lists, whose tokens are all `x`."""
    label = st.sampled_from("ABC")

    def grow(child: Any) -> Any:
        return st.builds(lambda name, parts: [name, *parts], label, st.lists(child, min_size=1, max_size=most))

    return st.builds(lambda name, part: [name, part], label, st.recursive(st.just("x"), grow, max_leaves=14))


def direct(tree: Node | Leaf, at: int = 0) -> tuple[list[Any], int]:
    """Return the constituents of a tree, unmodified, and its number of leaves."""
    if isinstance(tree, Leaf):
        return [], 1
    out, n = [], 0
    for child in tree.children:
        inner, wide = direct(child, at + n)
        out += inner
        n += wide
    return [(tree.label, at, at + n - 1), *out], n


@given(nodes(), st.sampled_from([lambda d: 3 * d - 7, lambda d: d**3, lambda d: np.exp(d / 5)]))
def test_the_way_there_and_back_is_the_identity_whatever_heights_are(nested: Any, rising: Any) -> None:
    text = "x " * str(nested).count("'x'")
    tree = trees.of_lists(nested, text)
    result, n = trees.encode(tree), len(trees.leaves(tree))
    assert len(result.d) == len(result.c) == n - 1 and len(result.u) == n
    assert trees.to_lists(tree, text) == nested
    gold = sorted(direct(tree)[0])
    rescaled = Code(tuple(rising(np.array(result.d, dtype=float))), result.c, result.u)
    for code_ in (result, rescaled):
        assert sorted(trees.constituents(code_)) == gold
        assert trees.decode(code_, trees.leaves(tree)) == tree


@given(st.lists(st.floats(-5, 5), min_size=0, max_size=12), st.data())
def test_any_numbers_and_labels_make_a_tree(d: list[float], data: Any) -> None:
    label = st.sampled_from([EMPTY, "A", "A<sep>B"])
    result = Code(tuple(d), *(tuple(data.draw(st.lists(label, min_size=n, max_size=n))) for n in (len(d), len(d) + 1)))
    tree = trees.decode(result)
    assert trees.leaves(tree) == [Leaf(i, i + 1) for i in range(len(d) + 1)]
    assert sorted(direct(tree)[0]) == sorted(trees.constituents(result) or [(trees.BAD_ROOT, 0, len(d))])


def test_the_rank_loss() -> None:
    d, mask = f64([3, 1, 2, 1]), torch.ones(1, 4, dtype=torch.bool)
    d = d.reshape(1, 4)
    assert syntax.height_loss(10 * d, d, mask) == 0
    assert float(syntax.height_loss(0 * d, d, mask)) == pytest.approx(1.0)
    assert float(syntax.height_loss(-d, d, mask)) > 2
    assert float(syntax.height_loss(d + 1, d, mask, "l1")) == float(syntax.height_loss(d - 1, d, mask, "l2")) == 1
    # Padding changes nothing, and ties add no loss.
    wide = torch.cat([10 * d, f64([99.0, -99.0]).reshape(1, 2)], 1), torch.cat([d, f64([0.0, 5.0]).reshape(1, 2)], 1)
    assert syntax.height_loss(*wide, torch.tensor([[True] * 4 + [False] * 2])) == 0
    assert syntax.height_loss(f64([9.0, -9.0]).reshape(1, 2), f64([1.0, 1.0]).reshape(1, 2), mask[:, :2]) == 0


def test_what_is_learnt_is_the_subspace_not_its_basis() -> None:
    torch.manual_seed(0)
    probe = Subspace(12, 5, 3, 4).double()
    states = torch.randn(2, 7, 12, dtype=torch.float64)
    d, c, u = probe(states)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    other = Subspace(12, 5, 3, 4).double()
    with torch.no_grad():
        other.p.copy_(probe.p @ turn)
        other.c.copy_(turn.T @ probe.c)
        other.u.copy_(turn.T @ probe.u)
    for ours, theirs in zip((d, c, u), other(states), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(syntax.orthogonality(probe), syntax.orthogonality(other))
    assert syntax_scores.angle(probe, other) == pytest.approx(0.0, abs=1e-4)
    # A whole orthonormal basis keeps distances.
    whole = Subspace(12, 12, 3, 4).double()
    with torch.no_grad():
        whole.p.copy_(torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0])
    torch.testing.assert_close(whole(states)[0], (states[:, 1:] - states[:, :-1]).square().sum(-1))
    assert syntax.orthogonality(whole).item() == pytest.approx(0.0, abs=1e-12)


def test_trees_that_are_in_the_vectors_are_read_off() -> None:
    """On vectors whose differences have the right length and direction; an alignment off by one finds nothing."""
    programs = code.Code(phrases=2).programs(0, 110)
    codes = [trees.encode(trees.of_lists(p.extra["tree"], p.text)) for p in programs]
    labels = syntax.Labels.of(codes)
    corpus = syntax.Corpus(codes, labels)
    vectors = []
    for one in codes:
        steps = torch.zeros(len(one.u), len(labels.c) + len(labels.u))
        for i, (height, label) in enumerate(zip(one.d, one.c, strict=True), 1):
            steps[i, labels.c.index(label)] = 2 * height**0.5
        walk = steps.cumsum(0)
        for i, label in enumerate(one.u):
            walk[i, len(labels.c) + labels.u.index(label)] = 0.5
        vectors.append(walk)
    flat = torch.cat(vectors)
    parts = probes.split(range(110), 0.2, 0.15)
    gold = [codes[i] for i in parts.test.tolist()]
    config, rank = probes.Training(lr=3e-2, epochs=10, rows=8), flat.shape[1]
    results = []
    for read in (flat.__getitem__, flat.roll(1, 0).__getitem__):
        probe = syntax.train(read, {"x": (corpus, rank)}, parts, config)["x"]
        predicted = syntax.predict(probe, corpus, read, parts.test)
        results.append(np.mean([s.f1 for s in syntax_scores.scores(predicted, gold)]))
        accuracy = syntax_scores.parts_right(predicted, gold)
        assert set(accuracy) == {"labels", "leaf_labels", "pairs_ranked"}
    assert results[0] > 0.7 and results[1] < results[0] - 0.3


PROGRAM = '''\
def f(a, *, b="x y"):
    """Says nothing."""
    # nor this
    return (a + b)[0]  # é
'''


def test_python_without_remarks_and_with_strings_whole() -> None:
    result = parsing.parse(PROGRAM, "python")
    assert result is not None
    text, tree = result
    assert text == 'def f(a, *, b="x y"):\n    return (a + b)[0]'
    tokens = [text[leaf.start : leaf.end] for leaf in trees.leaves(tree)]
    assert " ".join(tokens) == 'def f ( a , * , b = "x y" ) : return ( a + b ) [ 0 ]'
    assert parsing.parse("def f(:", "python") is None
    accented = parsing.parse("é = 'ü'\nz = é", "python")
    assert accented and [accented[0][a:b] for a, b in trees.leaves(accented[1])] == ["é", "=", "'ü'", "z", "=", "é"]


FOREIGN = {
    "javascript": (
        "// adds\nfunction add(a, b) {\n  return/* both */a + `${b} c`; /* done */\n}\n",
        "function add ( a , b ) { return a + `${b} c` ; }",
        ("program", "function_declaration", "formal_parameters", "statement_block", "return_statement"),
    ),
    "go": (
        'func add(a, b int) int {\n\tx := a /* over\n lines */\n\treturn x + len("b c") // done\n}\n',
        'func add ( a , b int ) int { x := a return x + len ( "b c" ) }',
        ("source_file", "function_declaration", "parameter_list", "block", "return_statement"),
    ),
}


@pytest.mark.parametrize("language", list(FOREIGN))
def test_other_languages(language: str, tmp_path: Path) -> None:
    program, tokens, labels = FOREIGN[language]
    built = parsing.parse(program, language)
    assert built is not None and "done" not in built[0]
    text, tree = built
    assert " ".join(text[leaf.start : leaf.end] for leaf in trees.leaves(tree)) == tokens
    assert set(labels) <= {node.label for node in nodes(tree)}
    assert parsing.parse(program[:-3], language) is None
    assert [built] == [parsing.parse(text, language)]
    (tmp_path / f"one{parsing.SUFFIXES[language]}").write_text(program + program.replace("add", "sum"))
    actual = list(parsing.functions(tmp_path, language))
    assert [t.text.split("(")[0].split()[-1] for t in actual] == ["add", "sum"]
    result = ast_probe(
        tiny("llama"), [Text(text=program.replace("add", f"f{n}")) for n in range(12)], language=language, rank=8,
        layers=(1,), probe=QUICK,
    )  # fmt: skip
    assert result.findings["snippets"]["used"] == 12 and 0 <= result.metrics["f1"].after <= 1


def nodes(tree: Any) -> Iterator[trees.Node]:
    """Yield the nodes of a tree, from the root down."""
    if isinstance(tree, trees.Node):
        yield tree
        for child in tree.children:
            yield from nodes(child)


def test_a_grammar_of_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for language, has in (("olden", {"language": lambda: 0}), ("empty", {})):
        monkeypatch.setitem(sys.modules, f"tree_sitter_{language}", types.SimpleNamespace(**has))  # type: ignore[arg-type]  # stands for a module
        with pytest.raises(UserError, match=f"language {language}: tree-sitter cannot use its grammar") as error:
            parsing.parser(language)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bytes", "always", "unigram", "wordpiece"])
def test_leaves_are_read_from_their_own_sub_tokens(kind: str) -> None:
    text = "Where was (Mira) born?"
    tree = trees.of_lists(["s", "Where", "was", ["b", "(", "Mira", ")"], "born", "?"], text)
    tokenizer = tokenizer_of(kind)
    result = syntax.snippet(tokenizer, text, tree)
    for (start, end), unit in zip(result.leaves, result.units, strict=True):
        leaf_text = (
            "".join(tokenizer.convert_ids_to_tokens([result.ids[i] for i in unit])).strip("Ġ▁").replace("##", "")
        )
        assert (
            leaf_text == "<unk>"
            or leaf_text.lower() == text[start:end].lower()
            or (kind, leaf_text) == ("always", "born?")
        )
    read = [i for unit in result.units for i in unit]
    assert sorted(set(read)) == (read if kind != "always" else read[:-1])  # `born?` is one token
    first = syntax.snippet(tokenizer, text, tree, "first").units
    assert [unit[:1] for unit in result.units] == list(first)


def test_functions_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    def g(self):\n        return 1\n\ndef h():\n    pass\n")
    (tmp_path / "site-packages" / "b.py").write_text("def no(): pass\n")
    result = list(parsing.functions(tmp_path, "python"))
    assert sorted(t.text for t in result) == ["def g(self):\n    return 1", "def h():\n    pass"]
    with pytest.raises(UserError, match=r"no functions in go sources|needs tree-sitter"):
        next(parsing.functions(tmp_path, "go"))
    texts = [Text(text="x = ("), *(Text(text=f"x = {n}") for n in range(9))]
    first = syntax.read(tiny("llama"), texts, "python", 99, 4)  # the valid ones
    assert [s.text for s in first[0]] == ["x = 0", "x = 1", "x = 2", "x = 3"] and first[1] == {"do not parse": 1}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_on_a_users_model_and_programs(arch: str, tmp_path: Path) -> None:
    model = tiny(arch)
    texts = [*code.Code(phrases=2).programs(1, 40), Text(text="def f(a): return a"), Text(text="def f(a:")]
    result = ast_probe(model, texts, rank=8, ranks=(2, 64), probe=QUICK)
    findings = result.findings
    assert findings["snippets"]["used"] == 41 and findings["snippets"]["do not parse"] == 1
    assert set(findings["layers"]) == {"trained", "untrained blocks", "control task"}
    assert set(findings["layers"]["trained"]) == {0, 1, 2} and set(findings["layers"]["untrained blocks"]) == {1, 2}
    assert {"gain_over_untrained", "gain_over_layer_0", "selectivity"} <= set(findings["best"]) and set(
        findings["ranks"]
    ) == {2, 8, 64}
    assert [f.title for f in result.figures][:2] == [
        "Syntax trees read off hidden states",
        "How many dimensions syntax takes",
    ]
    result.save(tmp_path / "out")
    again = load_module(tmp_path / "out" / "model").module
    assert isinstance(again, Subspace) and again.p.shape == (32, 8)
    assert torch.equal(again.p, result.models["subspace"].module.p)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("record", "options", "reason"), [
    (Text(text="a b", extra={"tree": ["s", "a", "c"]}), {}, "record 1: field 'tree': token 'c' does not follow"),
    (Text(text="a b c", extra={"tree": ["s", "a", "b"]}), {}, "record 1: field 'tree': spans"),
    (Text(text="a b", extra={"tree": ["s", ["t"], "b"]}), {}, r"record 1: field 'tree': must be \[label"),
    (Text(text="a b", extra={"tree": 3}), {}, "record 1: field 'tree': must be"),
    (Text(text="def f(:"), {}, "0 texts with a python tree are left.*1 do not parse"),
    (Text(text="x = 1"), {"language": "cobol"}, "language cobol: needs tree-sitter and its grammar: pip install"),
    (Text(text="x = 1"), {"longest": 2}, "1 too long"),
])  # fmt: skip
def test_what_cannot_be_probed_is_one_line(record: Text, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        ast_probe(tiny("llama"), [record], **options)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_cannot_say_where_tokens_stand() -> None:
    model = tiny("llama")
    model.processor = type("Slow", (), {"is_fast": False})()
    with pytest.raises(UserError, match="a fast tokenizer"):
        syntax.read(model, [Text(text="x = 1")], "python", 99, 9)


def test_controls_are_a_function_of_the_word() -> None:
    programs = code.Code(phrases=2).programs(2, 30)
    codes = [trees.encode(trees.of_lists(p.extra["tree"], p.text)) for p in programs]
    words = [p.text.split() for p in programs]
    result = trees.control(codes, words, 0)
    recorded: dict[str, set[Any]] = {}
    for row, one in zip(words, result, strict=True):
        assert len(one.d) == len(row) - 1
        for i, word in enumerate(row[1:]):
            recorded.setdefault(word, set()).add((one.d[i], one.c[i], one.u[i + 1]))
    assert (
        all(len(controls) == 1 for controls in recorded.values())
        and len({min(controls) for controls in recorded.values()}) > 3
    )


def test_the_control_is_the_mean_of_draws() -> None:
    result = syntax.Snippet("a b c", (1, 2, 3), (Leaf(0, 1), Leaf(2, 3), Leaf(4, 5)), ((0,), (1,), (2,)), trees.encode(
        Node("s", (Leaf(0, 1), Node("t", (Leaf(2, 3), Leaf(4, 5)))))))  # fmt: skip
    study = syntax_study.Study([result] * 3, probes.split(range(3), 0.3, 0.3), 4, probes.Training())
    samples = [corpus.codes[0] for corpus, rank in study.controls.values() if rank == 4]
    assert len(samples) == syntax_study.CONTROLS and len(set(samples)) > 1
    each = [
        syntax_study.Reading(Subspace(2, 1, 1, 1), 0.0, [], {"f1": np.array(f1)}) for f1 in ([0.2, 1.0], [0.4, 0.0])
    ]
    assert syntax_study.mean(each).test["f1"].tolist() == pytest.approx([0.3, 0.5])


def test_a_world_never_gives_one_program_twice() -> None:
    result = code.Code().programs(0, 200)
    assert len({t.text for t in result}) == 200 and code.Code().programs(0, 5) == result[:5]
    for text in result[:20]:  # a keyword predicts what follows it
        tree = text.extra["tree"]
        assert " ".join(code.tokens(tree)) == text.text
        assert all(len(phrase) == 2 + len(code.SLOTS[phrase[0]]) for phrase in tree[1:])


def test_trigrams_back_off_to_what_they_have_counted() -> None:
    rows = [(0, 1), (0, 1)]
    alone = (2 + 0.5) / 3  # for token 1, after nothing known: two of two, and one kind beside an unknown one
    assert ast_probe_real.trigrams(rows, [(0, 1)]) == pytest.approx(-np.log((2 + alone) / 3))
    assert ast_probe_real.trigrams(rows, [(7, 1)]) == pytest.approx(-np.log(alone))
    assert ast_probe_real.trigrams(rows, [(7, 8)]) == pytest.approx(-np.log(1 - alone))
