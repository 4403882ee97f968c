"""The contract of every registered method, tested from its declaration alone; new methods are included automatically.

The user's files are the records of the method's embedded example, or of another one for baselines; models are tiny and
untrained, so that these tests do not show whether a method works: its own tests and its claim do.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import die_after, server
from safetensors.torch import load_file
from servers import NAME, Serve, Small
from shapes import brief, tiny
from vllm_like import Vllm

from didact import bounds, catalogue, cli, files, options, registry, verbs
from didact.catalogue import make
from didact.claims.problem import Problem
from didact.evaluate import protocols
from didact.infer import lm as language_models
from didact.infer import qa_prompts
from didact.learn import checkpoint, language
from didact.learn import fit as loop
from didact.models import adapters, load
from didact.models.model import Model, copy_of
from didact.parallel import processes
from didact.requests import Common
from didact.types import Cost, Fit, UserError, as_row
from didact.verbs import job, running, saved

make.make()  # imports and registers every method
METHODS = registry.METHODS
ENTRIES = catalogue.read()
ASKING = [n for n, e in ENTRIES.items() if e["answers"]]
REMOTE = [n for n, e in ENTRIES.items() if e["capabilities"] and language_models.SERVED.issuperset(e["capabilities"])]
ROUNDS = [n for n, e in ENTRIES.items() if e["rounds"]]
TRAINED = [n for n, e in ENTRIES.items() if e["fit"] and "models" in e["gives"] and "model" in e["needs"]]
RECORDS = 14  # records of each file
SHORT = {"steps": "3", "rows": "3", "lr": "1e-3"}
TYPES = {"causal": ("llama", "gpt2"), "seq2seq": ("t5",)}
BORROWED = {"sft": "spin", "dpo": "genarm", "kto": "d2o", "simpo": "genarm", "few-shot": "gpt3"}  # baselines' records
BY_KIND = {"preference": "genarm", "demo": "spin", "judged": "d2o"}  # examples of methods of other packages
INSTEAD = {
    "dual-form": {"draws": 3, "lrs": (0.1,)},
    "icl-vs-gd": {"draws": 3, "orders": 2, "epochs": 1, "lrs": (0.1,)},
    "internet-augmented": {"paragraphs": 2, "samples": 1},  # for speed
    "tool-rft": {"judge": "self", "gap": 0.0, "floor": -1.0},  # all answers of an untrained model are equally wrong
    "unlearning-survey.kga": {"specialist_epochs": 1.0},
    "phf:filter": {"threshold": -1e3},
    "mtob": {"conditions": ("W",), "asking.max_new_tokens": 8},  # its book and answers are longer than the context
    "gpicl": {"sequences": 40},
    "bayesian-prism": {"prompts": 20},
    "evolve": {"bandit.horizon": 6, "trajectories": 3, "trials": 2},
    "evolve.prompt": {"bandit.horizon": 6, "trials": 2},
    "llambo": {"suggest": 1, "search.candidates": 3, "search.gens": 2},
    "infalign:optimum": {"kl": None, "calibration": None},  # which it does not support
}
MOVING = {"sft", "spin", "genarm"}  # copies, rounds and ensembles; the others run in `make soak`
WHOLE = {
    "exact-extract.rss", "exact-extract.tune",  # adafactor needs whole matrices
    "dual-process", "dual-process.pretrain",  # change embeddings between steps
    "bayesian-prism", "gpicl", "mesa-gd",  # train modules of their own
}  # fmt: skip
PLANLESS = {"gpt3.pretrain", "dual-form.momentum", "icll"}  # transformers has no parallel plan for their architectures
UNSTAGED = {
    "context-preference",  # trains a reward model first
    "unlearning-survey.eul", "unlearning-survey.kul",  # run the model twice, and between steps
}  # fmt: skip
LAYOUTS = {"fsdp2": WHOLE, "1x1x2": WHOLE | PLANLESS, "2x1x1": WHOLE | PLANLESS | UNSTAGED}  # and which each refuses
DRAWN = {"hindsight"}  # its masks are drawn for a process's rows, like dropout
CONTEXT = {"tool-rft": 1024}  # context of the model, where prompts are long; 256 elsewhere
BAD = [-1, -1.0, 0, 0.0, 1.0, 1.5, 2, (), (-1.0,), (0.0,), (2.0, 2.0), (0.5, -0.5), [1.0, 0.0], "no such", ("no such",)]


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """Disable training inside the block: an example's start model stays untrained, or gets a single step."""
    patch, fit = pytest.MonkeyPatch(), loop.fit
    no_training = lambda model, *a, **k: language.TrainResult(copy_of(model), [], Cost(), checkpoint.State())  # noqa: E731
    patch.setattr(language, "train", no_training)
    patch.setattr(loop, "fit", lambda *a, steps, warmup=0, **k: fit(*a, steps=min(steps, 1), **k))
    patch.setenv("DIDACT_CACHE", "off")
    try:
        yield
    finally:
        patch.undo()


