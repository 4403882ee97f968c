"""Which texts to label: known answers of the votes, a labelling loop that is stopped and resumed, and the prompts."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from didact import cli, prompting
from didact.claims.prompting.vote_k import Reader
from didact.data import annotation, retrieval
from didact.errors import BudgetError
from didact.types import Demo, Text, UserError
from didact.worlds.mixture import Mixture


def points(n, seed=0, d=8, clusters=6):
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(clusters, d))
    return retrieval.unit(centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, d)))


def published(vectors, k, budget, rho):
    """The paper's algorithm: recount the votes for every pick."""
    n = len(vectors)
    near = [[u for u in np.argsort(-(vectors @ vectors[v]), kind="stable") if u != v][:k] for v in range(n)]
    selected = []
    while len(selected) < budget:
        score = {u: 0.0 for u in range(n) if u not in selected}
        for v in set(range(n)) - set(selected):
            for u in near[v]:
                if u in score:
                    score[u] += rho ** -sum(x in near[v] for x in selected)
        top = max(score.values())
        selected.append(next(u for u in score if score[u] >= top - 1e-9))
    return selected


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1.0, 2.0, 10.0]))
def test_votes_kept_up_to_date_choose_what_votes_counted_anew_choose(seed, k, rho):
    vectors = points(40, seed)
    assert annotation.voted(annotation.neighbours(vectors, k), 12, rho) == published(vectors, k, 12, rho)


def test_votes_add_up_and_a_pick_divides_those_of_its_voters():
    graph = annotation.neighbours(points(60), 5)
    votes = annotation.Votes(graph, 10.0)
    assert votes.scores.sum() == 60 * 5
    first = votes.best()
    assert first == int(np.argmax(np.bincount(graph.ravel(), minlength=60)))  # the most neighbours
    votes.take(first)
    voters = (graph == first).any(1)
    voters[first] = False
    assert np.allclose(votes.weight[voters], 0.1) and (votes.weight[~voters] == 1).all()
    expected = np.zeros(60)
    for v in range(60):
        if v != first:
            expected[graph[v]] += votes.weight[v]
    assert np.allclose(votes.scores[:60], expected)


