"""Remote models against real servers: requests, counts, the cache, and failures."""

import asyncio
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import NAME, Raw, Serve, Small, said

import didact
from didact import cli, prompting, types
from didact.infer import calls, lm, replies, responses
from didact.models import build
from didact.types import Demo, Messages, Reply, UserError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = "Mira Kolt was born in Tarn, and wrote Songs of Osso; né en 1951 à Tarn. 日本の本 who wrote what?"
PROMPTS = [f"number {i}" for i in range(12)]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """An empty cache, no key, and no wait between retries."""
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(calls, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def model():
    tokenizer = build.train_tokenizer([WORDS] * 4, 330)
    tokenizer.chat_template = TEMPLATE
    return build.build("llama", tokenizer, d=32, layers=2, heads=2, context=96, initializer_range=0.4)


@pytest.fixture(scope="module", autouse=True)
def served(model, tmp_path_factory):
    """The server for the model, which is slow to start: started early, and waited for where it is used."""
    folder = tmp_path_factory.mktemp("served")
    model.save(folder / "model")
    server = Small(folder, folder / "model")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def rule(tmp_path_factory):
    server = Small(tmp_path_factory.mktemp("rule"))
    yield server
    server.kill()


@pytest.fixture
def small(rule):
    """The server for a rule, reset."""
    rule.clear()
    return rule


@pytest.fixture
def alone(tmp_path):
    """A separate server for one test: no pending call of another test reaches it."""
    server = Small(tmp_path)
    yield server
    server.kill()


def connect(server, **more):
    return didact.connect(server.url, NAME, **more)


# --- answers and the cache ---------------------------------------------------------------------


def test_answers_come_in_the_prompts_order_and_from_the_cache_the_second_time(small, capsys):
    first = connect(small)
    texts = first.generate(PROMPTS, 4)
    assert len({t for (t,) in texts}) == len(PROMPTS) and all(len(t.split()) == 4 for (t,) in texts)
    assert sorted(small.prompts()) == sorted(PROMPTS) and first.counts.calls == len(PROMPTS) + 1
    again = connect(small)
    assert again.generate(PROMPTS[::-1], 4) == texts[::-1]
    assert len(small.rows("came")) == len(PROMPTS) + 1  # not even the probe was sent again
    assert (again.counts.calls, again.counts.cached, again.counts.tokens) == (0, len(PROMPTS), 0)
    capsys.readouterr()
    again.close()
    again.close()
    stderr = capsys.readouterr().err
    assert (
        stderr.count("\n") == 1 and f"{len(PROMPTS)} answers from the cache" in stderr and "responses.sqlite" in stderr
    )


def test_draws_differ_and_greedy_ones_are_one_call(small):
    model = connect(small)
    (samples,) = model.generate(["a"], 4, temperature=1.0, n=5, seed=7)
    assert len(set(samples)) == 5 and sorted(r["seed"] for r in small.rows("answered"))[1:] == [7, 8, 9, 10, 11]
    twins = model.generate(["a", "b", "a"], 4, temperature=1.0, n=2, seed=7)
    assert twins[0] + twins[2] == samples[:4]  # equal prompts do not share their draws
    assert len(small.prompts()) == 5 + 2
    assert model.generate(["c"], 4, n=3) == [model.generate(["c"], 4)[0] * 3] and small.prompts().count("c") == 1


def test_draws_of_a_server_without_seeds_are_told_apart_by_their_index(small):
    small.ways(seed=False)
    model = connect(small)
    model.generate(["a"], 4, temperature=1.0, n=3)
    assert small.prompts() == ["a"] * 3 and all(r["seed"] is None for r in small.rows("answered"))
    connect(small).generate(["a"], 4, temperature=1.0, n=4)
    assert small.prompts() == ["a"] * 4


KEY = {"url": "u", "model": "m", "endpoint": "e", "request": {"prompt": "p", "seed": 0}, "draw": 0}


@pytest.mark.parametrize(
    "change",
    [{"url": "v"}, {"model": "n"}, {"endpoint": "f"}, {"request": {"prompt": "p", "seed": 1}}, {"draw": 1},
     {"request": {"prompt": "p", "seed": 0, "top_p": 0.9}}],
)  # fmt: skip
def test_a_kept_answer_is_found_under_all_that_it_depends_on(change):
    assert responses.key(**KEY) == responses.key(**{**KEY, "request": {"seed": 0, "prompt": "p"}})
    assert responses.key(**KEY) != responses.key(**(KEY | change))


@pytest.mark.parametrize("off", ["variable", "argument"])
def test_without_a_cache_nothing_is_kept(small, monkeypatch, tmp_path, off):
    if off == "variable":
        monkeypatch.setenv("DIDACT_CACHE", "off")
    model = connect(small, cache=off == "variable")
    assert model.generate(["a"], 4) == model.generate(["a"], 4) and small.prompts() == ["a", "a"]
    assert not (tmp_path / "cache").exists()


def test_stop_strings_and_white_space_are_cut_as_a_local_model_cuts_them(small):
    model = connect(small)
    ((text,),) = model.generate(["a"], 6)
    assert model.generate(["a"], 6, stop=[text[10:]]) == [[text[:10].strip()]]
    # A server takes at most four stops
    assert model.generate(["a"], 6, stop=["?", "!", ";", ":", text[10:]]) == [[text[:10].strip()]]


def test_prompts_lie_in_the_cache_for_their_owner_alone(small, tmp_path):
    connect(small, key="sk-secret").generate(["a private question"], 2)
    path = tmp_path / "cache" / "responses.sqlite"
    assert path.stat().st_mode & 0o077 == 0
    data = b"".join(f.read_bytes() for f in path.parent.iterdir())
    assert b"a private question" in data and b"sk-secret" not in data


# --- the cache when things go wrong ------------------------------------------------------------


def ruin(path, damage):
    if damage == "not a database":
        path.write_bytes(b"this is not a database" * 100)
    elif damage == "pages":
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)
    elif damage == "another table":
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE responses (something TEXT)")
        db.close()
    else:
        damaged = "substr(reply, 1, 9) || char(9, 34) || 'x'" if damage == "an answer" else "reply || ' '"  # still JSON
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE responses SET reply = {damaged}")
        db.close()


