"""lm-evaluation-harness evaluates our models, and its choices are ranked by the consensus game's rules."""

import json
import types

import numpy as np
import pytest

from didact import prompting
from didact.evaluate import harness
from didact.infer import lm as language_models
from didact.types import Demo, UserError

DOCS = [("Who wrote it? A:", [" Mira", " Kolt", " Ann"]), ("Which is red? A:", [" blood", " snow"])]


def asked(docs):
    """The requests of the harness for a multiple-choice task."""
    return [
        types.SimpleNamespace(task_name="t", doc_id=i, args=(context, text))
        for i, (context, texts) in enumerate(docs)
        for text in texts
    ]


@pytest.mark.parametrize("rule", ["er_d", "avg", "sc"])
def test_the_harness_gets_the_scores_that_the_method_ranks_by(fresh, rule):
    lm = language_models.of(fresh("llama"))
    scores = iter(harness.scores(lm, asked(DOCS), rule))
    records = [Demo(prompt=context, choices=texts, completion=texts[0]) for context, texts in DOCS]
    ours = prompting.consensus(fresh("llama"), records, rank=rule).records
    for record, (_, texts) in zip(ours, DOCS, strict=True):
        values = [next(scores) for _ in texts]
        assert [texts[i].strip() for i in np.argsort(values)[::-1]] == [t.strip() for t in record.extra["ranking"]]


def test_rule_g_is_the_plain_log_prob_in_the_order_of_the_requests(fresh):
    lm, requests = language_models.of(fresh("llama")), asked(DOCS)[::-1]
    plain = [likelihood.logp for likelihood in lm.score([r.args for r in requests])]
    assert harness.scores(lm, requests, "g") == pytest.approx(plain, abs=1e-5)


def test_a_task_without_choices_is_told(fresh):
    with pytest.raises(UserError, match="t: document 0 has one continuation: only multiple choice can be ranked"):
        harness.scores(language_models.of(fresh("llama")), asked([("The end is", [" near"])]), "er_d")


def test_a_task_of_the_harness_itself_is_ranked(fresh, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="make bench installs it")
    from lm_eval.tasks import TaskManager

    lines = [json.dumps({"q": q, "choices": [t.strip() for t in texts], "gold": 0}) for q, texts in DOCS]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    config = {
        "task": "two", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "choices",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "two.yaml").write_text(json.dumps(config))
    model = fresh("llama")
    config = lm_eval.simple_evaluate(
        model=harness.model(model, rank="er_d"), tasks=["two"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    requests = asked([(q, texts) for q, texts in DOCS])
    values = iter(harness.scores(language_models.of(model), requests, "er_d"))
    correct = [int(np.argmax([next(values) for _ in texts])) == 0 for _, texts in DOCS]
    assert config["results"]["two"]["acc,none"] == pytest.approx(np.mean(correct))
