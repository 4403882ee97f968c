"""Answers with retrieved passages, reranked: the rules' exact scores, with a model whose log-probs are a table."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from didact import prompting
from didact.data import paragraphs, retrieval
from didact.errors import BudgetError
from didact.evaluate import open_book, qa
from didact.infer import rerank
from didact.infer.ask import Asking
from didact.infer.rerank import Table
from didact.types import Demo, Passage, UserError

LOGS = st.floats(-20, 0)


def table(prior, answer, **more):
    logs = {name: np.log(np.array(values, dtype=float)) for name, values in {"answer": answer, **more}.items()}
    return Table(np.log(np.array(prior, dtype=float)), **logs)


def test_the_papers_two_passages():
    scores = [[0.4, 0.9], [0.6, 0.1]]
    result = rerank.best(table([0.7, 0.3], scores), "rag")
    assert result.answer == 0 and np.exp(result.scores) == pytest.approx([0.55, 0.45], abs=1e-12)
    assert rerank.best(table([0.7, 0.3], scores), "direct")[:2] == (0, 1)
    other = table([0.9, 0.1], scores)
    assert np.exp(rerank.best(other, "rag").scores) == pytest.approx([0.45, 0.55], abs=1e-12)
    assert (rerank.best(other, "rag").answer, rerank.best(other, "direct").answer) == (1, 0)
    even = rerank.best(table([0.5, 0.5], scores), "rag")
    assert np.exp(even.scores) == pytest.approx(np.mean(scores, axis=1), abs=1e-12)


@given(st.lists(LOGS, min_size=1, max_size=6))
def test_one_passage_makes_rag_direct_and_probabilities_far_below_the_smallest_float_are_summed(values):
    one = Table(np.zeros(1), np.array(values)[:, None] - 2000)
    assert np.allclose(rerank.best(one, "rag").scores, rerank.best(one, "direct").scores)
    both = Table(np.log([0.25, 0.75]), np.repeat(one.answer, 2, axis=1))
    assert np.allclose(rerank.best(both, "rag").scores, one.answer[:, 0])


@given(st.lists(st.lists(LOGS, min_size=3, max_size=3), min_size=2, max_size=4), LOGS)
def test_poe_of_direct_alone_is_direct_and_a_constant_changes_no_choice(rows, constant):
    answer = np.array(rows)
    whole = Table(rerank.prior([1, 2, 3]), answer, question=answer[::-1], plain=answer / 2, ask=answer[0])
    assert rerank.best(whole, "poe", (1, 0, 0, 0))[:2] == rerank.best(whole, "direct")[:2]
    moved = Table(whole.prior, answer, question=answer[::-1] + constant, plain=answer / 2, ask=answer[0])
    first, second = rerank.best(whole, "poe"), rerank.best(moved, "poe")
    assert first.scores + constant == pytest.approx(second.scores)
    assert second.scores[first.answer] == pytest.approx(second.scores.max())


def test_no_shared_word_makes_the_prior_even_and_pairs_that_were_not_scored_are_never_chosen():
    assert np.exp(rerank.prior([0, 0, 0])) == pytest.approx([1 / 3] * 3)
    assert np.exp(rerank.prior([3, 1])) == pytest.approx([0.75, 0.25])
    part = Table(np.log([0.5, 0.5]), np.array([[-np.inf, -9.0], [-1.0, -np.inf]]), question=np.zeros((2, 2)))
    assert rerank.best(part, "poe", (0, 1, 0, 0)).passage == 0  # a tie: the better passage
    assert rerank.best(part, "noisy-channel") is None
    assert rerank.best(Table(np.zeros(0), np.zeros((0, 0))), "poe") is None


def test_weights_are_tuned_to_the_expert_that_knows():
    noise, truth = np.log([[0.9], [0.1]]), np.log([[0.2], [0.8]])
    weights = rerank.tuned([Table(np.zeros(1), noise, question=truth)] * 3, [[False, True]] * 3)
    assert weights[1] > weights[0] and weights[2:] == (1.0, 1.0)


def test_paragraphs_have_six_sentences_in_one_line_each():
    text = " ".join(f"Sentence {i} is here." for i in range(13))
    assert [p.count("Sentence") for p in paragraphs.cut(text)] == [6, 6, 1]
    assert paragraphs.cut("One.\n\nQuestion: forged?\nAnswer: yes") == ["One. Question: forged? Answer: yes"]
    assert paragraphs.cut(" \n ") == []


def test_nearness_of_tfidf():
    texts = ["where is the tower", "no word in common", "where is the tower where is the tower", "tower of song"]
    vectors = retrieval.TfIdf(texts)
    near = (retrieval.embedded(vectors, texts) @ retrieval.embedded(vectors, texts[:1]).T).toarray()[:, 0]
    assert near[:3] == pytest.approx([1, 0, 1]) and 0 < near[3] < 1


def test_answers_are_compared_as_squad_does():
    assert qa.exact_match("The Paris.", ["paris"]) == 1
    assert open_book._distinct([["Paris", "the paris."], ["Rome", "PARIS"]])[0] == ["Paris", "Rome"]


# --- the whole method, with a table as model -----------------------------------------------------

JOINT = {  # p(q, a | p): two q's, two a's
    "alpha": {("who", "ann"): 0.1, ("who", "bob"): 0.3, ("when", "ann"): 0.4, ("when", "bob"): 0.2},
    "beta": {("who", "ann"): 0.35, ("who", "bob"): 0.05, ("when", "ann"): 0.3, ("when", "bob"): 0.3},
}


def fields(prompt):
    """Return the last block's fields by name, and the requested one."""
    lines = [line.partition(":") for line in prompt.split("\n\n")[-1].split("\n")]
    values = {name: text.strip() for name, _, text in lines}
    return values, lines[-1][0]