@pytest.mark.parametrize("damage", ["not a database", "pages", "another table", "an answer", "a byte of an answer"])
def test_a_damaged_cache_is_set_aside_and_told(small, tmp_path, capfd, damage):
    first = connect(small)
    texts = first.generate(PROMPTS, 4)
    first.close()
    path = tmp_path / "cache" / "responses.sqlite"
    ruin(path, damage)
    capfd.readouterr()
    assert connect(small).generate(PROMPTS, 4) == texts
    assert len(small.prompts()) == 2 * len(PROMPTS)
    aside = list(path.parent.glob("responses.sqlite.damaged-*"))
    stderr = capfd.readouterr().err
    if damage in ("an answer", "a byte of an answer"):  # only damaged answers are requested again
        assert not aside and stderr.count("answers in it are damaged and will be requested again") == 1
    else:
        assert len(aside) == 1 and "was damaged" in stderr and aside[0].name in stderr
    assert connect(small).generate(PROMPTS, 4) == texts and len(small.prompts()) == 2 * len(PROMPTS)


def test_a_cache_damaged_under_way_costs_no_answer(small, tmp_path, capfd):
    model = connect(small)
    texts = model.generate(PROMPTS[:6], 4)
    path = tmp_path / "cache" / "responses.sqlite"
    for tail in ("-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)
    ruin(path, "not a database")
    assert connect(small).generate(PROMPTS, 4)[:6] == texts
    assert "was damaged" in capfd.readouterr().err


def test_a_place_that_cannot_be_written_only_costs_the_cache(small, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "file"))
    assert len(connect(small).generate(PROMPTS, 4)) == len(PROMPTS)
    assert capfd.readouterr().err.count("answers are no longer cached") == 1


