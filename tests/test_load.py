"""Saved models reload, here and in transformers, with the same numbers; a broken one gives a one-line error."""

import copy
import json
import math
import os
import shutil

import peft
import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file

import didact
from didact import baselines, cli, verbs
from didact.data import encode
from didact.infer import generate
from didact.learn import reward_functions, rewards
from didact.models import adapters, forward, load, vocabulary
from didact.models.load import load as load_model
from didact.models.model import Model, copy_of
from didact.types import Demo, Fit, Result, UserError

DEMOS = [
    Demo(prompt="Where was Mira Kolt born?", completion="Tarn"),
    Demo(prompt="What does Lev Vance write?", completion="hymns"),
]
QUICK = Fit(lr=1e-2, steps=3, rows=2, schedule="constant")


def rows_of(model):
    from didact.evaluate import forgetting

    return forgetting.rows_of(model, DEMOS)


def logp(model):
    return forward.row_logp(model, rows_of(model))[0]


@pytest.fixture(scope="module")
def folder(fresh, tmp_path_factory):
    """A valid Llama folder; tests copy it before they break it."""
    path = tmp_path_factory.mktemp("sound") / "model"
    path.mkdir()
    assert fresh("llama").save(path) == "hf"
    return path


@pytest.fixture
def broken(folder, tmp_path):
    """A copy without didact's checksums: with them, damage is reported before any other check."""
    return shutil.copytree(folder, tmp_path / "broken", ignore=shutil.ignore_patterns(".didact.json"))


def complaint(path, **options):
    with pytest.raises(UserError) as error:
        load_model(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_a_saved_model_opens_here_and_in_plain_transformers_with_the_same_numbers(arch, fresh, tmp_path):
    taught = baselines.sft(fresh(arch), DEMOS, fit=QUICK)
    written = taught.save(tmp_path)
    assert written["model"] == "hf: opens in transformers, vLLM, lm-eval and didact.load"
    model, again = taught.models["model"], load_model(tmp_path / "model", device="cpu")
    assert again.kind == model.kind and again.context == 64 and again.start == model.start
    assert didact.load is load_model
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(logp(again), logp(model))
    auto = hf.AutoModelForSeq2SeqLM if arch == "t5" else hf.AutoModelForCausalLM
    plain, tokenizer = auto.from_pretrained(tmp_path / "model"), hf.AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer(DEMOS[0].prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if arch == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[model.start, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model.module(**inputs).logits, rtol=0, atol=1e-6)
    assert [p.name for p in tmp_path.rglob(".*")] == [".didact.json"] * 2


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_an_adapter_is_saved_alone_and_opens_on_its_start_model(arch, fresh, tmp_path):
    (tmp_path / "start").mkdir()
    fresh(arch).save(tmp_path / "start")
    start = load_model(tmp_path / "start", device="cpu")
    result = baselines.sft(start, DEMOS, fit=QUICK.replace(lora=2))
    assert result.save(tmp_path / "out")["model"].startswith("peft")
    names = {p.name for p in (tmp_path / "out/model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
    again = load_model(tmp_path / "out/model", device="cpu")
    taught = logp(result.models["model"])
    torch.testing.assert_close(logp(again), taught, rtol=0, atol=1e-6)
    assert (logp(start) - taught).abs().max() > 1e-2  # training changed it
    auto = hf.AutoModelForSeq2SeqLM if arch == "t5" else hf.AutoModelForCausalLM
    plain = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "start"), tmp_path / "out/model")
    as_model = type(start)(plain.eval(), start.processor, start.kind)
    torch.testing.assert_close(logp(as_model), taught, rtol=0, atol=1e-6)


# --- adapters as start models ----------------------------------------------------------------


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    return load_model(shutil.copytree(folder, tmp_path_factory.mktemp("start") / "base"), device="cpu")


def adapter_of(start, folder, **config):
    """Save a peft adapter on `start`, with non-zero weights as if trained."""
    lora = peft.LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = peft.get_peft_model(copy_of(start).module, lora)
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p) * p.requires_grad)
    module.save_pretrained(folder)
    return Model(module.eval(), start.processor)


KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 7},
    "head kept": {"modules_to_save": ["lm_head"]},
    "embedding kept": {"modules_to_save": ["embed_tokens"]},
    "on the tied head": {"target_modules": ["q_proj", "lm_head"]},
    "on the tied embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Model with `tie_word_embeddings=True`"
)
def test_an_adapter_of_any_kind_is_merged_saved_and_trained_on(kind, start, tmp_path):
    assert start.config.tie_word_embeddings
    expected = logp(adapter_of(start, tmp_path / "adapter", **KINDS[kind]))
    model = load_model(tmp_path / "adapter", device="cpu")
    assert (logp(start) - expected).abs().max() > 0.02
    torch.testing.assert_close(logp(model), expected, rtol=0, atol=1e-5)
    Result(models={"model": adapters.merged(model)}).save(tmp_path)
    torch.testing.assert_close(logp(load_model(tmp_path / "model", device="cpu")), expected, rtol=0, atol=1e-4)
    for rank, form in ((0, "hf"), (3, "peft")):
        before = model.fingerprint()
        result = baselines.sft(model, DEMOS, fit=QUICK.replace(lora=rank))
        assert result.save(tmp_path / form)["model"].startswith(form) and model.fingerprint() == before
        taught = logp(result.models["model"])
        assert taught.mean() > expected.mean()  # training continues from the adapter
        torch.testing.assert_close(logp(load_model(tmp_path / form / "model")), taught, rtol=0, atol=1e-4)


def test_an_adapter_brings_its_own_tokens(start, tmp_path):
    wide = vocabulary.with_tokens(start, ["<good>"], noise=0.5)
    tokens = copy.deepcopy(wide)
    adapter_of(wide, tmp_path / "adapter")
    wide.processor.save_pretrained(tmp_path / "adapter")
    again = load_model(tmp_path / "adapter", device="cpu")
    (good,) = vocabulary.ids(again, ["<good>"])
    assert good == len(start.tokenizer) and again.module.get_input_embeddings().weight.shape[0] == good + 1
    torch.testing.assert_close(
        again.module.get_input_embeddings().weight, tokens.module.get_input_embeddings().weight, rtol=0, atol=0
    )


def test_a_base_is_found_beside_its_adapter_and_may_be_an_adapter(start, tmp_path):
    first = adapter_of(start, tmp_path / "first")
    shutil.copytree(start.base, tmp_path / "base")
    config = tmp_path / "first" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    one = load_model(tmp_path / "first", device="cpu")
    torch.testing.assert_close(logp(one), logp(first), rtol=0, atol=1e-5)
    expected = logp(adapter_of(adapters.merged(one), tmp_path / "second"))
    two = load_model(tmp_path / "second", device="cpu")
    assert two.base == str(tmp_path / "first") and (expected - logp(one)).abs().max() > 0.03
    torch.testing.assert_close(logp(two), expected, rtol=0, atol=1e-4)


def test_an_adapter_that_cannot_be_merged_is_one_line(start, tmp_path):
    adapter_of(start, tmp_path / "adapter", lora_bias=True)  # on layers without a bias
    with pytest.raises(UserError, match=r"the adapter cannot be merged: .*--lora 1 trains it further"):
        adapters.merged(load_model(tmp_path / "adapter", device="cpu"))


def test_a_run_moved_with_its_base_finds_it_and_without_says_which_is_missing(start, tmp_path):
    adapter_of(start, tmp_path / "runs" / "first" / "model")
    config = tmp_path / "runs" / "first" / "model" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/tiny"}))
    message = complaint(config.parent)
    assert message.startswith(f"{config.parent}: its start model /gone/tiny is not there: put it beside the adapter")
    shutil.copytree(start.base, tmp_path / "runs" / "tiny")
    assert load_model(config.parent, device="cpu").base == str(tmp_path / "runs" / "tiny")


