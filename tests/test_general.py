"""Damage by training: loss and KL on general text, text mixed into any training, user metrics."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from didact import baselines, cli, verbs
from didact.data import general as texts
from didact.evaluate import general, own, protocols
from didact.evaluate.protocols import Scoring
from didact.learn import fit as loop
from didact.models import build, load
from didact.models.model import copy_of
from didact.types import Demo, Fit, Preference, Text, UserError, as_row

SOME = texts.texts(None, "keep")[:6]


compared = general._compared


def once(name, make):
    return make()


def noisy(model, scale):
    other = copy_of(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for p in other.module.parameters():
            p.add_(scale * torch.randn_like(p))
    return other


def test_the_start_model_itself_has_lost_nothing_and_a_ruined_one_has(fresh):
    model = fresh("llama", d=32)
    same, hurt = (general.score(m, model, SOME, once) for m in (model, noisy(model, 0.2)))
    assert same["general_kl"].value == pytest.approx(0, abs=1e-6) and same["general_rise"].value == 0
    assert hurt["general_kl"].value > 0.05 and hurt["general_kl"].ci[0] > 0 and len(hurt["general_kl"].values) == 6
    # The loss equals transformers' own, over all tokens of all texts, each run separately.
    total = count = 0
    for text in SOME:
        for row in general.rows(model, [text])[0]:
            ids = torch.tensor([[*row.prompt, *row.completion]])
            total += float(model.module(ids, labels=ids).loss.detach()) * len(row.completion)
            count += len(row.completion)
    assert same["general_loss"].value == pytest.approx(total / count, rel=1e-5)
    logits = [m.module(ids).logits.log_softmax(-1)[0, :-1] for m in (model, noisy(model, 0.2))]
    last = float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).sum())
    scores = general.score(noisy(model, 0.2), model, [SOME[-1]], once)["general_kl"]
    if len(general.rows(model, [SOME[-1]])[0]) == 1:
        assert scores.value == pytest.approx(last / (ids.shape[1] - 1), rel=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
def test_models_of_one_head_are_compared_by_one_product_with_it(arch, fresh, monkeypatch):
    model = fresh(arch, d=32)
    changed = noisy(model, 0.2)
    with torch.no_grad():
        changed.module.get_output_embeddings().weight.copy_(model.module.get_output_embeddings().weight)
    heads = []
    monkeypatch.setattr(general, "_compared", lambda *a: heads.append(a) or compared(*a))
    fast = general.score(changed, model, SOME, once), general.score(model, model, SOME, once)
    assert not heads
    monkeypatch.setattr(general, "_head", lambda model: None)
    slow = general.score(changed, model, SOME, once), general.score(model, model, SOME, once)
    assert heads and slow[0]["general_kl"].value > 0.01
    for one, other in zip(fast, slow, strict=True):
        for name, measure in other.items():
            assert one[name].values == pytest.approx(measure.values, rel=1e-4, abs=2e-6)


def test_models_of_other_tokens_or_words_added_are_read_or_passed_over(fresh, world):
    model = fresh("llama")
    other = build.build("llama", build.train_tokenizer([r.prompt for r in world.unseen], 300), d=16, layers=1, heads=2)
    assert general.score(other, model, SOME, once) == {}
    extended = copy_of(model)
    extended.module.resize_token_embeddings(len(model.tokenizer) + 3, mean_resizing=False)
    assert general.score(extended, model, SOME, once)["general_kl"].value == pytest.approx(0, abs=1e-6)


def test_what_is_measured_is_not_what_is_trained_on():
    keep, replay = texts.texts(None, "keep"), texts.texts(None, "replay")
    assert len(keep) == len(replay) == 24 and not set(keep) & set(replay)
    texts.check_no_leak(None, [Demo(prompt="a b", completion="c d")], keep)


def test_replay_mixes_text_into_any_training_and_keeps_what_it_holds(fresh, world, tmp_path):
    model, training = fresh("llama", d=32), Fit(lr=3e-3, steps=12, rows=4)
    pairs = [Preference(prompt=r.prompt, chosen=r.completion, rejected=r.perturbed[0]) for r in world.forget]
    losses = {}
    for share in (0.0, 0.5):
        fit = training.replace(replay=share)
        trained = baselines.sft(model, world.forget, fit=fit)
        losses[share] = general.score(trained.models["model"], model, texts.texts(None, "replay"), once)[
            "general_rise"
        ].value
        assert ("replay" in trained.history[0]) == bool(share)
        assert ("replay" in baselines.dpo(model, pairs, fit=fit.replace(steps=2)).history[0]) == bool(share)
    assert losses[0.5] < losses[0.0] - 0.2
    alone = baselines.sft(model, world.forget, fit=training.replace(steps=1)).history[0]
    mixed = baselines.sft(model, world.forget, fit=training.replace(steps=1, replay=0.2)).history[0]
    # The method's own loss is unchanged; the text's is added with share / (1 - share).
    assert mixed["nll"] == alone["nll"] and mixed["loss"] == pytest.approx(alone["nll"] + 0.25 * mixed["replay"])
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"text": "Every line of this is mine and long enough to be read."}) + "\n")
    whose = [
        baselines.sft(model, world.forget, fit=training.replace(replay=0.2, replay_from=f)).history
        for f in (None, str(mine))
    ]
    assert whose[0][0]["replay"] != whose[1][0]["replay"]


def test_a_replay_file_that_holds_tested_records_is_one_line(fresh, world, tmp_path):
    fresh("llama").save(tmp_path / "model")
    rows = [as_row(r) for r in world.forget]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "mix.jsonl").write_text(
        "".join(json.dumps({"text": f"{r['prompt']} {r['completion']}"}) + "\n" for r in rows)
    )
    command = ["--model", str(tmp_path / "model"), "--replay", "0.1", "--replay-from", str(tmp_path / "mix.jsonl")]
    for verb, extra in (("run", ["sft", "--demos"]), ("compare", ["sft", "--budget", "1k-tokens", "--demo"])):
        out = ["--out", str(tmp_path / "out")]
        assert cli.main([verb, *extra, str(tmp_path / "demos.jsonl"), *command, *out]) == 2
    with pytest.raises(UserError, match=r"holds \d+ of \d+ tested records .*what is trained on cannot be tested"):
        texts.check_no_leak(str(tmp_path / "mix.jsonl"), world.forget, [])
    with pytest.raises(UserError, match="24 of 24 texts of --retention"):
        texts.check_no_leak(str(texts.FILE), [], texts.texts(None, "keep"))
    with pytest.raises(UserError, match="tested records"):  # too short for n-grams
        (tmp_path / "short.jsonl").write_text(json.dumps({"text": "They say that Rome is old, and so on."}))
        texts.check_no_leak(str(tmp_path / "short.jsonl"), [Text(text="Rome is old")], [])


MINE = """
from didact.types import UserError