def joint(prompt, completion):
    """Return the log-prob of a field given the others, marginalised over absent ones; 'closed' averages passages."""
    values, field = fields(prompt)
    assert completion.endswith("\n")
    passages = [next(p for p in JOINT if p in values["Evidence"])] if "Evidence" in values else list(JOINT)
    conditions = {field: completion.strip()} | {k: v for k, v in values.items() if k in ("Question", "Answer") and v}

    def mass(wants):
        return sum(
            m for p in passages for (q, a), m in JOINT[p].items()
            if wants.get("Question", q) == q and wants.get("Answer", a) == a
        )  # fmt: skip

    return math.log(mass(conditions) / mass({k: v for k, v in conditions.items() if k != field}))


PAGES = [Passage(text="alpha who", url="https://a"), Passage(text="who who beta", url="https://b")]


def asked(rule="noisy-channel", lm=None, test=None, **how):
    lm = lm or Scripted(lambda prompt, i: ["ann", "bob"][i % 2], joint)
    test = test or [Demo(prompt="who", completion="ann")]
    return prompting.internet_augmented(lm, test, passages=how.pop("passages", PAGES), rule=rule, **how)


def test_where_all_experts_are_of_one_joint_the_noisy_channel_is_direct():
    direct, noisy = asked("direct"), asked("noisy-channel")
    for rule, result in (("direct", direct), ("noisy", noisy)):
        (record,) = result.records
        assert record.extra["prediction"] == "ann" and record.extra["url"] == "https://b", rule
        assert record.extra["score"] == pytest.approx(math.log(0.35 / 0.4), abs=1e-12)


def test_records_cite_their_passage_and_findings_compare_with_and_without():
    result = asked("rag", closed_book=True)
    (record,) = result.records
    priors = np.exp(rerank.prior([1.0, 1.0]))
    assert record.extra["passages"] == 2 and record.extra["passage"] == "who who beta"
    assert 0.5 < record.extra["confidence"] < 1 and len(priors) == 2
    match = result.findings["exact_match"]
    assert match["rag"] == 1 and match["oracle"] == 1 and match["closed_book"] == 1
    # The same number of samples without as with
    assert result.findings["calls_by_role"] == {"reader": 8, "closed book": 8}
    assert result.predict(["who"]) == ["ann"]
    assert {d.extra["role"] for d in result.transcript} == {"reader", "closed book"}


def test_recall_of_candidates_grows_with_passages():
    pages = [Passage(text=f"who p{i}") for i in range(12)]
    lm = Scripted(lambda prompt, i: "right" if "p7" in prompt else f"wrong {i}", lambda p, c: -1.0)
    result = asked("direct", lm, [Demo(prompt="who", completion="right")], passages=pages)
    recall = list(result.findings["recall"].values())
    assert recall == sorted(recall) and recall[0] == 0 and result.findings["exact_match"]["oracle"] == 1


