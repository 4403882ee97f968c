"""Weights held in nf4 or int8, and adapters trained on them."""

import importlib.util

import pytest
import torch
from shapes import MORE, byte_tokenizer

import didact
from didact import baselines, verbs
from didact.cli import main
from didact.data import encode
from didact.files import read_json
from didact.learn import language
from didact.models import adapters, build, forward, places
from didact.types import Demo, Fit, UserError

DEMOS = [Demo(prompt="ab", completion="cd"), Demo(prompt="efg", completion="hi")]
FIT = Fit(lr=1e-2, steps=4, rows=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    cache = {}
    for kind in ("llama", "gpt2"):
        model = build.build(kind, byte_tokenizer(), d=64, layers=2, heads=4, ffn=128, context=64, **MORE[kind])
        model.save(cache.setdefault(kind, tmp_path_factory.mktemp(kind) / "m"))
    return cache


@pytest.mark.parametrize("kind, held", [("llama", "nf4"), ("gpt2", "nf4"), ("llama", "int8"), ("gpt2", "int8")])
def test_an_adapter_is_trained_on_them_and_opens_on_the_same(kind, held, folders, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install didact[quantize]")
    plain, start = didact.load(folders[kind], "cpu"), didact.load(folders[kind], "cpu", quantize=held)
    assert start.parameters == plain.parameters
    rows = [encode.row(start.tokenizer, d.prompt, d.completion, start.kind, start.context) for d in DEMOS]
    exact, ours = (forward.row_logp(model, rows)[0] for model in (plain, start))
    assert not torch.equal(exact, ours)
    torch.testing.assert_close(ours, exact, rtol=0.05, atol=0)
    before = start.fingerprint()
    result = baselines.sft(start, DEMOS, fit=FIT.replace(lora=4))
    assert result.history[-1]["loss"] < 0.97 * result.history[0]["loss"]
    learnt = [p for n, p in result.models["model"].module.named_parameters() if "lora_B" in n]
    assert start.fingerprint() == before and all(p.abs().max() > 0 for p in learnt)  # also those of the first layer
    result.save(tmp_path)
    again = didact.load(tmp_path / "model", "cpu")
    assert again.quantized == held
    assert torch.equal(forward.row_logp(again, rows)[0], forward.row_logp(result.models["model"], rows)[0])
    with pytest.raises(UserError, match=f"in {held} cannot be merged"):
        adapters.merged(again)
    with pytest.raises(UserError, match=f"weights in {held} cannot be trained"):
        language.train(start, {"a": language.single(rows)}, language.nll, FIT, quiet=True)


def test_a_comparison_and_evaluate_hold_the_start_in_them(folders, tmp_path):
    """A comparison's adapters use it as base, and a run's start model is scored in the same quantisation."""
    pytest.importorskip("bitsandbytes", reason="pip install didact[quantize]")
    data = tmp_path / "d.jsonl"
    data.write_text("".join(f'{{"prompt": "p{i}", "completion": "c{i}"}}\n' for i in range(20)))
    start = ["--model", str(folders["llama"]), "--device=cpu", "--quantize=nf4", "--lora=2"]
    command = ["compare", "sft", *start, "--demo", str(data), "--out", str(tmp_path / "compare"), "--seeds=1"]
    assert main([*command, "--budget=2k-tokens", "--lrs=1e-3"]) == 0
    assert didact.load(tmp_path / "compare/models/sft", "cpu").quantized == "nf4"
    command = ["run", "sft", *start, "--demos", str(data), "--score-on", str(data), "--out", str(tmp_path / "run")]
    assert main([*command, "--steps=1", "--lr=1e-3"]) == 0
    saved = read_json(tmp_path / "run/result.json")["metrics"]["probability"]["before"]
    assert verbs.evaluate(f"{tmp_path}/run", str(data), "answer", device="cpu")["probability"].before == pytest.approx(
        saved
    )


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_what_cannot_be_is_told_in_a_line_before_anything_is_loaded(verb, folders, tmp_path, monkeypatch, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    command = [verb, "sft", "--model", str(folders["llama"]), "--demos", str(data), "--out", str(tmp_path / "o")]
    command += ["--budget=2k-tokens"] * (verb == "compare")
    monkeypatch.setattr("didact.models.load.load", lambda *a, **k: pytest.fail("it was loaded"))
    assert main([*command, "--quantize", "nf4", "--lora", "0"]) == 2
    installed = importlib.util.find_spec("bitsandbytes") is not None
    mend = "quantized weights are not trained, only an adapter: --lora 8" if installed else "pip install"
    assert mend in capsys.readouterr().err
    assert main([*command, "--quantize", "fp4", "--lora", "8"]) == 2
    assert "nf4, int8" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'didact\[quantize\]'"):
        places.check_quantize("int8", folders["llama"])
    (file := tmp_path / "m.gguf").touch()
    with pytest.raises(UserError, match="save it as a folder"):
        places.check_quantize("int8", file)