def test_two_far_clusters_take_turns_and_names_do_not_matter():
    rng = np.random.default_rng(1)
    centres = np.repeat([[5, 0], [-5, 0]], 20, axis=0)
    pool = retrieval.unit(centres + rng.normal(size=(40, 2)))
    picks = annotation.voted(annotation.neighbours(pool, 6), 2)
    assert {p // 20 for p in picks} == {0, 1}
    vectors, order = points(50, 3), np.random.default_rng(2).permutation(50)
    picks = annotation.voted(annotation.neighbours(vectors, 7), 1)
    again = annotation.voted(annotation.neighbours(vectors[order], 7), 1)
    degree = np.bincount(annotation.neighbours(vectors, 7).ravel(), minlength=50)
    assert degree[order[again[0]]] == degree[picks[0]] == degree.max()


def test_a_text_without_voters_can_be_taken_and_more_than_there_are_are_all():
    graph = np.array([[1], [0], [0], [0]], np.int32)
    assert annotation.voted(graph, 9) == [0, 1, 2, 3]
    assert annotation.voted(annotation.neighbours(points(1)), 3) == [0]
    twins = retrieval.unit(np.ones((5, 3)))
    assert (annotation.neighbours(twins, 2) != np.arange(5)[:, None]).all()  # no text is its own neighbour


def test_a_bucket_gives_one_and_the_most_confident_tenth_none():
    graph, confidence = annotation.neighbours(points(100), 5), np.random.default_rng(4).normal(size=100)
    first = annotation.voted(graph, 2)
    chosen = annotation.voted_in_buckets(graph, first, confidence, 20)
    assert chosen[:2] == first and len(set(chosen)) == 20
    order = [i for i in np.argsort(confidence, kind="stable") if i not in first] + first
    size = int(0.9 * 100 / 18)
    assert [order.index(i) // size for i in chosen[2:]] == list(range(18))
    everything = annotation.voted_in_buckets(graph, first, confidence, 100)
    assert sorted(everything) == list(range(100))  # empty buckets: the rest at random


def test_facility_location_starts_at_the_medoid_and_is_greedy():
    vectors = points(40, 5)
    near = vectors @ vectors.T
    chosen = annotation.covering(vectors, 6)
    assert chosen[0] == int(np.argmax((1 + near).sum(1)))
    best = np.full(40, -1.0)
    for item in chosen:
        gains = (near - best).clip(0).sum(1)
        assert gains[item] == pytest.approx(gains.max())
        best = np.maximum(best, near[item])
    selected = annotation.diverse(vectors, 4, 0)
    assert len(set(selected)) == 4 and near[selected[0], selected[1]] == pytest.approx(near[selected[0]].min())


# --- the loop --------------------------------------------------------------------------------


def world():
    return Mixture(seed=1).draw(60, 12)


def bare(pool):
    return [Text(text=t.text) for t in pool]


@pytest.mark.parametrize("select", ["votek", "fast_votek", "least_confidence", "mfl"])
def test_labelling_stops_and_goes_on_to_what_a_pool_that_labels_itself_gives(select):
    pool, test = world()
    options = {"budget": 12, "select": select, "first": 4, "shots": 3, "choices": ("red", "blue", "green")}
    whole = prompting.vote_k(Reader(), pool, test=test, **options)
    truth, labels, rounds = {t.text: t.extra["completion"] for t in pool}, [], 0
    while True:
        actual = prompting.vote_k(Reader(), bare(pool), labels, test, **options)
        waiting = [r for r in actual.records if not r.completion]
        if not waiting:
            break
        assert not actual.findings["complete"] and "to be labelled" in "".join(actual.warnings)
        half = waiting[: max(1, len(waiting) // 2)]  # a person stops in the middle of a batch
        labels += [Demo(prompt=r.prompt, completion=truth[r.prompt], choices=r.choices) for r in half]
        rounds += 1
    assert rounds > 1 and actual.findings["complete"] and whole.findings["complete"]
    assert actual.findings["selected"] == whole.findings["selected"]
    questions = [d.prompt for d in test]
    assert actual.predict(questions) == whole.predict(questions)


def test_a_label_of_another_pool_or_two_for_one_text_is_told():
    pool, _ = world()
    with pytest.raises(UserError, match=r"labels: record 1 labels a text outside the pool"):
        prompting.vote_k(Reader(), bare(pool), [Demo(prompt="strange", completion="red")])
    twice = [Demo(prompt=pool[0].text, completion=c) for c in ("red", "blue")]
    with pytest.raises(UserError, match=r"record 2 has another label"):
        prompting.vote_k(Reader(), bare(pool), twice)


def test_the_most_similar_stands_last_none_is_the_question_and_the_budget_of_tokens_holds():
    pool = [Text(text=t, extra={"completion": "x"}) for t in ("a b c d", "a b z z", "a q q q", "a b c")]
    recorded = []
    lm = Scripted(logp=lambda p, c: (recorded.append(p), -1.0)[1], write=lambda p, i: "x")
    prompting.vote_k(lm, pool, test=[Demo(prompt="a b c", completion="x")], budget=4, select="fast_votek")
    assert lm.asked == ["a q q q x\n\na b z z x\n\na b c d x\n\na b c"]
    lm = Scripted(write=lambda p, i: "x")
    prompting.vote_k(lm, pool, test=[Demo(prompt="a b c", completion="x")], budget=4, select="fast_votek", tokens=10)
    assert lm.asked == ["a b c d x\n\na b c"]


def test_where_the_models_budget_ends_the_selection_so_far_stands():
    pool, test = world()

    def used_up(prompt, text):
        raise BudgetError("used up")

    result = prompting.vote_k(Scripted(logp=used_up, write=used_up), pool, test=test, first=3)
    assert len(result.records) == 3 and not result.findings["complete"]
    assert "budget ended" in result.warnings[0]


def test_on_the_command_line_the_file_of_what_to_label_is_the_file_of_labels(taught, world_files, capsys):
    root = world_files
    taught("llama").save(root / "model")
    command = ["run", "vote-k", "--model", str(root / "model"), "--pool", str(root / "pool.jsonl"), "--budget", "4"]
    command += ["--first", "2", "--choices", "red", "blue", "green", "--separator", "\\n"]
    assert cli.main([*command, "--out", str(root / "one")]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (root / "one" / "records.jsonl").read_text().splitlines()]
    assert [r["completion"] for r in rows] == ["", ""]
    for r in rows:
        r["completion"] = "red"
    (root / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert cli.main([*command, "--labels", str(root / "labels.jsonl"), "--out", str(root / "two")]) == 0
    rows = [json.loads(line) for line in (root / "two" / "records.jsonl").read_text().splitlines()]
    assert [r["completion"] for r in rows] == ["red", "red", "", ""] and rows[2]["confidence"] < 0
    # returned half filled in: empty labels are not labelled
    again = [*command, "--labels", str(root / "two" / "records.jsonl"), "--out", str(root / "three")]
    assert cli.main(again) == 0, capsys.readouterr().err


@pytest.fixture
def world_files(tmp_path):
    pool, _ = Mixture(seed=2).draw(12, 0)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"text": t.text[:20]}) + "\n" for t in pool))
    return tmp_path


def test_an_index_finds_most_neighbours_and_never_oneself():
    pytest.importorskip("faiss", reason="pip install didact[index]")
    vectors = points(1500, 7, 16, 20).astype(np.float32)
    exact, result = (annotation.neighbours(vectors, 10, approximate) for approximate in (False, True))
    assert result.shape == exact.shape and (result != np.arange(1500)[:, None]).all()
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, result, strict=True)]) > 0.8
    assert all(len({*row[row >= 0]}) == (row >= 0).sum() for row in result)
    with pytest.raises(UserError, match="TF-IDF"):
        annotation.neighbours(retrieval.TfIdf(["a b", "b c", "c"])(["a", "b", "c"]), 1, approximate=True)
