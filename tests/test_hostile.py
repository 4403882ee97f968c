"""Hostile input, with real servers, files and terminals: a one-line message, no leaked key, bounded resources."""

import base64
import contextlib
import copy
import errno
import gzip
import io
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from servers import Raw, said

import didact
from didact import catalogue, cli, options, untrusted
from didact.data import chat
from didact.evaluate import judges
from didact.infer import calls, functions, replies
from didact.report import tables
from didact.types import UserError

KEY = "sk-live+/Zx81~Qq77"


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """A separate working folder, an empty cache, no key, no wait between retries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(calls, "BACKOFF", 0.01)


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def answers(text, **more):
    """Return the body of a reply with this text, in both the chat and the completions format."""
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
    gpt3_run = ["run", "gpt3", "--test", "data.jsonl", "--out", "out"]
    argv = {
        "--model": [*gpt3_run, "--model", address],
        "--judge": ["compare", "dpo", "--model", address, "--preference", "data.jsonl", "--budget", "9-seconds"],
        "--feedback": ["run", "ilf", "--model", "none", "--critiques", "data.jsonl", "--feedback", address],
        "config": [*gpt3_run, "--config", "options.yaml"],
    }[option]
    before = written(tmp_path)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert "SECRET" not in captured.out + captured.err and captured.err.count("\n") == 1
    assert "server's address" in captured.err or option == "--feedback"
    assert written(tmp_path) == before


def test_a_key_in_an_address_that_a_later_flag_replaces_is_kept_nowhere(tmp_path, fresh):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    argv = "run sft --model http://u:SECRET@host --model model --demos data.jsonl --steps 1 --out out"
    assert cli.main(argv.split()) == 0
    assert b"SECRET" not in written(tmp_path) and b"http://***@host" in (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.parametrize("port", ["99999", "x", "-1"])
def test_addresses_that_are_none_are_one_line(capsys, port):
    for address in (f"http://host:{port}/v1", *"file:///etc/passwd http:// http:///v1 http://[::1 http://a..b".split()):
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
    lead = "x" * 190  # so that a cut at 200 characters would leave half of the key
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
    captured = capsys.readouterr()
    everything = "".join(texts) + captured.out + captured.err + written(tmp_path).decode(errors="replace")
    assert texts and ("***" in "".join(texts) if status.startswith("200") else "xxx" in everything)
    inside = base64.b64encode(b"---" + KEY.encode()[3:12]).decode()[4:]
    for part in (KEY[:8], KEY[-8:], quote(KEY, safe="")[:8], KEY.upper()[:8], inside, "\\u0073\\u006b"):
        assert part not in everything


@pytest.mark.parametrize(
    "key", ["sk-abc\nX-Other: 1", "sk-abc\r", "sk-\x00abc", "sk-\u20acabc", "sk abc", "sk-\udce9abc"]
)
@pytest.mark.parametrize("source", ["argument", "variable"])
def test_a_key_that_no_header_takes_is_refused_unseen(monkeypatch, key, source):
    if source == "variable" and "\0" not in key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        key = None
    with pytest.raises(UserError, match="copy it again") as error:
        didact.connect("http://127.0.0.1:9/v1", "m", key=key)
    assert "abc" not in str(error.value) and "\n" not in str(error.value)


def test_a_short_placeholder_for_a_key_is_no_secret():
    with Raw(lambda connection, path, body: connection.sendall(said(answers("an EMPTY box")))) as server:
        assert didact.connect(server.url, "m", key="EMPTY").generate(["a"], 4) == [["an EMPTY box"]]


# --- servers that stall, bloat and lie -----------------------------------------------------------


def drip(connection, path, body):
    """Send headers slowly, byte by byte, without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"a")
        time.sleep(0.05)