def run_in_child(work):
    child = FORK.Process(target=work)
    child.start()
    return child


def test_two_processes_and_many_threads_share_one_cache(small, tmp_path):
    url, answers = small.url, tmp_path / "answers"
    answers.mkdir()
    small.ways(noise=True)

    def work():
        (texts,) = zip(*didact.connect(url, NAME).generate(PROMPTS, 4, temperature=1.0), strict=True)
        (answers / str(os.getpid())).write_text("\n".join(texts))

    children = [run_in_child(work) for _ in range(2)]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    one, two = (path.read_text() for path in answers.iterdir())
    assert one == two
    model, out = connect(small), []
    threads = [threading.Thread(target=lambda: out.append(model.generate(PROMPTS, 5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(out) == 8 and all(texts == out[0] for texts in out)
    with sqlite3.connect(tmp_path / "cache" / "responses.sqlite") as db:
        count = db.execute("SELECT count(*) FROM responses WHERE endpoint = 'completions'").fetchone()[0]
    db.close()
    assert count == 2 * len(PROMPTS)


# --- servers that fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"kind": "429", "after": "0.2"}, {"kind": "429"}, {"kind": "500"}, {"kind": "503", "after": "soon"},
     {"kind": "stall", "s": 1.0}, {"kind": "drip", "s": 0.1}, {"kind": "cut"}, {"kind": "cut quietly"},
     {"kind": "invalid"}, {"kind": "shape"}, {"kind": "closed"}],
    ids=lambda fault: "-".join(map(str, fault.values())),
)  # fmt: skip
def test_a_passing_failure_is_tried_again(small, fault):
    model = connect(small, timeout=0.4)
    model.generate(["a"], 4)
    small.plan(fault)
    ((text,),) = model.generate(["b"], 4)
    assert text and text != "never to be read"
    assert small.prompts() == ["a", "b", "b"] and (model.counts.calls, model.counts.retries) == (4, 1)
    if fault.get("after") == "0.2":
        (failed,), last = small.rows("failed"), small.rows("came")[-1]
        assert last["at"] - failed["at"] >= 0.2


def test_a_server_that_never_answers_well_is_told_in_one_line_and_resumed(small):
    model = connect(small, retries=2, parallel=1)
    model.generate(PROMPTS[:3], 4)
    small.plan(*[{"kind": "500", "says": "out of\nmemory"}] * 3)
    with pytest.raises(UserError, match=r"no answer in 3 tries, the last: 500 out of memory; every answer .* is kept"):
        model.generate(PROMPTS, 4)
    assert len(small.prompts()) == 3 + 3
    assert len(model.generate(PROMPTS, 4)) == len(PROMPTS)
    assert all(n == 1 for n in Counter(small.prompts("answered")).values())


def test_nobody_there_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: no answer in 2 tries, the last: .*refused"):
        didact.connect("http://127.0.0.1:9/v1", "m", retries=1).generate(["a"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"kind": "400", "says": "prompt too long"}, "completions: 400 prompt too long"),
     ({"kind": "401", "says": "no such key sk-secret"}, r"401 no such key \*\*\*: give the server's key"),
     ({"kind": "429", "says": "insufficient_quota"}, "429 insufficient_quota"),
     ({"kind": "503", "after": "9000"}, "asks to wait 9,000 s")],
)  # fmt: skip
def test_what_no_patience_mends_fails_at_once(small, fault, message):
    model = connect(small, key="sk-secret")
    model.generate(["a"], 4)
    small.plan(fault)
    with pytest.raises(UserError, match=message) as error:
        model.generate(["b"], 4)
    assert small.prompts() == ["a", "b"] and "\n" not in str(error.value)


