"""From an adapter to a folder for others: merged, described, uploaded; and models from llama.cpp's files."""

from __future__ import annotations

import base64
import io
import json
import shutil

import numpy as np
import pytest
import servers
import torch
import yaml

from didact import cli, files, verbs
from didact.infer import generate
from didact.models import adapters, load
from didact.models.model import copy_of
from didact.types import UserError, as_row


@pytest.fixture(scope="module")
def run(fresh, world, tmp_path_factory):
    """A run that saved an adapter, and its start model."""
    root = tmp_path_factory.mktemp("publish")
    fresh("llama", d=32, context=128).save(root / "start")
    (root / "demos.jsonl").write_text("".join(json.dumps(as_row(r)) + "\n" for r in world.retain[:12]))
    command = ["run", "sft", "--demos", str(root / "demos.jsonl"), "--model", str(root / "start"), "--lora", "2"]
    assert cli.main([*command, "--lr", "1e-2", "--steps", "2", "--rows", "4", "--out", str(root / "run")]) == 0
    return root


def test_an_adapter_is_merged_and_says_the_same(run, capsys):
    assert cli.main(["merge", str(run / "run"), "--out", str(run / "whole")]) == 0
    assert "nats per token" in capsys.readouterr().out
    whole, adapter = load.load(run / "whole"), load.load(run / "run" / "model")
    assert not adapters.adapted(whole) and adapters.adapted(adapter)
    ids = torch.tensor([whole.tokenizer("Where was Noor born?")["input_ids"]])
    logits = [m.module(ids).logits for m in (whole, adapter, load.load(run / "start"))]
    assert torch.allclose(logits[0], logits[1], atol=1e-4) and not torch.allclose(logits[0], logits[2], atol=1e-2)
    card = (run / "whole" / "README.md").read_text()
    assert "library_name: transformers" in card and "AutoPeft" not in card and not files.damage(run / "whole")
    with pytest.raises(UserError, match="there is nothing to merge"):
        verbs.merge(str(run / "whole"))


def test_what_does_not_agree_is_not_kept(run, monkeypatch):
    def wrong(model):
        other = copy_of(plain(model))
        with torch.no_grad():
            next(other.module.parameters()).mul_(3)
        return other

    plain = adapters.merged
    monkeypatch.setattr(adapters, "merged", wrong)
    with pytest.raises(UserError, match=r"differs by .* nats per token: not saved"):
        verbs.merge(str(run / "run"), str(run / "wrong"))
    assert not (run / "wrong").exists()


def test_a_card_stands_beside_every_saved_model_and_holds_what_was_measured(run):
    text = (run / "run" / "model" / "README.md").read_text()
    saved = json.loads((run / "run" / "result.json").read_text())
    meta = yaml.safe_load(text.split("---")[1])
    assert meta["library_name"] == "peft" and set(meta["tags"]) >= {"didact", "sft"} and "base_model" not in meta
    values = {m["type"]: m["value"] for m in meta["model-index"][0]["results"][0]["metrics"]}
    assert values["token_accuracy"] == saved["metrics"]["token_accuracy"]["after"]
    assert "demos.jsonl" in text and str(run) not in text  # local paths are not published
    assert not files.damage(run / "run" / "model") and not files.foreign(run / "run" / "model")
    phrases = [
        "compare",
        "sft",
        "--demo",
        str(run / "demos.jsonl"),
        "--model",
        str(run / "start"),
        "--budget",
        "1k-tokens",
    ]
    assert (
        cli.main(
            [*phrases, "--seeds", "1", "--lrs", "1e-3", "--beyond-lrs", "0", "--rows", "2", "--out", str(run / "which")]
        )
        == 0
    )
    meta = yaml.safe_load((run / "which" / "models" / "sft" / "README.md").read_text().split("---")[1])
    assert meta["library_name"] == "transformers" and "sft" in meta["tags"]