def vowels(record, answer):
    return sum(c in "aeiou" for c in answer)
vowels.better = "lower"

def breaks(record, answer):
    return 1 / 0

def says(record, answer):
    return "good"

def late(record, answer):
    return 1.0 if answer == record.completion else "bad"
"""


@pytest.fixture
def user_metrics(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_metrics", None)
    return own.load_metrics


def test_a_metric_of_ones_own_is_measured_and_its_mistakes_are_one_line(user_metrics, fresh, world):
    model = fresh("llama")
    scoring = Scoring(records={"demo": world.forget}, start=model, metrics=user_metrics("my_metrics:vowels"))
    protocol = protocols.by_name("answer")
    scores = own.score(scoring.metrics, lambda prompts: ["aei", "x"] * (len(prompts) // 2), protocol, scoring)["vowels"]
    assert scores.value == 1.5 and scores.better == "lower" and len(scores.values) == len(world.forget)
    for name, message in (
        ("breaks", "raised ZeroDivisionError: division by zero"),
        ("says", "gave 'good': a number is expected"),
    ):
        with pytest.raises(UserError, match=rf"metric 'my_metrics:{name}' {message} .*prompt") as error:
            own.check(user_metrics(f"my_metrics:{name}"), protocol, scoring.records)
        assert "\n" not in str(error.value)
    own.check(user_metrics("my_metrics:late"), protocol, scoring.records)
    with pytest.raises(UserError, match="gave 'bad'"):
        own.score(user_metrics("my_metrics:late"), lambda prompts: ["no"] * len(prompts), protocol, scoring)
    with pytest.raises(UserError, match="cannot be imported"):
        user_metrics("my_metrics:nothing")


def test_run_and_compare_measure_it_beside_what_training_broke(user_metrics, fresh, world, tmp_path, capsys):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(as_row(r)) + "\n" for r in world.retain))
    common = ["--model", str(tmp_path / "model"), "--metric", "my_metrics:vowels"]
    run = ["run", "sft", "--demos", str(tmp_path / "demos.jsonl"), "--steps", "2", "--lr", "3e-3", *common]
    assert cli.main([*run, "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert {"vowels", "token_accuracy", "general_loss", "general_rise", "general_kl"} <= set(saved)
    assert saved["general_rise"]["before"] == 0 and saved["general_rise"]["ci"] and saved["general_kl"]["after"] > 0
    assert math.isclose(
        saved["general_loss"]["after"] - saved["general_loss"]["before"], saved["general_rise"]["after"], abs_tol=1e-6
    )
    best = [*run, "--evaluate-every", "1", "--keep-best", "--out", str(tmp_path / "best")]
    assert cli.main(best) == 0 and "step 1 of 2: vowels" in capsys.readouterr().err
    compare = ["compare", "sft", "--demo", str(tmp_path / "demos.jsonl"), "--budget", "1k-tokens", "--seeds", "1"]
    assert cli.main([*compare, "--lrs", "1e-3", "--beyond-lrs", "0", *common, "--out", str(tmp_path / "which")]) == 0
    board = json.loads((tmp_path / "which" / "leaderboard.json").read_text())
    assert board["primary"] == "vowels" and board["better"] == "lower"
    assert all("general_rise" in row["metrics"] for row in board["rows"]) and "general" in capsys.readouterr().out
    scores = verbs.evaluate(str(tmp_path / "run"), str(tmp_path / "demos.jsonl"), "answer", metric="my_metrics:vowels")
    assert scores["vowels"].before is not None
    assert cli.main([*run[:-1], "my_metrics:says", "--out", str(tmp_path / "bad")]) == 2
    assert not (tmp_path / "bad").exists() and load.load(tmp_path / "run" / "model").kind == "causal"


def test_a_training_without_streams_of_text_says_so():
    with pytest.raises(UserError, match="no streams of text to mix general text into"):
        loop.fit(torch.nn.Linear(1, 1), None, None, Fit(replay=0.1), steps=1)