def test_the_key_is_sent_and_a_wrong_one_told(small, monkeypatch):
    small.ways(key="sk-right")
    assert connect(small, key="sk-right").generate(["a"], 4)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    assert connect(small).generate(["b"], 4)
    with pytest.raises(UserError, match="401 Incorrect API key provided: Bearer ") as error:
        connect(small, key="sk-wrong", cache=False).generate(["a"], 4)
    assert "sk-wrong" not in str(error.value) and small.prompts() == ["a", "b"]


def test_a_wrong_name_is_told_with_the_right_ones(small):
    with pytest.raises(UserError, match=rf"404 The model `other` does not exist\.; it serves {NAME}$"):
        didact.connect(small.url, "other").generate(["a"])
    with pytest.raises(UserError, match=r"404 Not Found.*; most addresses end in /v1"):
        didact.connect(small.url.removesuffix("/v1"), NAME).generate(["a"])


def test_a_single_model_needs_no_name(small):
    model = didact.connect(small.url)
    assert model.name == NAME and model.address == f"{small.url}#{NAME}" and model.context == 64
    assert didact.connect(f"{small.url}/#{NAME}").address == model.address
    small.ways(listed=False)
    nameless = didact.connect(small.url)
    assert connect(small).context == 4096 and connect(small, context=99).context == 99
    with pytest.raises(UserError, match=r"name the model, as .*#NAME; it serves none that it lists"):
        nameless.generate(["a"])


@pytest.mark.parametrize("unit", ["calls", "tokens"])
def test_a_used_up_budget_says_so_and_the_same_command_goes_on(small, unit):
    texts = connect(small, cache=False).generate(PROMPTS, 4)
    small.clear()
    turns = 0
    while True:
        turns += 1
        model = connect(small, parallel=2, **{f"budget_{unit}": 5 if unit == "calls" else 24})
        try:
            assert model.generate(PROMPTS, 4) == texts
            break
        except UserError as error:
            assert f"the budget of {5 if unit == 'calls' else 24} {unit} is used up: " in str(error)
            assert f"{model.counts.cached} answers from the cache; every answer so far is kept in" in str(error)
        if unit == "calls":
            assert model.counts.calls == 5
        else:
            assert 24 <= model.counts.tokens < 24 + 2 * 6 + 6
    assert turns > 1 and sorted(small.prompts()) == sorted(PROMPTS)
    assert connect(small, budget_calls=0).generate(PROMPTS, 4) == texts  # all from the cache


def test_a_client_killed_under_way_repeats_no_answered_call(small):
    url = small.url
    small.plan(*[{"kind": "slow", "s": 0.0}] * 8, {"kind": "slow", "s": 30.0})  # the probe, then eight prompts
    child = run_in_child(lambda: didact.connect(url, NAME, parallel=1).generate(PROMPTS, 4))
    small.wait(8)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    model = connect(small)
    assert len(model.generate(PROMPTS, 4)) == len(PROMPTS) and model.counts.cached == 7
    counts = Counter(small.prompts())
    # Only the one without an answer was repeated
    assert counts[PROMPTS[7]] == 2 and all(n == 1 for p, n in counts.items() if p != PROMPTS[7])


def test_of_many_calls_at_once_a_kill_repeats_those_of_its_last_moment_at_most(small):
    url, questions = small.url, [f"question {i}" for i in range(64)]
    small.plan(*[{"kind": "slow", "s": 0.1}] * 200)
    child = run_in_child(lambda: didact.connect(url, NAME, parallel=8).generate(questions, 4))
    small.wait(40, "answered")
    os.kill(child.pid, signal.SIGKILL)
    killed = time.time()
    child.join(30)
    # Margin for a busy machine
    early = {row["prompt"] for row in small.rows("answered") if row["at"] < killed - 0.25} & set(questions)
    model = connect(small)
    assert len(model.generate(questions, 4)) == len(questions) and model.counts.cached >= len(early) >= 8
    counts = Counter(small.prompts())
    assert all(counts[prompt] == 1 for prompt in early) and sum(counts.values()) <= len(questions) + 2 * 8


