"""What strangers send and write, against real servers, files and terminals: one line, no key, no end of the machine."""

import base64
import contextlib
import gzip
import json
import resource
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from servers import Raw, said

import didact
from didact import cli
from didact.infer import calls
from didact.types import UserError

KEY = "sk-live+/Zx81~Qq77"


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """A folder of its own, an empty cache, no key, no time lost between retries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(calls, "BACKOFF", 0.01)


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def answers(text, **more):
    """A server's answer to everything: this text, as `chat` and `completions` have it."""
    choice = {"index": 0, "text": text, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice | more]})


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["http://:SECRET@host", "http://user:SECRET@host/v1#m", "http://SECRET@host", "HTTP://u:SECRET@host/v1",
     "http://u%3ASECRET%40host/v1", "http://u:SEC/RET-SECRET@host", "http://u:SECRET#x@host", "http://host\\@SECRET",
     "ftp://u:SECRET@host", " http://u:SECRET@host/v1", "http://host/v1?api_key=SECRET", "http://[::1SECRET"],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--model", "--judge", "--feedback", "config"])
def test_a_key_in_an_address_is_refused_and_shown_nowhere(tmp_path, capsys, address, option):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b", "feedback": "c", "chosen": "d", "rejected": "e"}\n' * 3)
    (tmp_path / "options.yaml").write_text(f"model: '{address}'\n")
    few = ["run", "gpt3", "--test", "data.jsonl", "--out", "out"]
    words = {
        "--model": [*few, "--model", address],
        "--judge": ["compare", "dpo", "--model", address, "--preference", "data.jsonl", "--budget", "9-seconds"],
        "--feedback": ["run", "ilf", "--model", "none", "--critiques", "data.jsonl", "--feedback", address],
        "config": [*few, "--config", "options.yaml"],
    }[option]
    before = written(tmp_path)
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert "SECRET" not in told.out + told.err and told.err.count("\n") == 1
    assert "server's address" in told.err or option == "--feedback"
    assert written(tmp_path) == before


def test_a_key_in_an_address_that_a_later_flag_replaces_is_kept_nowhere(tmp_path, fresh):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    words = [
        "run",
        "sft",
        "--model",
        "http://u:SECRET@host",
        "--model",
        "model",
        "--demos",
        "data.jsonl",
        "--steps",
        "1",
    ]
    assert cli.main([*words, "--out", "out"]) == 0
    assert b"SECRET" not in written(tmp_path) and b"http://***@host" in (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.parametrize("port", ["99999", "x", "-1"])
def test_addresses_that_are_none_are_one_line(capsys, port):
    for address in (
        f"http://host:{port}/v1",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://a..b",
    ):
        with pytest.raises(UserError, match="an address such as"):
            didact.connect(address, "m")


ECHOES = {
    "plain": KEY,
    "upper": KEY.upper(),
    "percent": quote(KEY, safe=""),
    "escapes": "".join(f"\\u{ord(c):04x}" for c in KEY),
    **{f"base64 at {n}": base64.b64encode(b"-" * n + KEY.encode() + b"!?").decode() for n in range(3)},
}


@pytest.mark.parametrize("form", ECHOES)
@pytest.mark.parametrize("status", ["200 OK", "500 Oops", "401 No"])
def test_a_server_that_echoes_the_key_leaves_it_nowhere(tmp_path, capsys, form, status):
    lead = "x" * 190  # so that a cut at 200 would leave half of the key
    good = answers(f"yes {lead} TEXT {lead}").replace("TEXT", ECHOES[form])
    bad = json.dumps({"error": {"message": f"{lead} TEXT"}}).replace("TEXT", ECHOES[form])
    reply = said(good if status.startswith("200") else bad, status)
    texts = []
    with Raw(lambda connection, path, body: connection.sendall(reply)) as server:
        model = didact.connect(server.url, "m", key=KEY, retries=1)
        try:
            texts += model.generate(["a"], 4)[0]
        except UserError as error:
            texts.append(str(error))
        model.close()
        assert f"authorization: bearer {KEY.lower()}" in server.heads[-1].lower()  # it was sent
    told = capsys.readouterr()
    shown = "".join(texts) + told.out + told.err + written(tmp_path).decode(errors="replace")
    assert texts and ("***" in "".join(texts) if status.startswith("200") else "xxx" in shown)
    inside = base64.b64encode(b"---" + KEY.encode()[3:12]).decode()[4:]
    for part in (KEY[:8], KEY[-8:], quote(KEY, safe="")[:8], KEY.upper()[:8], inside, "\\u0073\\u006b"):
        assert part not in shown


@pytest.mark.parametrize(
    "key", ["sk-abc\nX-Other: 1", "sk-abc\r", "sk-\x00abc", "sk-\u20acabc", "sk abc", "sk-\udce9abc"]
)
@pytest.mark.parametrize("source", ["argument", "variable"])
def test_a_key_that_no_header_takes_is_refused_unseen(monkeypatch, key, source):
    if source == "variable" and "\0" not in key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        key = None
    with pytest.raises(UserError, match="copy it anew") as error:
        didact.connect("http://127.0.0.1:9/v1", "m", key=key)
    assert "abc" not in str(error.value) and "\n" not in str(error.value)


def test_a_short_placeholder_for_a_key_is_no_secret():
    with Raw(lambda connection, path, body: connection.sendall(said(answers("an EMPTY box")))) as server:
        assert didact.connect(server.url, "m", key="EMPTY").generate(["a"], 4) == [["an EMPTY box"]]


# --- servers that stall, bloat and lie -----------------------------------------------------------


def drip(connection, path, body):
    """Headers, a byte now and then, for ever."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"a")
        time.sleep(0.05)


def endless(connection, path, body):
    """A body of chunks without an end, as fast as it goes."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def nothing(connection, path, body):
    """Neither a word nor an end."""
    time.sleep(3)


STALLS = {"headers": drip, "silence": nothing, "endless": endless}


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("ask", ["generate", "models"])
def test_a_server_that_stalls_is_left_at_the_deadline(stall, ask):
    with Raw(STALLS[stall]) as server:
        model = didact.connect(server.url, None if ask == "models" else "m", timeout=0.5, retries=0)
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            model.generate(["a"], 4)
        assert time.monotonic() - began < 1.5 and "\n" not in str(error.value)
    why = "it serves none" if ask == "models" else "no whole answer in 0.5 s|longer than 32 MiB"
    assert error.match(why)


def test_a_handshake_that_never_ends_is_left_at_the_deadline():
    with Raw(nothing) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no whole answer in 0\.5 s"):
            didact.connect(server.url.replace("http", "https"), "m", timeout=0.5, retries=0).generate(["a"], 4)
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("packed", ["gzip", "deflate", "raw deflate"])
def test_an_answer_that_swells_when_unpacked_is_refused_in_little_memory(packed):
    blank = zlib.compressobj(9, wbits={"gzip": 31, "deflate": 15, "raw deflate": -15}[packed])
    bomb = b"".join(blank.compress(b" " * (1 << 20)) for _ in range(64)) + blank.flush()
    reply = said(bomb, Content_Encoding=packed.split()[-1])
    with Raw(lambda connection, path, body: connection.sendall(reply)) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match="longer than 32 MiB"):
            didact.connect(server.url, "m", retries=0).generate(["a"], 4)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10  # KiB