def endless(connection, path, body):
    """Send an endless chunked body, as fast as possible."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def nothing(connection, path, body):
    """Send nothing and keep the connection open."""
    time.sleep(3)


STALLS = {"headers": drip, "silence": nothing, "endless": endless}


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("stalled", ["generate", "models"])
def test_a_server_that_stalls_is_left_at_the_deadline(stall, stalled):
    with Raw(STALLS[stall]) as server:
        model = didact.connect(server.url, None if stalled == "models" else "m", timeout=0.5, retries=0)
        start = time.monotonic()
        with pytest.raises(UserError) as error:
            model.generate(["a"], 4)
        assert time.monotonic() - start < 1.5 and "\n" not in str(error.value)
    reason = "it serves none" if stalled == "models" else "no whole answer in 0.5 s|longer than 32 MiB"
    assert error.match(reason)


def test_a_handshake_that_never_ends_is_left_at_the_deadline():
    with Raw(nothing) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no whole answer in 0\.5 s"):
            didact.connect(server.url.replace("http", "https"), "m", timeout=0.5, retries=0).generate(["a"], 4)
        assert time.monotonic() - start < 1.5


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
    content = LIES[lie]
    text, status, headers = (
        (*content, *("200 OK", {})[len(content) - 1 :]) if isinstance(content, tuple) else (content, "200 OK", {})
    )
    reply = text if isinstance(text, bytes) else said(text, status, **headers)
    with Raw(lambda connection, path, body: connection.sendall(reply)) as server:
        for name in ("m", None):
            argv = ["run", "gpt3", "--model", server.url + (f"#{name}" if name else ""), "--test", "none.jsonl"]
            assert cli.main(argv) == 2
    content = capsys.readouterr().err
    assert content.count("didact: ") == 2 and "Traceback" not in content and "mistake of ours" not in content


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


# --- terminals -----------------------------------------------------------------------------------

ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\x7f\r\x08"


def is_plain(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\x9b\u202e\u2066\x7f\r\x08")


def test_what_a_terminal_obeys_is_shown_as_escapes_on_both_streams(tmp_path, capsys, fresh):
    fresh("llama").save(tmp_path / "model")
    row = {"prompt": f"who {ORDERS}", "completion": f"they {ORDERS}"}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (tmp_path / "bad.jsonl").write_text(json.dumps({f"prompt{ORDERS}": 1}))
    sft = ["run", "sft", "--model", "model", "--steps", "1", "--out", "out"]
    assert cli.main([*sft, "--demos", "data.jsonl"]) == 0
    assert cli.main(["try", "out", "--prompt", f"a {ORDERS}", "--max-new-tokens", "2"]) == 0
    assert cli.main([*sft, "--demos", "bad.jsonl", "--overwrite"]) == 2
    assert cli.main(["run", f"sft{ORDERS}"]) == cli.main(["compare", f"--judge{ORDERS}"]) == 2
    captured = capsys.readouterr()
    assert is_plain(captured.out + captured.err)
    assert (
        "prompt  a \\x1b]0;owned\\x07" in captured.out and "\\u202e" in captured.out and "\\x1b]0;owned" in captured.err
    )


def test_names_and_errors_of_a_server_are_shown_as_escapes(capsys):
    listed = json.dumps({"data": [{"id": f"a{ORDERS}"}, {"id": "b"}]})
    with Raw(lambda connection, path, body: connection.sendall(said(listed))) as server:
        assert cli.main(["run", "gpt3", "--model", server.url, "--test", demos(Path())]) == 2
    stderr = capsys.readouterr().err
    assert is_plain(stderr) and "owned" in stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_a_rich_table_obeys_nothing_but_its_own_colours(terminal, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdout", untrusted.Screen(out))
    console = untrusted.console(80)
    console.print(tables.samples([{"prompt": ORDERS, "before": "b", "after": "\x1b[8mhidden"}]), style="bold")
    text = out.getvalue()
    assert ("\x1b[1m" in text) == terminal and is_plain(text.replace("\x1b[1m", "").replace("\x1b[0m", ""))
    assert "\\x1b[8mhidden" in text.replace("\x1b[1m", "").replace("\x1b[0m", "")


# --- environment ---------------------------------------------------------------------------------


def command(folder, *words, **env):
    """Run a didact command in its own process in this folder; return its exit code and output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    environment |= {"PYTHONPATH": str(Path(didact.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | env
    process = subprocess.run(
        [sys.executable, "-m", "didact", *words], cwd=folder, env=environment, capture_output=True, timeout=60
    )
    return process.returncode, process.stdout.decode(errors="replace"), process.stderr.decode(errors="replace")


def test_a_mistake_of_ours_is_told_where_no_temporary_folder_is(tmp_path, monkeypatch, capsys):
    def broken(words):
        raise ZeroDivisionError("x\x1b[2J http://u:SECRET@host")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(cli.listing, "methods", broken)
    assert cli.main(["methods"]) == 4
    path = Path(capsys.readouterr().err.rpartition(" is in ")[2].strip())
    saved = path.read_text(encoding="utf-8")
    assert "ZeroDivisionError" in saved and "SECRET" not in saved
    path.unlink()
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    assert cli.main(["methods"]) == 4
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr and "ZeroDivisionError" in stderr and "SECRET" not in stderr and is_plain(stderr)


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_texts_of_all_scripts_pass_in_any_locale(tmp_path, locale):
    row = {"prompt": "né 日本 \U0001f600", "completion": "日本 ± né"}
    (tmp_path / "données.jsonl").write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 3, encoding="utf-8")
    undecodable = os.fsencode(tmp_path) + b"/b\xe9.jsonl"
    os.rename(tmp_path / "données.jsonl", undecodable)
    encoding = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    code, out, err = command(
        tmp_path, "advise", b"b\xe9.jsonl", LC_ALL=locale, TMPDIR="/none", HOME="/none", **encoding
    )
    assert code == 0 and "sft" in out and "Traceback" not in err, err
    code, out, err = command(tmp_path, "run", "sft", "--out", b"o\xe9", LC_ALL=locale, **encoding)
    assert code == 2 and "option --out: o\\udce9: a name that is not UTF-8" in err


def test_a_pipe_as_data_is_read_once_or_refused_and_never_hangs(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert cli.main(["advise", "pipe.jsonl"]) == 2
    assert "pipe.jsonl: not a file" in capsys.readouterr().err
    assert cli.main(["run", "sft", "--config", "pipe.jsonl"]) == 2
    assert "pipe.jsonl: not a regular file" in capsys.readouterr().err


def test_a_line_that_is_too_long_is_refused_at_once_and_a_limit_says_so(tmp_path, monkeypatch):
    row = json.dumps({"prompt": "é" * 20_000_000, "completion": "b"}, ensure_ascii=False)
    (tmp_path / "long.jsonl").write_text(row, encoding="utf-8")
    (tmp_path / "long.json").write_text(f"[{row}]", encoding="utf-8")
    (tmp_path / "long.csv").write_text(f"prompt,completion\n{'a' * 20_000_000},b\n")
    for name in ("long.jsonl", "long.json", "long.csv"):
        start = time.monotonic()
        with pytest.raises(UserError, match="has more than 16 million characters; split it, or set DIDACT_LONGEST"):
            didact.read(name)
        assert time.monotonic() - start < 5
    monkeypatch.setenv("DIDACT_LONGEST", "30")
    assert len(didact.read("long.jsonl")) == 1


def test_a_packed_file_that_swells_is_refused_by_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as archive:
        archive.write(b'{"prompt": "a", "completion": "b"}\n' + b" " * (70 << 20))
    with pytest.raises(UserError, match=r"unpacks to more than 64 MiB, .* times its size; set DIDACT_SWELLING"):
        didact.read("bomb.jsonl.gz")
    monkeypatch.setenv("DIDACT_SWELLING", "1100")
    assert len(didact.read("bomb.jsonl.gz")) == 1


# --- files of options ----------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [(BOMB, "aliases"), ("lr: &x [*x]", "aliases"), ("a: &x 1\n<<: *x", "aliases"),
     ("lr: 1\nlr: 2", "2: 'lr' is given twice"), ("max-new-tokens: 1\nmax_new_tokens: 2", "given twice"),
     ("lr: !!python/object/apply:os.system [ls]", "tags"), ("lr: !!binary aGk=", "tags"), ("lr: !!set {a}", "tags"),
     ("[a, b]: 1", "option's name"), ("lr: " + "[" * 900, "not valid YAML"), ("a: b: c", "1: not valid YAML"),
     ("x: " + "y" * (2 << 20), "more than 1024 KiB"), ("- 1", "lines are expected"), ("<<: {lr: 1}", "'<<'"),
     ("lr: 1:30", "must be a number"), ("lr: 2020-01-01", "must be a number"), ("steps: 010", "must be a whole number"),
     ("seed: 1.5", "must be a whole number"),
     ("lr: yes", "must be a number"), ("epochs: [1, [2]]", "must be"), ("lr: {a: 1}", "must be"),
     ("lr: 1\0", "not valid")]
)  # fmt: skip
def test_odd_files_of_options_are_refused_in_a_second(tmp_path, capsys, text, reason):
    (tmp_path / "options.yaml").write_text(text, encoding="utf-8")
    start = time.monotonic()
    with contextlib.suppress(UserError):
        options.lines("options.yaml")
    assert time.monotonic() - start < 5
    assert cli.main(["run", "sft", "--config", "options.yaml"]) == 2
    stderr = capsys.readouterr().err
    assert reason in stderr and stderr.count("\n") == 1


def test_options_from_a_file_are_the_words_of_flags(tmp_path):
    (tmp_path / "options.yaml").write_text("lr: 1e-5\nskip-bad: yes\nsteps:\nmodel: no\nbetas: [0.8, 0.9]\n")
    read = options.lines("options.yaml")
    assert read == {"lr": "1e-5", "skip_bad": "yes", "steps": None, "model": "no", "betas": ["0.8", "0.9"]}
    parsed = options.parser(catalogue.entry("sft")).parse(["--config", "options.yaml"])
    assert (parsed.fit["lr"], parsed.skip_bad, parsed.model, parsed.fit["betas"]) == (1e-5, True, "no", (0.8, 0.9))


# --- user functions ------------------------------------------------------------------------------

FUNCTIONS = {
    "sys.exit(0)": "ended the program (exit 0)",
    "raise SystemExit": "ended the program",
    "while True: pass": "took longer than 0.3 s (--function-timeout)",
    "time.sleep(60)": "took longer",
    "return itertools.repeat(1.0)": "gave more than 2 numbers",
    "return [math.inf, 1.0]": "gave an infinity for completion 0",
    "return [1.0, math.nan]": "gave NaN for completion 1",
    "return [[1.0, 2.0], [1.0, 2.0]]": "raised TypeError",
    "return ['a', 'b']": "raised ValueError",
    "return None": "raised TypeError",
    "return 1 / 0": "raised ZeroDivisionError",
    "raise MemoryError": "raised MemoryError",
    "return rewards(prompts, completions)": "raised RecursionError",
}


@pytest.mark.parametrize("body", FUNCTIONS)
def test_whatever_a_function_of_the_users_does_is_one_line(body, monkeypatch):
    monkeypatch.setitem(functions.LIMIT, "seconds", 0.3 if "longer" in FUNCTIONS[body] else 60)
    space = {"sys": sys, "time": time, "math": math, "itertools": itertools}
    exec(f"def rewards(prompts, completions):\n {body}", space)
    with pytest.raises(UserError) as error:
        functions.checked(space["rewards"], "mine:rewards")(["a", "b"], ["c", "d"])
    assert FUNCTIONS[body] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "1 / 0", "while True: pass", "def f(:", "import none_such"]
)
def test_a_module_of_the_users_that_does_not_import_is_one_line(tmp_path, monkeypatch, body):
    monkeypatch.setitem(functions.LIMIT, "seconds", 0.3)
    (tmp_path / "odd_module.py").write_text(f"{body}\ndef rewards(p, c): return [0.0] * len(c)\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("odd_module", None)
    with pytest.raises(UserError, match="reward 'odd_module:rewards' cannot be imported: "):
        functions.import_function("odd_module:rewards", "reward")


@pytest.mark.parametrize(
    ("body", "reason"), [("sys.exit(0)", "ended the program"), ("time.sleep(60)", "took longer than")]
)
def test_a_function_of_the_users_fails_its_run_and_not_with_exit_0(tmp_path, monkeypatch, capsys, fresh, body, reason):
    (tmp_path / "ends_all.py").write_text(f"import sys, time\ndef judge(prompts, completions):\n {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("ends_all", None)
    fresh("llama").save(tmp_path / "model")
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row | {"prompt": f"a {i}"}) + "\n" for i in range(20)))
    data = ["--model", "model", "--preference", "data.jsonl", "--budget", "2k-tokens", "--seeds", "1", "--lrs", "1e-3"]
    flags = ["--judge", "ends_all:judge", "--function-timeout", "0.3", "--out", "out", "--no-models"]
    assert cli.main(["compare", "dpo", *data, *flags]) == 2
    captured = capsys.readouterr()
    assert (
        reason in captured.out + captured.err
        and "Traceback" not in captured.err
        and "mistake of ours" not in captured.err
    )