@pytest.fixture(scope="session")
def problem() -> Any:
    """`problem(name)`: a method's embedded example without its training."""
    cache: dict[str, Problem] = {}

    def get(name: str) -> Problem:
        kind = next((n["kind"] for n in ENTRIES[name]["needs"].values() if n["kind"] != "model"), "")
        borrowed = BY_KIND[kind] if "package" in ENTRIES[name] else BORROWED.get(name, name)
        if borrowed not in cache:
            with untrained():
                cache[borrowed] = job.example(borrowed, 0)
        example = cache[borrowed]
        return example if borrowed == name else dataclasses.replace(example, options={}, fit={})

    return get


@pytest.fixture(scope="session")
def user(problem: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`user(name, kind)`: a `didact run` command with a tiny model of this type and the example's files."""
    root = tmp_path_factory.mktemp("user")

    def words(name: str, kind: str = "llama", preset: str = "") -> list[str]:
        entry, example = ENTRIES[name], problem(name)
        context = CONTEXT.get(name, 256)
        folder = root / f"{kind}-{context}"
        if not folder.exists():
            model = tiny(kind, context=context)
            if kind == "t5":  # like every T5's
                model.processor = copy.deepcopy(model.tokenizer)
                model.processor.add_special_tokens({"additional_special_tokens": list(qa_prompts.SENTINELS)})
                model.module.resize_token_embeddings(len(model.processor), mean_resizing=False)
            brief(model).save(folder)
        out = [
            "run",
            f"{name}:{preset}" if preset else name,
            *(["--model", str(folder)] if "model" in entry["needs"] and example.model else []),
        ]
        kinds = {type(rows[0]).__name__.lower(): rows for rows in example.data.values() if rows}
        for parameter, need in entry["needs"].items():
            rows = example.data.get(parameter) or (kinds.get(need["kind"]) if need["required"] else None)
            if need["kind"] != "model" and rows:
                path = root / f"{name}-{parameter}.jsonl"
                files.write_lines(path, (as_row(r) for r in list(rows)[:RECORDS]))
                out += [f"--{parameter}", str(path)]
        theirs = entry["presets"].get(preset, {})
        own = {k: v for k, v in example.options.items() if k in options.flat(entry) and k not in theirs}
        short = {k: v for k, v in SHORT.items() if entry["fit"]}
        for option, value in {**own, **short, **INSTEAD.get(name, {}), **INSTEAD.get(f"{name}:{preset}", {})}.items():
            values = [*map(str, value)] if isinstance(value, list | tuple) else [str(value)]
            out += [f"--{option}", *values] if value not in ("", [], (), None) else []
        return [*out, "--device", "cpu", "--chat", "plain"]

    return words


def run(words: list[str], out: Path) -> dict[str, Any]:
    """Run a command that must succeed and return its result."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        code = cli.main([*words, "--out", str(out)])
    assert code == 0, stdout.getvalue()
    return dict(files.read_json(out / "result.json"))


@pytest.fixture(scope="session")
def ran(user: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`ran(name, kind)`: the folder of a method's run on a user's files, run once."""
    cache: dict[tuple[str, str], Path] = {}

    def get(name: str, kind: str) -> Path:
        if (name, kind) not in cache:
            cache[name, kind] = tmp_path_factory.mktemp("ran") / "out"
            run(user(name, kind), cache[name, kind])
        return cache[name, kind]

    return get


def same_numbers(words: list[str], out: Path) -> None:
    """Check that the saved model, reloaded, has the scores in result.json on the same records."""
    name, _, preset = words[1].partition(":")
    entry = ENTRIES[name]
    if not entry["protocol"]:  # its metrics are findings of its own
        return
    prepared = verbs.prepare(options.parser(entry).parse(words[2:], preset or None))
    model, start, result = saved._saved(str(out), Common(device="cpu"))
    if running._scoring(prepared) is None:  # no records that its protocols score
        return
    records = {k: v for k, v in prepared.scored.items() if k != "gold"}
    scoring = protocols.Scoring(
        records=records, start=start, seed=result["seed"], options=saved._options(result), end=saved._with_end(result)
    )
    scores = running.scored(entry, model, scoring)
    assert scores.keys() == result["metrics"].keys()
    for measure, value in scores.items():
        assert value.value == pytest.approx(result["metrics"][measure]["after"], abs=1e-6, rel=1e-6), measure


def refused(words: list[str], out: Path) -> str:
    """Run a command that must be refused and return its one-line message; no files may be left behind."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        code = cli.main([*words, "--out", str(out)])
    text = stdout.getvalue().strip()
    assert code == 2 and text.startswith("didact: ") and "\n" not in text and not out.exists(), text
    return text


def test_the_catalogue_is_current() -> None:
    assert make.make() == {name: entry for name, entry in sorted(ENTRIES.items()) if "package" not in entry}
    written = (make.DOCS / "llms.txt").read_text(encoding="utf-8")
    assert make.llms(make.make()) == written


@pytest.mark.parametrize("name", ENTRIES)
def test_the_declaration_is_whole(name: str) -> None:
    entry, method = ENTRIES[name], METHODS[name]
    own = options.flat(entry)
    assert entry["help"] and all(n["help"] for n in entry["needs"].values())
    assert len(entry["options"]) <= 15
    assert all(protocols.by_name(p) for p in entry["protocol"])
    for preset in entry["presets"].values():
        fit = {k.removeprefix("fit."): v for k, v in preset.items() if k.startswith("fit.")}
        mine = {k: v for k, v in preset.items() if not k.startswith("fit.")}
        assert not mine.keys() - own.keys()
        method.check(registry.assemble(method.function, mine))
        Fit(**fit)
    code = Path(str(sys.modules[method.module].__file__)).read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 180
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert cli.main(["explain", name]) == 0
    assert entry["paper"] in stdout.getvalue()
    assert all(o["help"] and f"--{o['name']} " in stdout.getvalue() for o in (*own.values(), *entry["fit"]))


@pytest.mark.parametrize("name", ENTRIES)
def test_an_option_out_of_bounds_is_one_line(name: str, user: Any, tmp_path: Path) -> None:
    method = METHODS[name]
    bounded = {}
    for option in options.flat(ENTRIES[name]):
        outer, _, inner = option.partition(".")
        default = method.parameters[outer].default
        hint = bounds.hints_of(type(default))[inner] if inner else method.hints[outer]
        if (bad := next((b for b in BAD if bounds.violation(hint, b)), None)) is not None:
            bounded[option] = bad
            with pytest.raises(UserError, match=rf"^{name}: {outer}(\.| =).*must be") as error:
                method.check(registry.assemble(method.function, {option: bad}))
            assert "\n" not in str(error.value)
    scalar = {o: b for o, b in bounded.items() if isinstance(b, int | float)}
    for option, bad in list(scalar.items())[:1]:
        text = refused([*user(name), f"--{option}={bad}"], tmp_path / "out")
        assert option.split(".")[-1] in text and "must be" in text


@pytest.mark.parametrize("name", ENTRIES)
def test_a_dry_run_writes_nothing_and_a_run_takes_the_steps_it_said(name: str, user: Any, tmp_path: Path) -> None:
    command = user(name)
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert cli.main([*command, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    if ENTRIES[name]["fit"]:
        assert any(line.split() == ["steps", "3"] for line in stdout.getvalue().splitlines())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(n, k, marks=pytest.mark.soak if k == "gpt2" and n not in MOVING else ())
        for n, e in ENTRIES.items()
        for group in e["kinds"]
        for k in TYPES.get(group, ())
    ],
)
def test_a_users_files_and_models(name: str, kind: str, user: Any, ran: Any) -> None:
    """A run on every type of model; the saved model reloads and has the scores in result.json."""
    command, entry, out = user(name, kind), ENTRIES[name], ran(name, kind)
    result = files.read_json(out / "result.json")
    assert result["status"] == "done" and (out / "report.html").exists()
    if "models" not in entry["gives"] or not (out / "model").exists():
        return
    path = result["files"]["model"]
    generates = entry["protocol"] not in ([], ["extract"], ["contexts"])  # questions and rewards have no prompts
    if generates and any(not m.startswith("general_") for m in result["metrics"]):
        assert files.read_json(out / "samples.json")
    again = saved._saved(str(out), Common(device="cpu"))[0]
    assert isinstance(again, Model)
    if path.startswith("hf"):
        import transformers

        auto: Any = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
        auto = transformers.AutoModelForSequenceClassification if again.kind == "encoder" else auto
        plain = auto.from_pretrained(out / "model")
        assert Model(plain, again.processor, again.kind).fingerprint() == again.fingerprint()
    same_numbers(command, out)


@pytest.mark.parametrize(
    ("name", "preset", "start"),
    [
        pytest.param(n, p, s, marks=() if n in MOVING and s and not p else pytest.mark.soak)
        for n in TRAINED
        if ENTRIES[n]["needs"]["model"]["required"]
        for p in ("", *ENTRIES[n]["presets"])
        for s in ("", "adapter", "adapter --lora 3")
        if p or s
    ],
)
def test_whatever_the_start_what_is_saved_has_the_numbers_of_the_result(
    name: str, preset: str, start: str, user: Any, tmp_path: Path
) -> None:
    """A start adapter is merged, or trained further with LoRA; every preset saves the model it measured."""
    command = [*user(name, preset=preset), *start.split()[1:]]
    if start:
        index = command.index("--model") + 1
        base = Path(command[index])
        command[index] = str(base.parent / "adapter" / base.name)
        if not Path(command[index]).exists():
            model = adapters.lora(load.load(base, "cpu"), 2)
            with torch.random.fork_rng(), torch.no_grad():
                for p in model.module.parameters():  # an untrained adapter changes nothing
                    p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
            with files.new_folder(Path(command[index])) as fresh:
                model.save(fresh)
    result = run(command, tmp_path / "out")
    same_numbers(command, tmp_path / "out")
    if start and result["files"]["model"].startswith("peft"):
        loaded = files.read_json(tmp_path / "out" / "model" / "adapter_config.json")
        assert loaded["r"] == 2 and loaded["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("name", TRAINED)
def test_killed_once_it_goes_on_to_the_same_bits(
    name: str, user: Any, ran: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    whole, command = ran(name, "llama"), [*user(name), "--save-every", "1"]
    monkeypatch.setenv("DIDACT_CACHE", "off")
    ready = server.Event()
    process = server.Process(target=die_after, args=(2, [*command, "--out", str(tmp_path / "again")], ready))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = run(command, tmp_path / "again")
    both = (whole, tmp_path / "again")
    weights = [sorted((folder / "model").rglob("*.safetensors")) for folder in both]
    assert weights[0] and [p.read_bytes() for p in weights[0]] == [p.read_bytes() for p in weights[1]]
    histories = [(folder / "history.jsonl").read_text() for folder in both]
    assert histories[0] == histories[1] and again["status"] == "done"


@pytest.mark.soak
@pytest.mark.parametrize("parallel", LAYOUTS)
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_over_which_the_weights_lie_give_the_model_of_one(
    name: str, parallel: str, user: Any, tmp_path: Path
) -> None:
    """Equal up to rounding; or refused in one line."""
    command = [*user(name), "--dtype", "float64"]  # so that rounding cannot change the samples
    codes = processes.run(2, cli.main, [*command, "--parallel", parallel, "--out", str(tmp_path / "two")])
    if name in LAYOUTS[parallel]:
        assert codes == [2, 2]
        result_path = tmp_path / "two/result.json"
        assert not result_path.exists() or files.read_json(result_path)["status"] == "failed"
        return
    assert codes == [0, 0]
    if name in DRAWN:
        return
    run(command, tmp_path / "one")
    one, two = (sorted((tmp_path / run_name / "model").rglob("*.safetensors")) for run_name in ("one", "two"))
    assert one and len(one) == len(two)
    for mine, other in zip(one, two, strict=True):
        torch.testing.assert_close(load_file(mine), load_file(other), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_of_other_options_is_not_resumed(name: str, user: Any, tmp_path: Path) -> None:
    """Every option that a run may change belongs to the identity of its checkpoints."""
    method, inputs = METHODS[name], {}
    command = user(name)
    request = options.parser(ENTRIES[name]).parse(command[2:])
    prepared = verbs.prepare(request)
    arguments = {"model": prepared.model, **prepared.train, **prepared.options}
    with registry.identified(method, arguments):
        first = registry.identity()
    for option in arguments:
        with registry.identified(method, {**arguments, option: "something else"}):
            inputs = registry.identity()
        assert inputs != first and {k for k in inputs if inputs[k] != first.get(k)} == {option}


@pytest.mark.soak
@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if not e["baseline"] and "package" not in e])
def test_the_embedded_example_runs(name: str, tmp_path: Path) -> None:
    result = run(["run", name], tmp_path / "out")
    json.dumps(result)
    assert result["status"] == "done" and (result["metrics"] or result["findings"])


@pytest.mark.parametrize("name", ["mtob", "self-mining"])
def test_the_embedded_example_of_what_needs_a_large_model_shows_that_it_works(name: str, tmp_path: Path) -> None:
    chrf = run(["run", name], tmp_path / "out")["metrics"]["chrf"]
    assert chrf["after"] > chrf["before"] + 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Asked plainly and through the procedure" in page


@pytest.fixture(scope="session")
def rule(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    served = Small(tmp_path_factory.mktemp("rule"))
    yield served
    served.kill()


@pytest.mark.parametrize("name", ASKING)
def test_a_procedure_declares_what_it_answers_and_gives(name: str, ran: Any) -> None:
    entry, loaded = ENTRIES[name], files.read_json(ran(name, "llama") / "result.json")
    assert not entry["needs"][entry["answers"]]["required"]  # a comparison asks `predict`
    assert "predict" in entry["gives"] and "models" not in entry["gives"]
    assert any(protocols.by_name(p).answers for p in entry["protocol"])
    if "calls" in loaded["findings"] and loaded["findings"]["calls"]:
        rows = files.read_lines(ran(name, "llama") / "transcript.jsonl")
        assert len(rows) <= loaded["findings"]["calls"] and all("role" in row for row in rows)


@pytest.mark.parametrize("name", ASKING)
def test_a_procedure_keeps_to_a_servers_budget_and_says_what_it_has(
    name: str, user: Any, rule: Small, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    command = user(name)
    command[command.index("--model") + 1] = f"{rule.url}#{NAME}"
    before = len(rule.rows("came"))
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        code = cli.main([*command, "--budget-calls", "6", "--out", str(tmp_path / "out")])
    assert len(rule.rows("came")) - before <= 6, stdout.getvalue()
    if code == 0:  # the fields it has, and that there are more
        loaded = files.read_json(tmp_path / "out" / "result.json")
        assert not loaded["findings"]["complete"] and "budget ended" in " ".join(loaded["warnings"])
    else:
        assert code == 2 and ("budget of 6 calls" in stdout.getvalue() or "needs a model with" in stdout.getvalue())
        assert "Traceback" not in stdout.getvalue()


@pytest.fixture(scope="session", params=["transformers", "vllm"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve`, and of a vLLM server where the environment names one (DIDACT_VLLM)."""
    if request.param == "vllm":
        if "DIDACT_VLLM" not in os.environ:
            pytest.skip("DIDACT_VLLM names no vLLM server (http://127.0.0.1:8000/v1#NAME)")
        yield os.environ["DIDACT_VLLM"]
        return
    folder = tmp_path_factory.mktemp("served")
    model = tiny("llama", context=1024)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    brief(model).save(folder / "model")
    server = Serve(folder, folder / "model")
    yield f"{server.url}#{folder / 'model'}"
    server.kill()


@pytest.mark.soak
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_are_sampled_by_a_server(name: str, user: Any, tmp_path: Path) -> None:
    command = [*user(name), *(["--relabel", "1"] if name == "evolve" else [])]
    server = Vllm(tmp_path, command[command.index("--model") + 1])
    result = run([*command, "--lora", "2", "--generate-with", server.url], tmp_path / "out")
    server.kill()
    assert any("within" in w and "sampled" in w for w in result["warnings"])
    probes = 4 * 2  # for each model
    assert len(server.asked()) > probes * 2 + 5 and result["cost"]["calls"] == len(server.asked())


@pytest.mark.soak
@pytest.mark.parametrize("name", REMOTE)
def test_a_procedure_runs_on_real_servers(name: str, user: Any, served: str, tmp_path: Path) -> None:
    command, allowed = user(name), options.flat(ENTRIES[name])
    command[command.index("--model") + 1] = served
    for option in ("asking.max_new_tokens", "max_new_tokens"):  # a model on one core writes 10 tokens per second
        command += [f"--{option}", "8"] if option in allowed else []
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        code = cli.main([*command, "--out", str(tmp_path / "out")])
    if code:  # one line on the missing capability, which another server has
        assert code == 2 and "needs a model with" in stdout.getvalue() and served != os.environ.get("DIDACT_VLLM")
        return
    loaded = files.read_json(tmp_path / "out" / "result.json")
    assert loaded["status"] == "done" and loaded["model"]["counts"]["calls"] > 0