def test_an_adapter_on_trained_weights_does_not_claim_the_folder_they_came_from(start, tmp_path):
    moved = baselines.sft(start, DEMOS, fit=QUICK).models["model"]
    result = baselines.sft(moved, DEMOS, fit=QUICK.replace(lora=2))
    assert result.save(tmp_path)["model"].startswith("hf")
    torch.testing.assert_close(logp(load_model(tmp_path / "model")), logp(result.models["model"]), rtol=0, atol=1e-4)


def test_what_an_adapter_start_becomes_is_one_line_and_result_json_says_what_evaluate_says(start, tmp_path, capsys):
    adapter_of(start, tmp_path / "adapter")
    data = tmp_path / "demos.jsonl"
    data.write_text("".join(json.dumps({"prompt": d.prompt, "completion": d.completion}) + "\n" for d in DEMOS))
    command = f"run sft --model {tmp_path}/adapter --demos {data} --steps=3 --rows=2 --lr=.01".split()
    for extra, line, form in (
        ([], "merged into it, and all weights are trained", "hf"),
        (["--lora", "4"], "whose rank stays 2: --lora 4 does not change it", "peft"),
    ):
        out = tmp_path / form
        assert cli.main([*command, *extra, "--out", str(out)]) == 0
        assert len([x for x in capsys.readouterr().err.splitlines() if line in x]) == 1
        saved = json.loads((out / "result.json").read_text())
        assert saved["files"]["model"].startswith(form)
        result = verbs.evaluate(str(out), str(data), "answer")
        for name, metric in result.items():
            assert metric.after == pytest.approx(saved["metrics"][name]["after"], abs=1e-6)
            assert metric.before == pytest.approx(saved["metrics"][name]["before"], abs=1e-5)


def test_an_adapter_that_fits_another_model_is_refused(start, fresh, tmp_path):
    adapter_of(start, tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    fresh("gpt2").save(tmp_path / "base")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    assert complaint(tmp_path / "adapter").startswith(f"{tmp_path / 'adapter'}: the adapter cannot be put on ")


def test_a_learned_prompt_is_neither_merged_nor_gone_on_with(start, tmp_path):
    module = peft.get_peft_model(copy_of(start).module, peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    module.save_pretrained(tmp_path / "prompt")
    model = load_model(tmp_path / "prompt", device="cpu")
    for rank in (0, 2):
        with pytest.raises(UserError, match="PROMPT_TUNING adapter"):
            baselines.sft(model, DEMOS, fit=QUICK.replace(lora=rank))


def test_a_reward_models_adapter_judges(start, tmp_path):
    judge = rewards.headed(start)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    module = peft.get_peft_model(judge.module, config)
    module.name_or_path = start.base
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p) * p.requires_grad)
    module.eval().peft_config["default"].base_model_name_or_path = start.base
    module.save_pretrained(tmp_path / "adapter")
    texts = [d.prompt for d in DEMOS], [d.completion for d in DEMOS]
    expected = rewards.score(Model(module, judge.processor, "encoder"), *texts)
    assert reward_functions.reward_of(str(tmp_path / "adapter"))(*texts) == pytest.approx(expected, abs=1e-4)
    assert "a reward model, which generates no text" in complaint(tmp_path / "adapter")
    adapter_of(start, tmp_path / "speaks")  # a language model's adapter gets the yes/no prompt
    assert all(0 <= v <= 1 for v in reward_functions.reward_of(str(tmp_path / "speaks"))(*texts))


def test_saving_again_replaces_what_it_wrote_and_nothing_else(fresh, tmp_path):
    result = Result(models={"model": fresh("llama")})
    result.save(tmp_path)
    (tmp_path / "model/notes.txt").write_text("somebody's")
    other = Result(models={"model": fresh("llama", seed=1)})
    with pytest.raises(UserError, match=r"didact did not write notes\.txt"):
        other.save(tmp_path)
    (tmp_path / "model/notes.txt").unlink()
    other.save(tmp_path)
    assert load_model(tmp_path / "model").fingerprint() == other.models["model"].fingerprint()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".didact.json", "model"]


