"""Fast refusals: every verb reports errors that need no model before torch is imported."""

import json
import subprocess
import sys

import pytest

from didact import catalogue
from didact.catalogue import make
from didact.data import read
from didact.evaluate import protocols
from didact.types import Demo, Preference, Text

MODEL = ("--model", "model")
REFUSED = {
    ("run", "npo", *MODEL, "--forget", "none.jsonl"): "none.jsonl: no such file",
    ("run", "npo", "--model", "./nowhere", "--forget", "demos.jsonl"): "./nowhere: not a model folder",
    ("run", "npo", *MODEL, "--forget", "asked.jsonl"): "(--map prompt=question,completion=answer renames)",
    ("run", "npo", *MODEL, "--data", "demos.jsonl"): "give files of records by their own options: --forget, --retain",
    ("run", "npo", *MODEL): "needs --forget (demo)",
    ("run", "sft"): "sft has no embedded example",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--learning-rate", "1e-4"): "did you mean --lr?",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--lr", "-1"): "--lr: -1: must be 0 or more",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--device", "gpu"): "device 'gpu' cannot be used",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--dtype", "int3"): "unknown dtype 'int3'",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--score-on", "none.jsonl"): "none.jsonl: no such file",
    ("run", "sft", *MODEL, "--demos", "demos.jsonl", "--out", "demos.jsonl"): "is the input --demos demos.jsonl",
    ("run", "sft", "--model", "http://key@host/v1", "--demos", "demos.jsonl"): "the server's address",
    ("compare", "sft", *MODEL, "--demo", "demos.jsonl"): "--budget is required",
    ("compare", "sft", *MODEL, "--demo", "demos.jsonl", "--budget", "1M"): "as in 20M-tokens",
    ("compare", "sft", "dpo", *MODEL, "--demo", "demos.jsonl", "--budget", "1M-tokens"):
        "dpo needs preferences (preference), which these records (demo) do not give: add --preference FILE",
    ("compare", "sft", "few-shot", *MODEL, "--preference", "pairs.jsonl", "--budget", "1M-tokens"):
        "few-shot gives no model, so it cannot be scored by 'prefer': leave it out",
    ("compare", "sft", *MODEL, "--demo", "demos.jsonl", "--budget", "1M-tokens", "--protocol", "prefer"):
        "protocol 'prefer' cannot score demo records",
    ("compare", "sfft", *MODEL, "--demo", "demos.jsonl", "--budget", "1M-tokens"): "did you mean sft?",
    ("compare", "arm.yaml", *MODEL, "--demo", "demos.jsonl", "--budget", "1M-tokens"): "unknown preset 'quick' of npo",
    ("compare", "sft", "--learning-rate", "1"): "did you mean --lrs?",
    ("evaluate", "model", "--data", "asked.jsonl", "--protocol", "answer"): "asked.jsonl:1 and 1 more: field 'prompt'",
    ("evaluate", "nowhere", "--data", "demos.jsonl", "--protocol", "answer"): "nowhere: no such folder",
    ("try", "nowhere", "--prompt", "x"): "nowhere: no such folder",
    ("claim", "npoo"): "did you mean npo",
}  # fmt: skip
SCRIPT = """
import contextlib, io, json, sys
from didact import cli
out = []
for words in json.load(open("refused.json")):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(words)
    out.append([code, err.getvalue(), "torch" in sys.modules])
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """The message of each command, all run in one process that never imports torch."""
    path = tmp_path_factory.mktemp("early")
    for name, rows in {
        "demos": [{"prompt": "p", "completion": "c"}], "asked": [{"question": "q", "answer": "a"}] * 2,
        "pairs": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
    }.items():  # fmt: skip
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / "model" / name).write_text("{}")
    (path / "arm.yaml").write_text("method: npo:quick\n")
    (path / "refused.json").write_text(json.dumps(list(REFUSED)))
    process = subprocess.run([sys.executable, "-c", SCRIPT], cwd=path, capture_output=True, text=True, check=True)
    assert not (path / "runs").exists()
    return dict(zip(REFUSED, json.loads(process.stdout), strict=True))


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_refusal_imports_no_torch(words, messages):
    code, err, torch = messages[words]
    assert (code, torch) == (2, False) and REFUSED[words] in err and len(err.strip().splitlines()) <= 2, err


def test_what_the_catalogue_says_of_protocols_is_what_they_are():
    assert make.make_protocols() == catalogue.protocols()
    demo, pair = Demo(prompt="p", completion="c"), Preference(prompt="p", chosen="c", rejected="r")
    for records in (
        {"demo": [demo]},
        {"forget": [demo], "retain": [demo]},
        {"preference": [pair]},
        {"x": [Text(text="t")]},
    ):
        assert catalogue.protocol_for(records) == protocols.for_records(records)
        for name in catalogue.protocols():
            assert bool(catalogue.scored(name, records)) == bool(protocols.by_name(name).records(records)), name


def test_records_read_ahead_are_given_once_and_never_after_a_change(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n')
    early = read.ahead(path, "demo", {}, False, "last")
    assert read.read(path, "demo", {}) is early and read.read(path, "demo", {}) is not early
    read.ahead(path, "demo", {}, False, "last")
    path.write_text('{"prompt": "p", "completion": "changed"}\n')
    assert read.read(path)[0].completion == "changed"