# --- models and templates ------------------------------------------------------------------------

TEMPLATES = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "does not end within 0.5 s",
    "{{ 'a' * 20000000000 }}": "wants more than",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}": "wants more",
    "{{ 'a' * 70000000 }}": "writes more than 64 million characters",
    "{{ messages[99].content.x() }}": "refuses these messages",
    "{{ 1 / 0 }}": "refuses these messages",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "refuses these messages",
    "{{ ''.__class__.__mro__ }}{{ messages.__class__.__bases__[0].__subclasses__() }}": "refuses these messages",
    "{% if %}": "refuses these messages",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_never_ends_or_swells_is_one_line(template, tokenizer, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.5 if "not end" in TEMPLATES[template] else 60)
    hostile = copy.deepcopy(tokenizer)
    hostile.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=TEMPLATES[template]):
        chat.render(hostile, [{"role": "user", "content": "a"}])
    assert resource.getrlimit(resource.RLIMIT_AS) == before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def demos(folder):
    (folder / "demos.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    return str(folder / "demos.jsonl")


def test_weights_of_other_sizes_are_one_line_without_the_librarys_report(tmp_path, fresh, capfd):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "model" / ".didact.json").unlink()
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"intermediate_size": 7}))
    assert cli.main(["run", "sft", "--model", str(tmp_path / "model"), "--demos", demos(tmp_path)]) == 2
    stderr = capfd.readouterr().err
    assert stderr.count("\n") == 1 and "\x1b" not in stderr and "mlp.down_proj.weight first" in stderr