class Hub:
    """The part of the hub's interface that an upload needs; `commits` has the uploads."""

    def __init__(self, status="200 OK"):
        self.status, self.paths, self.commits = status, [], []

    def __call__(self, connection, path, body):
        self.paths.append(path)
        response = {}
        if path.endswith("/repos/create"):
            response = {"url": f"{self.served.url.removesuffix('/v1')}/me/mine", "name": "me/mine", "id": "1"}
        elif "/preupload/" in path:
            names = [f["path"] for f in json.loads(body)["files"]]
            response = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif "/commit/" in path:
            self.commits += [json.loads(line) for line in body.splitlines()]
            response = {
                "success": True,
                "commitUrl": f"{self.served.url.removesuffix('/v1')}/me/mine/commit/1",
                "commitOid": "1",
                "pullRequestUrl": None,
            }
        else:
            response = {"id": "me/mine", "sha": "1", "siblings": []}
        if not self.status.startswith("200"):
            response = {"error": "no token of yours: hf_secret12345"}
        connection.sendall(servers.said(json.dumps(response), self.status, Content_Type="application/json"))


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    def start(status="200 OK", token="hf_secret12345"):
        server = Hub(status)
        served = servers.Raw(server)
        monkeypatch.setattr(constants, "ENDPOINT", served.url.removesuffix("/v1"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", token)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        server.served = served
        return server

    return start


def test_a_model_is_sent_with_its_card_and_the_token_is_never_shown(run, hub, capsys):
    server = hub()
    command = ["push", str(run / "run"), "--to", "me/mine"]
    assert cli.main([*command, "--dry-run"]) == 0 and not server.paths
    stdout = capsys.readouterr().out
    assert "README.md" in stdout and "didact merge" in stdout and "nothing was sent" in stdout
    assert cli.main(command) == 0
    sent = {c["value"]["path"]: base64.b64decode(c["value"]["content"]) for c in server.commits if c["key"] == "file"}
    path = run / "run" / "model"
    assert sent["adapter_model.safetensors"] == (path / "adapter_model.safetensors").read_bytes()
    assert sent["README.md"] == (path / "README.md").read_bytes() and ".didact.json" not in sent
    refused = hub("403 Forbidden")
    assert cli.main(command) == 2 and refused.paths
    captured = capsys.readouterr()
    assert "hf_secret12345" not in captured.out + captured.err and "refuses me/mine" in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_what_cannot_be_sent_is_one_line(run, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    hub().served.socket.close()
    with pytest.raises(UserError, match=r"could not be sent to .*: ConnectError"):
        verbs.push(str(run / "run"), "me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        verbs.push(str(run / "run"), "me/mine")
    with pytest.raises(UserError, match="owner/name is expected"):
        verbs.push(str(run / "run"), "mine")
    with pytest.raises(UserError, match="not a model folder"):
        verbs.push(str(tmp_path), "me/mine")
    shutil.copytree(run / "run" / "model", tmp_path / "model")
    with open(tmp_path / "model" / "adapter_model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        verbs.push(str(tmp_path / "model"), "me/mine")


def test_a_file_of_llama_cpp_opens_as_the_model_it_was_made_of(fresh, tmp_path, world):
    gguf = pytest.importorskip("gguf")
    model = fresh("llama", d=32, heads=2, context=128)
    write_gguf(gguf, model, tmp_path / "tiny.gguf")
    again = load.load(tmp_path / "tiny.gguf")
    text = world.forget[0].prompt
    assert again.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    assert torch.allclose(again.module(ids).logits, model.module(ids).logits, atol=1e-4)
    tuned = adapters.lora(copy_of(again), 2)
    assert tuned.save(tmp_path / "merged") == "hf"  # not a folder that peft could open


def write_gguf(gguf, model, path):
    """Write a Llama in llama.cpp's format: its names, and query and key rows in its order for rotary positions."""
    config, tokenizer, state = model.config, model.tokenizer, model.module.state_dict()
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    out.add_token_types([1] * config.vocab_size)
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]])
    for name in ("bos", "eos"):
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(out, f"add_{name}_token_id")(token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in state.items():
        array = value.float().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                half = array.shape[0] // heads // 2
                array = array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_chat_shows_both_models_each_with_its_own_history(run, monkeypatch, capsys):
    messages = []
    spoken = generate.sample

    def listened(model, prompts, n, how):
        messages.append(str(prompts[0]))
        return spoken(model, prompts, n, how)

    monkeypatch.setattr(generate, "sample", listened)
    monkeypatch.setattr("sys.stdin", io.StringIO("Where was Noor born?\nAnd when?\n/new\nWho?\n/quit\nnever\n"))
    assert cli.main(["try", str(run / "run"), "--max-new-tokens", "4"]) == 0
    stdout = capsys.readouterr().out
    assert stdout.count("before") >= 3 and "you  And when?" in stdout and "never" not in stdout
    chat = verbs.Chat(str(run / "run"), 4)
    reply = chat.say("Where was Noor born?")
    assert set(reply) == {"before", "after"} and messages[:2] == ["Where was Noor born?"] * 2
    second = {name: f"Where was Noor born?\n{reply[name]}\nAnd when?" for name in reply}
    assert messages[2:4] == list(second.values()) and messages[4:6] == ["Who?"] * 2  # downloaded again