def test_an_honest_packed_answer_is_read():
    reply = said(gzip.compress(answers("yes").encode()), Content_Encoding="gzip")
    with Raw(lambda connection, path, body: connection.sendall(reply)) as server:
        assert didact.connect(server.url, "m").generate(["a"], 4) == [["yes"]]


LIES = {
    "deep": '{"choices": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep error": ("[" * 100_000, "400 Bad"),
    "huge number": '{"choices": [{"text": "a"}], "usage": {"total_tokens": ' + "9" * 5000 + "}}",
    "no choices": '{"choices": 1e999}',
    "choices of numbers": '{"choices": [NaN, Infinity]}',
    "text of another type": '{"choices": [{"text": {"a": []}}]}',
    "twice": '{"choices": [{"text": "a"}], "choices": 5}',
    "redirect": ("", "302 Found", {"Location": "/v1/completions"}),
    "packed by another": ("aaaa", "200 OK", {"Content_Encoding": "br"}),
    "packed wrongly": ("aaaa", "200 OK", {"Content_Encoding": "gzip"}),
    "not HTTP": b"\x00\xff" * 50,
    "half a surrogate pair": '{"error": "\\ud800"}',
    "after": ("", "503 Busy", {"Retry_After": "Fri, 31 Dec 9999 23:59:59 -9999"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_any_answer_that_is_none_is_one_line(lie, capsys):
    told = LIES[lie]
    text, status, headers = (
        (*told, *("200 OK", {})[len(told) - 1 :]) if isinstance(told, tuple) else (told, "200 OK", {})
    )
    reply = text if isinstance(text, bytes) else said(text, status, **headers)
    with Raw(lambda connection, path, body: connection.sendall(reply)) as server:
        for name in ("m", None):
            words = ["run", "gpt3", "--model", server.url + (f"#{name}" if name else ""), "--test", "none.jsonl"]
            assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.count("didact: ") == 2 and "Traceback" not in told and "mistake of ours" not in told


NUMBERS = ["NaN", "Infinity", "1e999", "true", "[]", '"x"', "null", "9" * 400, "-1", "{}"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none_are_not_believed(number):
    top = f'{{"content": [{{"token": "a", "logprob": -1, "top_logprobs": [{{"token": "a", "logprob": {number}}}]}}]}}'
    choice = f'{{"text": " a", "message": {{"content": "a"}}, "logprobs": {top}}}'
    reply = said(f'{{"choices": [{choice}], "usage": {{"total_tokens": {number}, "completion_tokens": {number}}}}}')
    listed = said(f'{{"data": [{{"id": "m", "n_ctx": {number}}}]}}')
    with Raw(lambda connection, path, body: connection.sendall(listed if path.endswith("models") else reply)) as server:
        model = didact.connect(server.url, "m", retries=0)
        assert model.context == 4096 and model.generate(["b"], 4) == [["a"]] and 0 < model.counts.tokens < 2000
        with contextlib.suppress(UserError):
            assert model.top_logprobs(["b"], 5) == [{"a": -1.0}] and number == "-1"