def test_answers_of_one_moment_are_written_in_one_transaction_and_the_first_of_two_is_kept(tmp_path):
    cache, transactions = responses.Responses(tmp_path / "r.sqlite"), []
    answers = [responses.CachedAnswer(str(i), "u", "m", "e", {"prompt": i}, 0, {"said": i}) for i in range(200)]
    cache.put([answers[7]._replace(reply={"said": "another process was first"})])
    cache._connection().set_trace_callback(lambda text: transactions.append(text) if text.startswith("BEGIN") else None)

    async def put():
        writer = responses.Writer(cache)
        return await asyncio.gather(*(writer.put(answer) for answer in answers))

    contents = [reply["said"] for reply in asyncio.run(put())]
    assert contents == [*range(7), "another process was first", *range(8, 200)] and len(transactions) <= 2
    assert cache.get([a.key for a in answers]) == {str(i): {"said": contents[i]} for i in range(200)}
    cache.close()


def test_a_server_killed_and_started_again_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "BACKOFF", 0.1)
    server, out = Small(tmp_path), []
    try:
        model = connect(server)
        server.plan(*[{"kind": "slow", "s": 0.05}] * 100)
        questions = [f"question {i}" for i in range(30)]
        asking = threading.Thread(target=lambda: out.extend(model.generate(questions, 4)))
        asking.start()
        server.wait(10, "answered")
        server.kill()
        answered = server.prompts("answered")
        server.start()
        asking.join(30)
        assert len(out) == len(questions) and model.counts.retries >= 1
        counts = Counter(server.prompts())
        assert set(counts) == set(questions) and all(counts[p] == 1 for p in answered)
        assert connect(server, budget_calls=0).generate(questions, 4) == out
    finally:
        server.kill()


# --- capabilities of a server ------------------------------------------------------------------

ALL = {"generate", "chat", "top_logprobs", "score"}


@pytest.mark.parametrize(
    ("ways", "can"),
    [({}, ALL),
     ({"echo": "one"}, ALL), ({"echo": "ignored"}, ALL - {"score"}), ({"echo": "refused"}, ALL - {"score"}),
     ({"echo": "zeros"}, ALL - {"score"}),
     ({"form": "content"}, ALL), ({"logprobs": 0}, {"generate", "chat"}), ({"logprobs": 5}, ALL),
     ({"seed": False}, ALL), ({"spaced": False}, ALL), ({"usage": False}, ALL),
     ({"endpoints": ["completions"]}, ALL - {"chat"}),
     ({"endpoints": ["chat/completions"]}, ALL - {"score"}),
     ({"endpoints": ["chat/completions"], "limit": "max_completion_tokens"}, ALL - {"score"})],
    ids=lambda part: str(sorted(part)) if isinstance(part, set) else str(part),  # the same order in every process
)  # fmt: skip
def test_capabilities_are_what_the_answers_show(small, ways, can):
    small.ways(**ways)
    model = connect(small)
    assert model.capabilities == can
    count = len(small.rows("came"))
    assert model.counts.calls == count <= 12
    assert connect(small).capabilities == can and len(small.rows("came")) == count  # from the cache
    does = {
        "generate": lambda: model.generate(["a b"], 3) and model.counts.tokens > 0,
        "chat": lambda: model.chat([[{"role": "user", "content": "a b"}]], 3),
        "top_logprobs": lambda: len(model.top_logprobs(["a b"], 4)[0]) == 4,
        "score": lambda: model.score([("a b", "ccc dddd")])[0] == (-4.0 - 5.0, 2),
    }
    for capability, work in does.items():
        if capability in can:
            assert work()
        else:
            with pytest.raises(UserError, match=f"{NAME} at {small.url} does not offer {capability}: ") as error:
                work()
            assert "\n" not in str(error.value)