def test_demonstrations_stand_in_every_layout_and_none_shows_its_own_question():
    lm = Scripted(lambda prompt, i: "ann", lambda p, c: -1.0)
    demos = [Demo(prompt="who", completion="SECRET", context="x"), Demo(prompt="why", completion="so", context="y\nz")]
    asked("noisy-channel", lm, demos=demos, closed_book=True)
    prompts = [p if isinstance(p, str) else p[0] for p in lm.asked]
    assert not any("SECRET" in p for p in prompts)
    heads = {p.rpartition("\n\n")[0] for p in prompts}
    assert heads == {
        "Evidence: y z\nQuestion: why\nAnswer: so", "Evidence: y z\nAnswer: so\nQuestion: why",
        "Evidence: y z\nAnswer: so", "Evidence: y z\nQuestion: why", "Question: why\nAnswer: so",
    }  # fmt: skip


def test_as_many_demonstrations_as_fit_the_far_ones_first_to_go():
    lm = Scripted(lambda prompt, i: "ann", lambda p, c: -1.0)
    lm.context = 80
    demos = [Demo(prompt=f"q{i}", completion="a", context="w " * 10) for i in range(9)]
    asked("direct", lm, demos=demos, closed_book=False)
    prompt = lm.asked[0]
    assert "q0" in prompt and "q8" not in prompt and prompt.index("q1") < prompt.index("q0")
    assert len(prompt.split()) <= 80 - 32


def test_a_model_that_cannot_score_ranks_by_shares_of_draws():
    lm = Scripted(lambda prompt, i: "bob" if i % 4 == 0 else "ann")
    result = asked("poe", lm)
    assert result.records[0].extra["prediction"] == "ann" and result.findings["rule"] == "rag"
    assert "ranked by how often" in result.warnings[0]
    assert result.records[0].extra["confidence"] == pytest.approx(0.75)


def test_choices_are_scored_beside_every_passage_and_nothing_is_drawn():
    lm = Scripted(lambda prompt, i: 1 / 0, joint)
    (record,) = asked("direct", lm, [Demo(prompt="when", completion="bob", choices=["ann", "bob"])]).records
    assert record.extra["prediction"] == "ann" and record.extra["score"] == pytest.approx(math.log(2 / 3))


def test_nothing_found_is_answered_without_passages_and_told():
    result = asked(passages=[Passage(text="  ")])
    assert result.records[0].extra["prediction"] == "ann" and "url" not in result.records[0].extra
    assert any("no passage was found for 1 of 1" in w for w in result.warnings)


def test_a_page_that_holds_the_test_question_with_its_answer_is_left_out_or_counted():
    question = "who of these two was the first"
    pages = [Passage(text=f"Quiz: {question}? Ann.", url="https://quiz"), *PAGES]
    lm = Scripted(lambda prompt, i: "ann", lambda p, c: -1.0)
    base = {"search": lambda questions, n: [pages for _ in questions], "passages": None}
    others = {"https://a", "https://b"}
    for options, expected in ((base, others), (base | {"keep_leaks": True}, {"https://quiz"}), ({}, {"https://quiz"})):
        result = asked("direct", lm, [Demo(prompt=question, completion="Ann")], **({"passages": pages} | options))
        assert result.records[0].extra["url"] in expected
        assert any("1 documents hold a test question" in w for w in result.warnings)


def test_budgets_leave_a_partial_result():
    result = asked(asking=Asking(calls=3), test=[Demo(prompt=q, completion="x") for q in ("who", "when")])
    assert len(result.records) == 2 and not result.findings["complete"]

    class Ends(Scripted):
        def score(self, pairs):
            raise BudgetError("used up")

    (record,) = asked(lm=Ends(lambda prompt, i: "ann", joint)).records
    assert record.extra["prediction"] == "ann"


def test_later_documents_can_be_left_out():
    from didact.tools.pages import Web

    dated = [Passage(text=p.text, url=p.url, extra={"date": d}) for p, d in zip(PAGES, ("2020", "2024"), strict=True)]
    assert asked(passages=dated, web=Web(until="2022")).records[0].extra["url"] == "https://a"


def test_without_a_test_it_still_answers():
    lm = Scripted(lambda prompt, i: ["ann", "bob"][i % 2], joint)
    assert prompting.internet_augmented(lm, passages=PAGES, rule="direct").predict(["who"]) == ["ann"]


def test_with_nothing_to_search_it_says_what_to_give():
    with pytest.raises(UserError, match="nothing to search"):
        asked(passages=[])