def test_pipes_and_folders_where_files_should_be_are_one_line(tmp_path, fresh, capsys):
    fresh("llama").save(tmp_path / "model")
    os.mkfifo(tmp_path / "model" / "generation.json")
    with pytest.raises(UserError, match=r"generation\.json: neither file nor folder"):
        didact.load(tmp_path / "model")
    (tmp_path / "model" / "generation.json").unlink()
    argv = ["run", "sft", "--model", str(tmp_path / "model"), "--demos", demos(tmp_path), "--steps=1"]
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 0
    for name in ("history.jsonl", "report.html", "samples.json"):
        for make in (os.mkdir, os.mkfifo):
            path = tmp_path / "out" / name
            moved = path.rename(tmp_path / "kept")
            make(path)
            capsys.readouterr()
            assert cli.main(["report", str(tmp_path / "out")]) == 2
            stderr = capsys.readouterr().err
            assert name in stderr and stderr.count("\n") == 1
            (os.rmdir if make is os.mkdir else os.unlink)(path)
            moved.rename(path)


CONFIGS = [
    {"hidden_size": -16}, {"hidden_size": 15}, {"hidden_size": 10**9}, {"vocab_size": 0}, {"num_hidden_layers": -1},
    {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"vocab_size": "many"}, {"hidden_act": "none_such"},
    {"model_type": "none_such"}, {"model_type": None}, {"rope_parameters": {"rope_type": "none_such"}},
    {"max_position_embeddings": -1}, {"intermediate_size": None}, {"attention_dropout": 3},
]  # fmt: skip


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_an_impossible_configuration_is_one_line(tmp_path, fresh, capsys, change):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "model" / ".didact.json").unlink(missing_ok=True)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(UserError) as error:
        didact.load(tmp_path / "model")
    assert "\n" not in str(error.value) and "model: " in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model_type": "llama"}', "[" * 5000, "\x00\x01"])
def test_a_damaged_configuration_is_one_line(tmp_path, fresh, text):
    fresh("llama").save(tmp_path / "model")
    (tmp_path / "model" / ".didact.json").unlink(missing_ok=True)
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        didact.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_adapters_that_name_each_other_are_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
        config = {"base_model_name_or_path": str(tmp_path / other), "peft_type": "LORA"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    for name in "abc":
        with pytest.raises(UserError, match="itself"):
            didact.load(tmp_path / name)


# --- servers that think before they answer -------------------------------------------------------

CHOICE = {"index": 0, "finish_reason": "stop"}
THOUGHTS = {
    "in its text": ({"content": "<think>\nA? No.\n</think>\n\nB"}, "B"),
    "begun by the template": ({"content": "A? No.\n</think>\n\nB"}, "B"),
    "in a field": ({"content": "B", "reasoning_content": "A? No."}, "B"),
    "in another field": ({"content": " B", "reasoning": "A? No."}, "B"),
    "without an end": ({"content": "<think>\nA? Or else"}, ""),
    "in a part of its own": (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "A? No."}]},
                {"type": "text", "text": "B"},
            ]
        },
        "B",
    ),
    "in brackets": ({"content": "[THINK]A? No.[/THINK]B"}, "B"),
    "and nothing else": ({"content": None, "reasoning_content": "A? Or"}, ""),
    "not at all": ({"content": "to <think> is to be"}, "to <think> is to be"),
}


