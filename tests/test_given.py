"""Given models in a comparison: paired by record, on text alone where tokenizers differ, beside trained arms."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import servers

from didact import cli, verbs
from didact.evaluate import statistics
from didact.infer import generate
from didact.models import build
from didact.types import UserError, as_row


@pytest.fixture(scope="module")
def folders(world, taught, tmp_path_factory):
    """Two models of one tokenizer, one trained on the forget set and one not, and a model of another tokenizer."""
    root = tmp_path_factory.mktemp("given")
    taught("llama").save(root / "told")
    taught("llama", gold=True).save(root / "never")
    other = build.train_tokenizer([r.prompt for r in world.unseen], 300)
    build.build("llama", other, d=16, layers=1, heads=2, context=128).save(root / "other")
    (root / "demos.jsonl").write_text("".join(json.dumps(as_row(r)) + "\n" for r in world.forget))
    return root


def compared(root, *arms, **more):
    names = [str(root / arm) if "/" not in arm else arm for arm in arms]
    options = {
        "data": {"demo": str(root / "demos.jsonl")},
        "out": str(root / f"out-{'-'.join(map(str, arms)).replace('/', '_')}"),
    }
    return verbs.comparison(verbs.Comparison(arms=names, **options | more))


def test_two_folders_are_paired_by_record_without_training(folders, world, taught):
    board = compared(folders, "told", "never")
    rows = {r["arm"].rpartition("/")[2]: r for r in board["rows"]}
    assert board["over"] == "records" and board["budget"] is None and board["primary"] == "exact_answer"
    correct = {
        name: np.array([
            a.strip().startswith(r.completion.strip())
            for a, r in zip(generate.generate(model, [r.prompt for r in world.forget]), world.forget, strict=True)
        ], dtype=float)
        for name, model in (("told", taught("llama")), ("never", taught("llama", gold=True)))
    }  # fmt: skip
    assert (
        rows["told"]["score"]["mean"]
        == correct["told"].mean()
        > rows["never"]["score"]["mean"]
        == correct["never"].mean()
    )
    result = rows["never"]["to_untouched"]  # the reference is the first
    assert board["reference"].endswith("told")
    discordant = int((correct["told"] > correct["never"]).sum()), int((correct["told"] != correct["never"]).sum())
    assert result["p"] == scipy.stats.binomtest(discordant[0], discordant[1]).pvalue  # McNemar's test
    interval = statistics.mean_interval(correct["never"] - correct["told"])
    assert result["low"] == pytest.approx(max(interval.low, -1.0)) and result["high"] == pytest.approx(interval.high)
    assert not rows["never"]["tied"] and all(not r["cost"]["tokens"] for r in rows.values())


def test_a_folder_is_an_arm_beside_what_is_trained_and_a_page_says_over_what(folders, capsys):
    command = [
        "compare",
        str(folders / "never"),
        "sft",
        "--model",
        str(folders / "told"),
        "--demo",
        str(folders / "demos.jsonl"),
    ]
    command += ["--budget", "2k-tokens", "--seeds", "2", "--lrs", "1e-4", "--beyond-lrs", "0", "--rows", "4"]
    assert cli.main([*command, "--no-models", "--out", str(folders / "mixed")]) == 0
    board = json.loads((folders / "mixed" / "leaderboard.json").read_text())
    rows = {r["arm"].rpartition("/")[2]: r for r in board["rows"]}
    assert (
        set(rows) == {"never", "sft", "untouched"} and board["primary"] == "token_accuracy" and board["over"] == "seeds"
    )
    # Both are constant over seeds: they differ over records only, and the interval has a width.
    assert len(set(rows["never"]["per_seed"])) == 1
    assert rows["never"]["to_untouched"]["low"] < rows["never"]["to_untouched"]["high"] < 0
    command = ["compare", *(str(folders / name) for name in ("told", "never")), "--demo", str(folders / "demos.jsonl")]
    assert cli.main([*command, "--out", str(folders / "pair")]) == 0
    stdout = capsys.readouterr().out
    assert "over records" in stdout and "None is better than" in stdout
    page = (folders / "pair" / "report.html").read_text()
    assert "Differences, record by record" in page and "McNemar" in page


def test_another_tokenizer_and_a_server_are_compared_on_text_alone(folders, world):
    answers = {str(r.prompt): r.completion for r in world.forget}

    def answer(connection, path, body):
        request = json.loads(body or b"{}")
        if request.get("echo"):
            return connection.sendall(servers.said("no", "404 Not Found"))
        text = answers.get(request.get("prompt", ""), " nothing")
        connection.sendall(
            servers.said(json.dumps({"model": "m", "choices": [{"text": text, "finish_reason": "stop"}]}))
        )

    with servers.Raw(answer) as served:
        board = compared(folders, "told", "other", f"{served.url}#m", out=str(folders / "three"))
    rows = {r["arm"].rpartition("/")[2]: r["score"]["mean"] for r in board["rows"]}
    assert board["primary"] == "exact_answer" and rows["v1#m"] == 1 and rows["other"] == 0 and not board["failures"]
    with pytest.raises(UserError, match="tokenizer differs from the first model's, and protocol 'extract'") as error:
        compared(folders, "told", "other", protocol="extract", data={"qa": str(qa(folders))})
    assert "\n" not in str(error.value)
    with servers.Raw(answer) as served, pytest.raises(UserError, match="protocol 'prefer' needs a model with score"):
        compared(folders, "told", f"{served.url}#m", data={"preference": str(pairs(folders))})
    for extra, message in (({"budget": "1k-tokens"}, "nothing is trained"), ({"data": {}}, "data of your own")):
        with pytest.raises(UserError, match=message):
            compared(folders, "told", "never", **extra)
    with pytest.raises(UserError, match="not a model folder"):
        compared(folders, "told", "nowhere/at/all", out=str(folders / "no"))
    with pytest.raises(UserError, match="neither a model folder nor a hub id that can be reached"):
        compared(folders, "told", "nowhere/", out=str(folders / "no"))
    assert not (folders / "no").exists()  # before the first is scored


def qa(root):
    path = root / "qa.jsonl"
    path.write_text(json.dumps({"context": "Here is Rome.", "question": "Where?", "answers": ["Rome"]}) + "\n")
    return path


def pairs(root):
    path = root / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Where?", "chosen": " here", "rejected": " there"}) + "\n")
    return path


def test_choices_characters_and_pairs_are_scored_alike_whatever_the_tokens(folders, world, taught):
    choices = [as_row(r) | {"choices": [r.completion, *r.perturbed]} for r in world.forget]
    (folders / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    board = compared(
        folders,
        "told",
        "other",
        protocol="choice",
        data={"demo": str(folders / "choices.jsonl")},
        out=str(folders / "c"),
    )
    scores = {r["arm"].rpartition("/")[2]: r["score"]["mean"] for r in board["rows"]}
    assert scores["told"] > 0.8 > 0.6 > scores["other"]
    (folders / "texts.jsonl").write_text(
        "".join(json.dumps({"text": r.prompt + r.completion}) + "\n" for r in world.forget)
    )
    board = compared(folders, "told", "other", data={"text": str(folders / "texts.jsonl")}, out=str(folders / "t"))
    rows = {r["arm"].rpartition("/")[2]: r for r in board["rows"]}
    assert board["primary"] == "bits_per_character" and board["better"] == "lower" and board["rows"][0] is rows["told"]
    # A model that knows nothing of these texts needs about log2(vocabulary) / (characters per token) bits.
    assert rows["other"]["score"]["mean"] > 1.3 * rows["told"]["score"]["mean"]


def test_groups_are_the_units_and_no_difference_is_no_certainty():
    a, b = [1, 1, 0, 1, 0, 1], [0, 0, 0, 1, 0, 1]
    alone, p = statistics.record_difference(a, b, list("abcdef"))
    grouped, q = statistics.record_difference(a, b, list("aabbcc"))
    assert alone.estimate == grouped.estimate == pytest.approx(1 / 3) and p == 0.5 and q == 1.0
    assert grouped.high - grouped.low > alone.high - alone.low
    twice, _ = statistics.record_difference(a * 2, b * 2, list("abcdef") * 2)
    assert twice == pytest.approx(alone)  # repeated records do not count twice
    same, p = statistics.record_difference([1] * 20, [1] * 20, list(map(str, range(20))))
    assert p == 1 and same.high == -same.low == pytest.approx(1 - 0.025 ** (1 / 20))
    score = statistics.record_interval([1] * 20, list(map(str, range(20))))
    assert score.low == pytest.approx(0.025 ** (1 / 20)) and score.high == 1


def test_the_sign_flip_test_is_exact_for_few_and_close_to_the_t_test_for_many():
    d = [0.5, -0.1, 0.3, 0.2, 0.4]
    signs = [abs(sum(s * x for s, x in zip(flips, d, strict=True))) for flips in itertools.product((1, -1), repeat=5)]
    assert statistics.flip_p([*d, 0.0]) == sum(v >= sum(d) - 1e-12 for v in signs) / 32
    assert statistics.flip_p([1, 1, 1, 1, -1]) == scipy.stats.binomtest(4, 5).pvalue
    differences = np.random.default_rng(1).normal(0.2, 1, 200)
    assert math.isclose(statistics.flip_p(differences), scipy.stats.ttest_1samp(differences, 0).pvalue, abs_tol=0.01)
