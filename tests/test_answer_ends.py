"""An answer ends with its model's end token, in labels, in generation and in scores; a base model that never learnt
to end its answers is scored without an end."""

import copy
import json

import pytest
import torch

from didact import baselines, cli, verbs
from didact.data import encode
from didact.evaluate import forgetting
from didact.evaluate.protocols import Scoring, answer, judged, prefer
from didact.infer import generate, qa_prompts
from didact.learn import language
from didact.models import build, forward
from didact.models.load import load
from didact.models.model import Model
from didact.types import Demo, Fit, Judged, Messages, Preference

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi"}
DEMOS = [Demo(prompt=f"The capital of {land} is", completion=town) for land, town in CAPITALS.items()]
QUICK = Fit(lr=1e-2, steps=100, rows=6, schedule="constant")
TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def untrained():
    """A new model whose tokenizer has a chat template with turn tokens; its configuration ends at `</s>`."""
    texts = [f"{d.prompt} {d.completion}, and so on." for d in DEMOS]
    tokenizer = build.train_tokenizer(texts, 340)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end_of_turn>"]})
    tokenizer.chat_template = TEMPLATE
    return build.build("llama", tokenizer, d=32, layers=2, heads=2, context=64)


def turning(untrained, *ends):
    """The same model with these end tokens in its generation configuration."""
    model = Model(copy.deepcopy(untrained.module), copy.deepcopy(untrained.tokenizer))
    model.module.generation_config.eos_token_id = [model.tokenizer.convert_tokens_to_ids(e) for e in ends]
    return Model(model.module, model.processor)


@pytest.fixture(scope="module")
def base(untrained):
    """A base model: it knows the capitals and continues after them."""
    options = [
        encode.row(untrained.tokenizer, d.prompt, f"{d.completion}, and so on.", "causal", 64, end=False) for d in DEMOS
    ]
    return language.train(untrained, {"text": language.single(options)}, language.nll, QUICK).model


def test_labels_and_stops_are_the_models_own(untrained):
    model = turning(untrained, "<end_of_turn>", "</s>")
    turn, eos = (model.tokenizer.convert_tokens_to_ids(t) for t in ("<end_of_turn>", "</s>"))
    assert eos == model.tokenizer.eos_token_id
    assert encode.row(model.tokenizer, "a", "b", "causal", 64).completion[-1] == turn
    assert generate.ends(model) == {turn, eos}
    assert encode.row(untrained.tokenizer, "a", "b", "causal", 64).completion[-1] == eos
    assert generate.ends(untrained) == {turn, eos}  # the template's end of a turn is another end token
    prompt = Messages([{"role": "user", "content": "a"}])
    row = encode.row(untrained.tokenizer, prompt, "b", "causal", 64)
    assert row.completion[-1] == turn and eos not in row.completion and row.completion.count(turn) == 1
    assert "\n" not in untrained.tokenizer.decode(list(row.completion))
    assert encode.row(untrained.tokenizer, prompt, "b", "causal", 64, end=False).completion == row.completion[:-1]
    model.module.generation_config.eos_token_id = 10**6  # from another vocabulary
    assert Model(model.module, model.processor).generation_ends == []


@pytest.mark.parametrize("ends", [("<end_of_turn>", "</s>"), ("</s>", "<end_of_turn>")])
def test_answers_that_end_with_a_turn_are_right_whatever_the_tokenizer_ends_with(ends, untrained, tmp_path):
    taught = baselines.sft(turning(untrained, "<end_of_turn>"), DEMOS, fit=QUICK).models["model"]
    model = turning(taught, *ends)
    completions = generate.completions(model, [d.prompt for d in DEMOS])
    assert [c.text for (c,) in completions] == [d.completion for d in DEMOS]
    assert {c.tokens[-1] for (c,) in completions} == {model.tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    scores = answer.score(model, Scoring(records={"demo": DEMOS}, start=model))
    for name in ("exact", "token_accuracy", "exact_without_end", "token_accuracy_without_end"):
        assert scores[name].value == 1.0
    assert scores["probability"].value > 0.8
    model.save(tmp_path)
    assert set(load(tmp_path).module.generation_config.eos_token_id) == set(generate.ends(model))


def test_an_answer_from_a_passage_ends_there_too(untrained):
    model = turning(untrained, "<end_of_turn>")
    turn, eos = (model.tokenizer.convert_tokens_to_ids(t) for t in ("<end_of_turn>", "</s>"))
    form = qa_prompts.prompt_format(model, "{context} {question}")
    assert form.end == turn and qa_prompts.endings(model, form) == {turn, eos}


def test_a_turn_that_conversations_were_taught_to_end_with_stops_transformers_too(untrained, tmp_path):
    untrained.save(tmp_path)
    turn = untrained.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, turn]
    assert encode.answer_end(load(tmp_path).tokenizer) == 2  # texts end as before