@pytest.mark.parametrize("case", THOUGHTS)
def test_thought_is_kept_apart_from_the_answer(case, capsys):
    message, expected = THOUGHTS[case]
    reply = said(json.dumps({"choices": [CHOICE | {"finish_reason": "length" if expected == "" else "stop",
                                                   "message": {"role": "assistant"} | message}]}))  # fmt: skip
    none = said("{}", "404 Not Found")
    with Raw(lambda connection, path, body: connection.sendall(none if path.endswith("/completions") and
             "chat" not in path else reply)) as server:  # fmt: skip
        model = didact.connect(server.url, "m")
        assert model.generate(["a", "b"], 4) == [[expected], [expected]]
        assert model.counts.starved == 2 * (expected == "")
        assert didact.connect(server.url, "m").generate(["a"], 4) == [[expected]]  # as in the cache
    stderr = capsys.readouterr().err
    assert stderr.count("raise --max-new-tokens") == (2 if expected == "" else 0)


@pytest.mark.parametrize("said_first", [{"content": "<think>"}, {"content": None, "reasoning_content": "A"}])
def test_first_tokens_of_thought_are_not_the_answers(said_first):
    top = [{"token": said_first["content"] or "A", "logprob": -0.1}, {"token": "B", "logprob": -3.0}]
    reply = {"choices": [CHOICE | {"message": said_first, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    with pytest.raises(replies.LackingError, match="thinks before it answers"):
        replies.first_tokens(reply, 2)


def test_a_judge_that_thinks_is_given_room_for_it():
    def think(connection, path, body):
        room = json.loads(body)["max_tokens"] > 100
        connection.sendall(said(answers("<think>so</think> A" if room else "<think>so", finish_reason="length")))

    with Raw(think) as server:
        judge = judges.LMJudge(didact.connect(server.url, "m"))
        assert judge(["q"], ["a"], ["b"]) == [0.5] and judge.unclear == 0


def test_free_answers_are_asked_of_a_server_that_only_chats(tmp_path, capsys):
    def chat(connection, path, body):
        connection.sendall(said(answers("<think>Velm? No.</think> Tarn")) if "chat" in path else said("", "404 No"))

    (tmp_path / "data.jsonl").write_text('{"prompt": "Where?", "completion": "Tarn"}\n' * 12)
    with Raw(chat) as server:
        data = ["--model", f"{server.url}#m", "--test", "data.jsonl"]
        assert cli.main(["run", "gpt3", *data, "--shots", "0", "--out", "gpt3"]) == 0
        assert cli.main(["run", "few-shot", *data, "--demos", "data.jsonl", "--out", "few"]) == 0
        choices = '{"prompt": "Where?", "completion": "Tarn", "choices": ["Tarn", "Velm"]}\n'
        (tmp_path / "data.jsonl").write_text(choices * 12)
        capsys.readouterr()
        assert cli.main(["run", "gpt3", *data, "--shots", "0", "--out", "choices"]) == 2
    assert "gpt3 needs a model with score" in capsys.readouterr().err
    for name in ("gpt3", "few"):
        saved = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
        assert next(iter(saved["metrics"].values()))["after"] == 1.0