def test_few_log_probs_are_given_where_many_are_refused(small):
    small.ways(logprobs=5)
    (top,) = connect(small).top_logprobs(["a b"], 20)
    assert list(top.values()) == [-0.1, -3.0, -4.0, -5.0, -6.0]


def test_a_failing_server_is_not_remembered_as_one_that_cannot(alone):
    alone.plan(*[{"kind": "500"}] * 4)
    model = connect(alone)
    assert "500 a fault of ours" in model.lacks("generate")
    assert model.lacks("generate") is None and connect(alone).lacks("generate") is None


def test_a_missing_capability_is_asked_for_again_after_a_day(small, monkeypatch):
    small.ways(echo="refused")
    assert connect(small).lacks("score") and connect(small).lacks("score")
    count = len(small.rows("came"))
    small.ways()
    assert connect(small).lacks("score") and len(small.rows("came")) == count
    monkeypatch.setattr("didact.infer.remote.AGAIN", 0.0)
    assert connect(small).lacks("score") is None


def test_a_need_that_no_server_meets_is_one_line_before_any_call(alone):
    model = connect(alone)
    with pytest.raises(UserError, match=r"npo needs a model with train: .* a server, which does not offer train: load"):
        lm.need(model, "generate", "train", by="npo")
    assert not alone.rows("came")
    assert lm.need(model, "generate", by="meta-prompting") is model
    alone.ways(echo="refused")
    with pytest.raises(UserError, match="gpt3 needs a model with score: completions: 400 Only no echo is supported"):
        lm.need(model, "score", by="gpt3")


def test_conversations_go_to_chat_and_plain_prompts_to_completions(alone):
    model = connect(alone)
    turns = [{"role": "user", "content": "who?"}]
    plain, spoken = model.generate(["who?", Messages(turns)], 4)
    assert [spoken] == model.chat([turns], 4) and spoken != plain
    endpoints = [r["endpoint"] for r in alone.rows("came") if r["prompt"] == "who?"]
    assert sorted(endpoints) == ["chat/completions", "completions"]
    alone.ways(endpoints=["chat/completions"])
    assert connect(alone, cache=False).generate(["who?"], 4) == [spoken]


def test_tools_are_offered_and_their_calls_are_the_answer():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    called = {"id": "a7", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tarn"}'}}
    bodies = []

    def answer(connection, path, body):
        bodies.append(json.loads(body))
        message = {"role": "assistant", "content": None, "tool_calls": [called]}
        connection.sendall(said(json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]})))

    with Raw(answer) as server:
        model = connect(server, cache=False)
        ((text,),) = model.generate([Messages([{"role": "user", "content": "Weather?"}], tools)], 8)
    assert bodies[-1]["tools"] == tools
    expected = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Tarn"}}}
    assert text == Reply({"role": "assistant", "content": "", "tool_calls": [expected]})


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"url": "localhost:8000"}, "an address such as"), ({"url": "http://host/v1?key=a"}, "without key"),
     ({"budget_calls": -1}, "budget_calls = -1: must be 0 or more"), ({"timeout": 0}, "timeout = 0"),
     ({"parallel": 0}, "parallel = 0")],
)  # fmt: skip
def test_arguments_are_checked_before_anything_is_sent(bad, message):
    with pytest.raises(UserError, match=message):
        didact.connect(**({"url": "http://localhost:1/v1"} | bad))


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r"pip install 'didact\[remote\]'"):
        didact.connect("http://localhost:1/v1")