def test_a_base_models_right_answers_are_right(base, tmp_path, capsys):
    """Six right capitals count as six, though none of the answers ends."""
    assert not forgetting.ends_answers(base, DEMOS)
    scores = answer.score(base, Scoring(records={"demo": DEMOS}, start=base))
    assert scores["token_accuracy"].value == scores["exact"].value == 1.0 and scores["probability"].value > 0.8
    assert scores["exact_with_end"].value == 0.0 and scores["token_accuracy_with_end"].value < 1.0
    base.save(tmp_path / "base")
    data = tmp_path / "demos.jsonl"
    data.write_text("".join(json.dumps({"prompt": d.prompt, "completion": d.completion}) + "\n" for d in DEMOS))
    command = ["run", "npo", "--model", str(tmp_path / "base"), "--forget", str(data), "--steps=1", "--lr=1e-9"]
    assert cli.main([*command, "--retain", str(data), "--out", str(tmp_path / "out")]) == 0
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["end_token"] == "not counted" and any("does not end its answers" in w for w in saved["warnings"])
    assert "does not end its answers" in (tmp_path / "out" / "report.html").read_text()
    for name in ("forget_token_accuracy", "retain_token_accuracy"):
        assert saved["metrics"][name]["before"] == saved["metrics"][name]["after"] == 1.0
        assert saved["metrics"][f"{name}_with_end"]["after"] < 1.0
    assert (
        saved["metrics"]["forget_probability"]["before"]
        > 0.8
        > saved["metrics"]["forget_probability_with_end"]["before"]
    )
    assert saved["answered"]["forget"] == {"of": 6, "before": 6, "after": 6}
    result = verbs.evaluate(str(tmp_path / "out"), str(data), "forget", device="cpu")
    assert result["forget_probability"].after == pytest.approx(
        saved["metrics"]["forget_probability"]["after"], abs=1e-6
    )
    capsys.readouterr()


def test_likelihoods_of_pairs_and_judged_answers_leave_out_an_end_never_learnt(base):
    """Right against wrong, and the end token, which is uninformative about either, counted separately."""
    rejected = [*(d.completion for d in DEMOS[1:]), DEMOS[0].completion]
    pairs = [Preference(prompt=d.prompt, chosen=d.completion, rejected=w) for d, w in zip(DEMOS, rejected, strict=True)]
    scoring = Scoring(records={"preference": pairs}, start=base)
    scores = prefer.score(base, scoring)
    assert scores["preferred"].value == 1.0 and "not counted" in scores["preferred"].help
    rows = encode.rows(base.tokenizer, [(d.prompt, d.completion) for d in DEMOS], base.kind, base.context, end=False)
    sums = forward.row_logp(base, rows)[0].numpy()
    worse = encode.rows(base.tokenizer, [(p.prompt, p.rejected) for p in pairs], base.kind, base.context, end=False)
    margin = (sums - forward.row_logp(base, worse)[0].numpy()).mean()
    assert scores["margin"].value == pytest.approx(margin, abs=1e-5)
    judged_records = [Judged(prompt=d.prompt, completion=d.completion, label=True) for d in DEMOS]
    scores = judged.score(base, Scoring(records={"judged": judged_records}, start=base))
    assert scores["good_nll"].value < 0.25 < scores["good_nll_with_end"].value


def test_before_and_after_are_counted_alike_also_where_training_teaches_the_end(base):
    taught = baselines.sft(base, DEMOS, fit=QUICK).models["model"]
    assert forgetting.ends_answers(taught, DEMOS)
    scores = answer.score(taught, Scoring(records={"demo": DEMOS}, start=base))
    assert scores["exact"].value == scores["exact_with_end"].value == 1.0
    assert answer.score(base, Scoring(records={"demo": DEMOS}, start=taught))["exact"].value == 0.0


def test_any_of_several_ends_counts_with_all_their_probability():
    from didact.objectives import tokens

    logits = torch.randn(4, 7, dtype=torch.float64)
    target = torch.zeros(4, dtype=torch.long)
    expected = logits.softmax(-1)[:, [2, 5]].sum(-1)
    torch.testing.assert_close(tokens.any_logp(logits, target, any_of=[2, 5]).exp(), expected)
    assert torch.equal(tokens.any_logp(logits, target, any_of=[2]), tokens.logp(logits, target + 2))
    assert tokens.any_correct(logits, target, any_of=range(7)).all()
