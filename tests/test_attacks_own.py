"""Attacks with user files, independent of the method: membership inference, and knowledge that was only hidden."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from didact import baselines, cli
from didact.evaluate import forgetting, protocols, statistics
from didact.evaluate.protocols import Scoring
from didact.types import Demo, Fit, UserError, as_row


def measured(name, model, start, **records):
    return protocols.by_name(name).score(model, Scoring(records=records, start=start, general=None))


def test_membership_tells_what_was_trained_on_and_words_alone_do_not(taught, world):
    member, gold = taught("llama"), taught("llama", gold=True)
    scores = measured("membership", member, gold, demo=world.forget, unseen=world.holdout)
    assert scores["membership"].value > 0.9 and scores["membership"].ci[0] > 0.7
    assert scores["membership_reference"].value > 0.9
    min_k = [forgetting.answers(member, rows)["min_k"] for rows in (world.forget, world.holdout)]
    assert scores["membership"].value == pytest.approx(forgetting.membership_auc(*min_k))
    none = measured("membership", gold, gold, demo=world.forget, unseen=world.holdout)
    assert none["membership"].value < scores["membership"].value - 0.2 and "membership_reference" not in none
    easy = [Demo(prompt="zebra zebra", completion=f"zebra {i}") for i in range(20)]
    blind = measured("membership", gold, gold, demo=world.forget, unseen=easy)["membership_blind"]
    assert blind.value > 0.95 and "words alone" in blind.help
    with pytest.raises(UserError, match="--unseen FILE"):
        measured("membership", gold, gold, demo=world.forget)


def test_the_interval_of_an_auc_covers_what_it_should():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        result = statistics.auc(rng.normal(1, 1, 30), rng.normal(0, 1, 40))
        hits += result.low <= 0.7602 <= result.high  # Phi(1 / sqrt(2))
    assert 182 <= hits <= 198
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 40)
    assert statistics.auc(a, b).estimate == pytest.approx(mannwhitneyu(a, b).statistic / 1200)
    assert statistics.auc([2, 3], [0, 1]).low == pytest.approx(0.025**0.5) and statistics.auc([1], [1]).estimate == 0.5


def test_hidden_knowledge_comes_back_and_what_was_never_there_does_not(taught, world):
    member, gold = taught("llama"), taught("llama", gold=True)
    # A refusal shared by all questions hides the answers without removing them.
    refused = [Demo(prompt=r.prompt, completion=" nobody knows that") for r in world.forget]
    hidden = baselines.sft(member, refused, fit=Fit(lr=1e-3, steps=4, rows=20, schedule="constant")).models["model"]
    relearned, fresh = (measured("relearn", m, member, demo=world.forget) for m in (hidden, gold))
    assert relearned["relearn_taught"].value > relearned["relearn_before"].value
    assert relearned["relearn_gain"].value > fresh["relearn_gain"].value + 0.1 and relearned["relearn_gain"].n == 10
    gain = np.subtract(relearned["relearn_after"].values, relearned["relearn_before"].values)
    assert relearned["relearn_gain"].values == tuple(gain)
    with pytest.raises(UserError, match="at least 4 records"):
        measured("relearn", member, member, demo=world.forget[:3])


def test_both_are_protocols_of_evaluate(taught, world, tmp_path, capsys):
    for name, rows in (("mine", world.forget), ("unseen", world.holdout)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(as_row(r)) + "\n" for r in rows))
    taught("llama").save(tmp_path / "model")
    taught("llama", gold=True).save(tmp_path / "gold")
    command = [
        "evaluate",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "mine.jsonl"),
        "--gold",
        str(tmp_path / "gold"),
    ]
    assert cli.main([*command, "--protocol", "membership", "--unseen", str(tmp_path / "unseen.jsonl")]) == 0
    stdout = capsys.readouterr().out
    assert "membership_zlib" in stdout and "gold" in stdout
    assert cli.main([*command, "--protocol", "relearn"]) == 0 and "relearn_gain" in capsys.readouterr().out
    assert cli.main([*command, "--protocol", "membership"]) == 2
    assert "--unseen FILE" in capsys.readouterr().err
    models = [str(tmp_path / "model"), str(tmp_path / "gold")]
    options = ["--demo", str(tmp_path / "mine.jsonl"), "--protocol", "relearn", "--diagnostics", "none"]
    assert cli.main(["compare", *models, "--model", models[0], *options, "--out", str(tmp_path / "both")]) == 0
    board = json.loads((tmp_path / "both" / "leaderboard.json").read_text())
    assert board["primary"] == "relearn_gain" and board["groups"] == len(world.forget) // 2
    gap = next(row["to_untouched"] for row in board["rows"] if row["arm"] == models[1])
    assert gap["low"] < gap["mean"] < gap["high"]  # over the records of --demo