# --- reading answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "prompt", "body", "border"),
    [(["a", " b", " c", " d"], "a b", " c d", (2, True)),
     (["<s>", "a", " b", " c"], "a b", " c", (3, True)),
     (["a", ":", " yes"], "a: ", "yes", (2, False)),  # one token ends the prompt and begins the completion
     (["<s>", "a", "b", "c"], "a b", " c", (3, True)),  # returned without their white space
     (["<s>", "a", ":", "yes"], "a: ", "yes", (3, True)),
     (["a", " ", "b"], "a", " b", (1, True)),  # a space token belongs to the completion, unless the prompt ends with it
     (["a", "", "", "日本"], "a", "日本", (1, True)),  # a character's first bytes decode to nothing
     (["a", "\ufffd", "\ufffd", "b"], "a", "éb", None),
     (["x", " c"], "a b", " c", (1, True)),  # the end decides
     (["x", "b c"], "a", " c", None)],
)  # fmt: skip
def test_the_border_is_found_by_the_text(tokens, prompt, body, border):
    assert replies.border(tokens, prompt, body) == border


@given(st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=2, max_size=8), st.data())
def test_any_border_between_tokens_is_found(tokens, data):
    at = data.draw(st.integers(1, len(tokens) - 1))
    assert replies.border(tokens, "".join(tokens[:at]), "".join(tokens[at:])) == (at, True)


@given(st.lists(st.text("ab ", min_size=2, max_size=4), min_size=1, max_size=8), st.data())
def test_a_straddling_token_goes_with_the_completion(tokens, data):
    at = data.draw(st.integers(0, len(tokens) - 1))
    inside = data.draw(st.integers(1, len(tokens[at]) - 1))
    prompt, body = "".join(tokens[:at]) + tokens[at][:inside], tokens[at][inside:] + "".join(tokens[at + 1 :])
    assert replies.border(tokens, prompt, body) == (at, False)


FIELDS = st.sampled_from(["text", "message", "content", "logprobs", "tokens", "token_logprobs", "top_logprobs"])
PLAIN = st.none() | st.booleans() | st.floats() | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner)))
def test_no_form_of_an_answer_is_a_crash(choice):
    for parse in (replies.text_of, lambda r: replies.first_tokens(r, 5), lambda r: replies.echo_of(r, 1)):
        with contextlib.suppress(replies.PassingError):
            replies.read(parse, {"choices": [choice]})


# --- against local models ----------------------------------------------------------------------

PAIRS = [
    ("Mira Kolt was born in", "Tarn"), ("Who wrote what?", "Songs of Osso; who was born in 1951"), ("who", "\nwrote"),
    ("", "Songs of Osso"), ("né en", "1951 à Tarn"), ("日本", "の本 né"), ("Tarn é", "日本"), ("Osso\n", "Mira Kolt"),
]  # fmt: skip


def test_remote_scores_equal_local_ones(served, model):
    remote, local = connect(served), lm.of(model)
    for actual, expected in zip(remote.score(PAIRS), local.score(PAIRS), strict=True):
        assert actual.tokens == expected.tokens and actual.logp == pytest.approx(expected.logp, abs=1e-4)
    assert remote.counts.straddled == 0 and remote.context == model.context
    count = remote.counts.calls
    remote.score(PAIRS)
    assert remote.counts.calls == count
    with pytest.raises(UserError, match="the completion is empty"):
        remote.score([("a", "")])


def test_a_space_at_the_end_of_a_prompt_is_the_completions(served, model):
    remote, pairs = connect(served), [("Mira Kolt was born in", "Tarn"), ("Mira Kolt was born in ", "Tarn")]
    clean, spaced = remote.score(pairs)
    same = pytest.approx(clean.logp, abs=1e-5)  # on some CPUs, rows of a batch differ in the last bits
    assert spaced.tokens == clean.tokens and spaced.logp == same and remote.counts.straddled == 0  # one tokenisation
    local = lm.of(model).score(pairs)
    assert local[0].tokens == local[1].tokens and local[1].logp == pytest.approx(local[0].logp, abs=1e-5)
    assert local[0].logp == pytest.approx(clean.logp, abs=1e-4)