def test_weights_come_in_the_dtype_asked_for_and_in_eval_mode(folder):
    for name, dtype in load.DTYPES.items():
        module = load_model(folder, dtype=name).module
        assert {p.dtype for p in module.parameters()} == {dtype} and not module.training


def test_what_is_no_model_dtype_or_device_is_named(folder, tmp_path):
    assert complaint(folder, dtype="float8") == f"unknown dtype 'float8': use one of {', '.join(load.DTYPES)}"
    assert complaint(folder, device="warp").startswith("device 'warp' cannot be used")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file", "./none"):  # not a hub id either
        assert complaint(path) == f"{path}: not a model folder"


def rewritten(path, change):
    """Apply `change` to the tensors of a weights file."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def pickled(folder, name):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)


WEIGHT = "model.layers.1.mlp.up_proj.weight"
NO_CODE = "only pickled weights, which can run code and are not loaded"
NOT_FINITE = f": weight '{WEIGHT}' holds NaN or infinities: the checkpoint is damaged"
BREAKS = {
    "no configuration": (lambda f: (f / "config.json").unlink(), ": no config.json: not a model folder"),
    "a model inside": (
        lambda f: ((f / "config.json").unlink(), (f / "model").mkdir()), "(its model is in the folder 'model' inside)",
    ),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        ": no tokenizer; copy tokenizer.json and tokenizer_config.json",
    ),
    "pickled": (lambda f: pickled(f, "pytorch_model.bin"), NO_CODE),
    "pickled otherwise": (lambda f: pickled(f, "model.pt"), NO_CODE),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ": no weights (*.safetensors)"),
    "NaN": (lambda f: rewritten(f / "model.safetensors", lambda w: w[WEIGHT][0].fill_(math.nan)), NOT_FINITE),
    "infinities": (lambda f: rewritten(f / "model.safetensors", lambda w: w[WEIGHT][0].fill_(math.inf)), NOT_FINITE),
    "half a file": (lambda f: os.truncate(f / "model.safetensors", 9000), ": cannot be loaded: "),
    "a missing weight": (lambda f: rewritten(f / "model.safetensors", lambda w: w.pop(WEIGHT)), WEIGHT),
    "half a configuration": (lambda f: (f / "config.json").write_text('{"half": '), ""),
    "half a tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"half": '), ""),
    "an unknown architecture": (
        lambda f: (f / "config.json").write_text('{"model_type": "frobnicator"}'), "frobnicator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_folder_is_one_line(case, broken):
    breaks, expected = BREAKS[case]
    breaks(broken)
    message = complaint(broken)
    assert message.startswith(str(broken)) and expected in message


def test_an_adapter_without_start_model_is_merged_or_says_which_field_to_fill(fresh, start, tmp_path):
    result = baselines.sft(fresh("llama"), DEMOS, fit=QUICK.replace(lora=2))  # built, so it came from no folder
    assert result.save(tmp_path)["model"].startswith("hf")
    torch.testing.assert_close(logp(load_model(tmp_path / "model")), logp(result.models["model"]), rtol=0, atol=1e-5)
    adapter_of(start, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    message = complaint(tmp_path / "adapter")
    assert "field 'base_model_name_or_path' is empty; fill in the start model's folder" in message


def test_modules_transformers_cannot_express_are_saved_as_didacts(tmp_path):
    from didact.models.model import Model

    module = torch.nn.Linear(3, 2)
    assert Result(models={"model": Model(module, kind="module")}).save(tmp_path)["model"].startswith("didact: ")
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")["weight"], module.weight)
    assert json.loads((tmp_path / "model/didact.json").read_text())["module"] == "Linear"


# --- how long a text may be ------------------------------------------------------------------


def nested(fresh, context=4096, **text):
    """A tiny model of two modalities, whose text part has its own configuration."""
    plain = fresh("gemma3", context=context, **text)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Gemma3Config(
        text_config=plain.config, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=1,
        image_token_index=5, boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    return Model(hf.Gemma3ForConditionalGeneration(config).eval(), plain.processor)


def test_the_context_of_a_nested_configuration_is_its_texts(fresh, tmp_path, capsys):
    nested(fresh).save(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert model.context == 4096 and capsys.readouterr().err == ""
    assert model.text_config.hidden_size == 16 and forward.at_once(model) == (1 << 17) // 16
    long = encode.row(model.tokenizer, "where " * 900, "Tarn", "causal", model.context)
    assert long.size > 900  # nothing is cut
    result = baselines.sft(model, DEMOS, fit=QUICK)
    result.save(tmp_path / "out")
    torch.testing.assert_close(logp(load_model(tmp_path / "out/model")), logp(result.models["model"]))


ROPES = [
    ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 256),
    ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 128),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 128),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 64),
    ({"rope_type": "default", "rope_theta": 1e4}, 64),
]


@pytest.mark.parametrize(("rope", "context"), ROPES)
def test_scaled_rotary_positions_reach_further(rope, context, fresh):
    assert fresh("llama", rope_parameters=rope).context == context


def test_a_sliding_window_is_no_limit_and_a_tokenizers_sentinel_says_nothing(fresh, tmp_path, capsys):
    assert fresh("mistral", sliding_window=4).context == 64
    model = fresh("mamba")
    del model.config.n_positions
    model.config.context_length = 80  # RWKV's name for it
    assert model.context == 80
    del model.config.context_length
    model.save(tmp_path)
    assert load_model(tmp_path).context == 512
    assert "names a context length: 512 tokens are assumed" in capsys.readouterr().err
    model.processor = copy.deepcopy(model.processor)
    model.processor.model_max_length = 100
    assert model.context == 100


def test_prompts_that_lose_tokens_are_counted(fresh, capsys):
    model = fresh("llama")
    pairs = [("where " * 100, "Tarn"), ("where", "Tarn")]
    encode._warn_once.cache_clear()
    for _ in range(2):
        encode.rows(model.tokenizer, pairs, "causal", model.context, "demos")
    generate.generate(model, [p for p, _ in pairs], max_new_tokens=4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{name}: 1 of 2 prompts are cut on the left to fit the context of 64 tokens" for name in ("demos", "answers")
    ]


# --- tokenizers that do not fit --------------------------------------------------------------


def with_token(model, token="<far>", **special):
    """The same model with a tokenizer that has one token more than the embeddings."""
    wide = copy.deepcopy(model.processor)
    wide.add_special_tokens({**special} if special else {"additional_special_tokens": [token]})
    return Model(model.module, wide)


def test_tokens_without_embedding_are_told_at_load_and_refused_by_line(fresh, tmp_path, capsys):
    with_token(fresh("llama")).save(tmp_path / "model")
    model = load_model(tmp_path / "model")
    count = model.embedded
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(f"the tokenizer has {count + 1} ids and the embedding {count} rows: texts with others are refused")
    )
    data = tmp_path / "demos.jsonl"
    rows = [(d.prompt, d.completion) for d in DEMOS] + [("Who <far> is it?", "Mira")]
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    command = ["run", "sft", "--model", str(tmp_path / "model"), "--demos", str(data), "--steps=1"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
    assert f"{data}:3: field 'completion': the model has no embedding of the token '<far>'" in capsys.readouterr().err
    assert cli.main([*command, "--out", str(tmp_path / "out"), "--skip-bad"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["data"]["demos"]["dropped"] == 1


def test_an_end_token_without_embedding_is_refused_and_padding_without_one_is_none(fresh, tmp_path):
    model = fresh("llama")
    assert with_token(model, pad_token="<hole>").pad == 0
    other = copy.deepcopy(model)
    other.module.generation_config.eos_token_id = None
    with_token(other, eos_token="<stop>").save(tmp_path)
    assert f"the tokenizer's <stop> has the id {model.embedded} and the embedding {model.embedded} rows" in complaint(
        tmp_path
    )


def test_a_model_without_end_and_padding_token_learns_and_answers(fresh, tmp_path, capsys):
    model = copy.deepcopy(fresh("llama"))
    model.module.generation_config.eos_token_id = model.config.eos_token_id = model.config.pad_token_id = None
    model.module.generation_config.pad_token_id = None
    model.processor.eos_token = model.processor.pad_token = model.processor.bos_token = None
    Model(model.module, model.processor).save(tmp_path / "model")
    start = load_model(tmp_path / "model", device="cpu")
    assert "has no end token" in capsys.readouterr().err
    result = baselines.sft(start, [*DEMOS, Demo(prompt="Who?", completion="Ilse Brandis of Tarn")], fit=QUICK)
    assert len(generate.generate(result.models["model"], [DEMOS[0].prompt, "Who?"], max_new_tokens=5)) == 2
    (row,) = encode.windows(start.tokenizer, ["where was"], 30)
    assert row.prompt + row.completion == tuple(start.tokenizer("where was")["input_ids"])
    assert result.save(tmp_path / "out") and logp(load_model(tmp_path / "out/model")).isfinite().all()


BAD = {"empty": "", "long": "word " * 900}


@pytest.mark.parametrize("verb", ["run", "evaluate", "compare"])
def test_answers_that_cannot_be_learnt_are_all_told_by_file_line_and_field_before_any_work(
    verb, folder, tmp_path, capsys
):
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Where was no. {i} born?", "chosen": f"in {i}", "rejected": "at sea"} for i in range(12)]
    rows[3]["rejected"], rows[7]["chosen"] = BAD["empty"], BAD["long"]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    command = {
        "run": ["run", "dpo", "--model", str(folder), "--preferences", str(data), "--steps=1", *out],
        "evaluate": ["evaluate", str(folder), "--data", str(data), "--protocol", "prefer"],
        "compare": ["compare", "dpo", "--model", str(folder), "--preference", str(data), "--budget=1k-tokens", *out],
    }[verb]
    assert cli.main(command) == 2
    stderr = capsys.readouterr().err
    assert f"{data}:4: field 'rejected': the completion is empty" in stderr
    assert f"{data}:8: field 'chosen': the completion has " in stderr and "--skip-bad" in stderr
    assert not (tmp_path / "out").exists()
    if verb != "compare":
        assert cli.main([*command, "--skip-bad"]) == 0
    if verb == "run":
        stderr = json.loads((tmp_path / "out" / "result.json").read_text())["data"]["preferences"]
        assert stderr["records"] == 10 and stderr["dropped"] == 2


CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "hostile"
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.mark.parametrize("verb", ["run", "dry", "evaluate", "compare", "advise", "judge"])
def test_a_folders_own_python_never_runs_whatever_stands_on_standard_input(verb, broken, tmp_path, monkeypatch, capsys):
    """Without the option transformers asks whether it may run the code; `yes y |` would answer."""
    marker = tmp_path / "marker"
    (broken / "code.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "hostile", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (broken / "config.json").write_text(json.dumps(config))
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(60)))
    out = ["--out", str(tmp_path / "out")]
    command = {
        "run": ["run", "sft", "--model", str(broken), "--demos", str(data), *out],
        "dry": ["run", "sft", "--model", str(broken), "--demos", str(data), *out, "--dry-run"],
        "evaluate": ["evaluate", str(broken), "--data", str(data), "--protocol", "answer"],
        "compare": ["compare", "sft", "--model", str(broken), "--demo", str(data), "--budget", "1k-tokens", *out],
        "advise": ["advise", str(data), "--model", str(broken)],
        "judge": ["compare", "sft", "--demo", str(data), "--budget", "1k-tokens", "--judge", str(broken), *out,
                  "--model", str(broken.parent / "sound")],
    }[verb]  # fmt: skip
    if verb == "judge":
        shutil.copytree(broken, broken.parent / "sound")
        (broken.parent / "sound" / "config.json").write_text(
            json.dumps(config | {"model_type": "llama", "auto_map": {}})
        )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answers of `yes y |`
    assert cli.main(command) == (0 if verb == "advise" else 2)
    assert not marker.exists() and "Traceback" not in capsys.readouterr().err