def test_remote_text_equals_local_text(served, model):
    remote, local = connect(served), lm.of(model)
    prompts = ["Mira Kolt", "Who wrote what?", "né en", "Songs of"]
    texts = local.generate(prompts, 12)
    assert len({t for (t,) in texts}) == len(prompts)
    assert remote.generate(prompts, 12) == texts
    stop = [next(c for c in texts[0][0][1:] if c.isascii() and c.isalpha())]
    assert remote.generate(prompts, 12, stop=stop) == local.generate(prompts, 12, stop=stop)
    turns = [[{"role": "user", "content": p}] for p in prompts]
    assert remote.chat(turns, 12) == local.chat(turns, 12)
    served.ways(form="content")  # as a list, in which tokens with equal text (pieces of characters) stay separate
    for actual, expected in zip(remote.top_logprobs(prompts, 7), local.top_logprobs(prompts, 7), strict=True):
        assert actual == pytest.approx(expected, abs=1e-4) and list(actual.values()) == sorted(
            actual.values(), reverse=True
        )
    with pytest.raises(UserError, match="400 This model's maximum context length is 96 tokens"):
        remote.generate(["Mira Kolt " * 90], 12)


@pytest.mark.soak
def test_transformers_serve_generates_and_chats_and_is_asked_nothing_else(model, tmp_path):
    model.save(tmp_path / "model")
    server = Serve(tmp_path, tmp_path / "model")
    remote, local = didact.connect(server.url, server.model), lm.of(model)
    assert remote.capabilities == {"generate", "chat"}
    prompts = ["Mira Kolt", "Who wrote what?", "Songs of"]
    assert remote.generate(prompts, 12) == local.generate(prompts, 12)
    turns = [[{"role": "user", "content": p}] for p in prompts]
    assert remote.chat(turns, 12) == local.chat(turns, 12)
    count = remote.counts.calls
    assert remote.generate(prompts, 12) == local.generate(prompts, 12) and remote.counts.calls == count
    with pytest.raises(UserError, match="does not offer score: completions: the answer has no log-probs of the prompt"):
        remote.score([("a", "b")])
    with pytest.raises(UserError, match="400 Server is pinned to"):
        didact.connect(server.url, "another").generate(["a"])
    server.kill()


QUESTIONS = [
    Demo(prompt=f"who was born in {year}", completion=name, choices=["Mira Kolt", "Tarn", "Songs of Osso"])
    for year, name in ((1951, "Mira Kolt"), (1952, "Tarn"), (1953, "Mira Kolt"), (1954, "Songs of Osso"))
]


def test_few_shot_evaluation_of_a_server_equals_that_of_the_same_model_here(served, model):
    remote = connect(served)
    actual, expected = (prompting.gpt3(m, QUESTIONS, shots=(0, 1), seed=3) for m in (remote, model))
    assert [r.extra["said"] for r in actual.records] == [r.extra["said"] for r in expected.records]
    for mine, theirs in zip(actual.records, expected.records, strict=True):
        for rule, scores in theirs.extra["scores"].items():
            assert np.ravel(mine.extra["scores"][rule]) == pytest.approx(np.ravel(scores), abs=1e-4)
    free = [dataclasses.replace(q, choices=None) for q in QUESTIONS]
    actual, expected = (prompting.gpt3(m, free, shots=(0, 1), beams=1, max_new_tokens=8) for m in (remote, model))
    assert [r.extra["said"] for r in actual.records] == [r.extra["said"] for r in expected.records]


def test_a_server_is_evaluated_from_the_command_line(served, tmp_path, capsys):
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(types.as_row(q)) + "\n" for q in QUESTIONS))
    command = ["run", "gpt3", "--model", f"{served.url}#{NAME}", "--test", str(data), "--shots", "0,1"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "accuracy" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert f"#{NAME}" in json.dumps(saved["model"])
    count = len(served.rows("came"))
    assert cli.main([*command, "--out", str(tmp_path / "again")]) == 0 and len(served.rows("came")) == count
