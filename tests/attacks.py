"""Random attacks on the command line, counted: kills, damages, hostile files, models, servers and configurations.

`python tests/attacks.py --minutes 60 --seed 0 --out FILE` (part of `make soak`). After every attack: the exit code is
one of those documented, a refusal is one line, no traceback, no hang, no control character on the terminal, no key,
nothing executed, files of others as they were, and what was killed or damaged ends with the bits of one left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from killed import command
from killed import server as processes

from didact.models import build

KEY = "sk-attack-4711-secret"
LIMIT = 300  # seconds, after which a command hangs; a busy machine may take many
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
TEXTS = [f"what is {a} {i}? it is {a}er." for a in ("red", "blue", "green") for i in range(8)]
WEIRD: list[Any] = [-1, 0, 1.5, "x", None, [], {}, True, "\x1b[31mred", "../../etc/passwd", float("nan"), 3]


@dataclass
class Place:
    """A folder with a start model, data, files of somebody else, and what an intact run makes."""

    root: Path
    random: random.Random
    broken: list[str] = field(default_factory=list)
    bits: str = ""

    def __post_init__(self) -> None:
        self.data = self.root / "demos.jsonl"
        self.restore()

    def restore(self) -> None:
        """Everything as at the beginning."""
        for folder in (self.root / "model", self.root / "theirs"):
            shutil.rmtree(folder, ignore_errors=True)
        tokenizer = build.train_tokenizer(TEXTS, 300)
        build.build("llama", tokenizer, d=32, layers=1, heads=2, context=64).save(self.root / "model")
        demos = [{"prompt": t.split("?")[0] + "?", "completion": t.split("?")[1]} for t in TEXTS]
        self.data.write_text("".join(json.dumps(d) + "\n" for d in demos))
        (self.root / "theirs" / "checkpoints").mkdir(parents=True)
        for name in ("result.json", "notes.md", ".my.notes.tmp", "checkpoints/step.bin"):
            (self.root / "theirs" / name).write_text(f"mine: {name}")
        self.theirs = self.digest(self.root / "theirs")
        self.start = self.digest(self.root / "model")

    def digest(self, folder: Path) -> str:
        """Of names and contents."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()

    def sft(self, out: Path, *more: str, model: str | Path = "", data: str | Path = "") -> list[str]:
        """A short run."""
        words = ["run", "sft", "--model", str(model or self.root / "model"), "--demos", str(data or self.data)]
        return [*words, "--out", str(out), "--steps", "8", "--rows", "4", "--save-every", "2", *more]

    def run(
        self, words: list[str], kill_after: float | None = None, codes: tuple[int, ...] = (0, 2), **env: str
    ) -> int:
        """Run a command, kill it perhaps, and note everything that must not happen."""
        said = self.root / "said.txt"
        env = {"DIDACT_CACHE": "off", "OPENAI_API_KEY": KEY, **env}
        process = processes.Process(target=command, args=(words, str(said), env))
        process.start()
        process.join(LIMIT if kill_after is None else kill_after)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            if kill_after is None:
                self.broken.append("hang")
            return -9
        code, text = process.exitcode or 0, said.read_bytes() if said.exists() else b""
        if code not in codes:
            self.broken.append(f"exit {code}")
        if b"Traceback" in text or b"mistake of ours" in text:
            self.broken.append("traceback")
        if CONTROL.search(text):
            self.broken.append("escape")
        if KEY.encode() in text:
            self.broken.append("key")
        if code == 2 and sum(line.startswith(b"didact: ") for line in text.splitlines()) != 1:
            self.broken.append("no line")
        return code

    def whole(self, out: Path) -> None:
        """The run in `out` must have the bits of one left alone."""
        if self.bits != self.weights(out):
            self.broken.append("other bits")

    def weights(self, out: Path) -> str:
        """Of the model a run saved."""
        place = out / "model" / "model.safetensors"
        return hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else "none"

    def untouched(self) -> None:
        """Files of others, and the start model, are as they were."""
        if self.theirs != self.digest(self.root / "theirs") or self.start != self.digest(self.root / "model"):
            self.broken.append("lost")
            self.restore()
        if (self.root / "executed").exists():
            self.broken.append("executed")


# --- attacks -------------------------------------------------------------------------------------


def kill(at: Place, out: Path) -> None:
    """SIGKILL at any moment, up to three times, then to the end."""
    for _ in range(at.random.randint(1, 3)):
        at.run(at.sft(out), kill_after=at.random.uniform(0.05, 2.0))
    if at.run(at.sft(out), codes=(0,)) == 0:
        at.whole(out)
    if [p for kind in ("tmp", "old", "held") for p in out.parent.rglob(f".didact-{kind}-*")]:
        at.broken.append("strays")


def damage(at: Place, out: Path) -> None:
    """Any file of a killed run is cut, flipped, emptied, removed, or made a folder; then the same command."""
    at.run(at.sft(out), kill_after=at.random.uniform(0.3, 2.0))
    files = [p for p in out.rglob("*") if p.is_file()]
    if files:
        hurt(at.random, at.random.choice(files))
    if at.run(at.sft(out)) == 0:
        at.whole(out)


def hurt(draw: random.Random, path: Path) -> None:
    """One damage to a file."""
    raw = path.read_bytes()
    cut = draw.randrange(len(raw) + 1)
    how = draw.choice(("cut", "flip", "empty", "gone", "folder", "noise"))
    if how in ("gone", "folder"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "flip" and raw:
        at = draw.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :])
    elif how != "gone":
        path.write_bytes({"cut": raw[:cut], "noise": draw.randbytes(len(raw))}.get(how, b""))


def records(at: Place, out: Path) -> None:
    """Lines that are no records, or odd ones."""
    lines = at.data.read_bytes().splitlines(keepends=True)
    odd: list[Callable[[], bytes]] = [
        lambda: b"\xff\xfe\x00bad\n", lambda: b"[" * 100_000 + b"\n", lambda: b'{"prompt": 1, "completion": []}\n',
        lambda: b'{"prompt": "p\\ud800", "completion": "c"}\n', lambda: b'{"prompt": "", "completion": ""}\n',
        lambda: b'{"prompt": "\\u001b]0;x\\u0007", "completion": "\\u001b[2J"}\n', lambda: b"null\n",
        lambda: b"\x00" * 999, lambda: b"\xef\xbb\xbf" + lines[0],
        lambda: json.dumps({"prompt": "p" * 2_000_000, "completion": "c"}).encode() + b"\n",
        lambda: b'{"prompt": NaN, "completion": 1e999}\n', lambda: b'{"\\u001b[31m": 1}\n',
        lambda: bytes(at.random.choice(lines)[: at.random.randrange(30)]) + b"\n",
    ]  # fmt: skip
    for _ in range(at.random.randint(1, 3)):
        lines.insert(at.random.randrange(len(lines) + 1), at.random.choice(odd)())
    path = out.parent / at.random.choice(
        ("odd.jsonl", "odd.json", "odd.csv", "odd.parquet", "odd.jsonl.gz", "\x1b[31m.jsonl")
    )
    raw = b"".join(lines)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    at.run(at.sft(out, *at.random.choice(((), ("--skip-bad",), ("--dry-run",))), data=path))


def model(at: Place, out: Path) -> None:
    """A model folder whose configuration, tokenizer, template or weights are not what they should be."""
    folder = out.parent / "hostile"
    shutil.copytree(at.root / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    how = at.random.choice(("config", "config", "file", "template", "remote code", "adapter"))
    if how == "config":
        config[at.random.choice(list(config))] = at.random.choice(WEIRD)
    elif how == "file":
        hurt(at.random, at.random.choice([p for p in folder.iterdir() if p.is_file()]))
    elif how == "template":
        loops = (
            "{% for i in range(10**9) %}{% endfor %}",
            "{{ 'x' * 10**10 }}",
            "{{ ''.__class__.__mro__ }}",
            "{% if %}",
        )
        (folder / "chat_template.jinja").write_text(at.random.choice(loops))
    elif how == "remote code":
        config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
        config["model_type"] = at.random.choice(("evil", config["model_type"]))
        (folder / "evil.py").write_text(f"open({str(at.root / 'executed')!r}, 'w').close()")
    else:
        (folder / "adapter_config.json").write_text(json.dumps({
            "peft_type": at.random.choice(("LORA", "EVIL", None)), "base_model_name_or_path": str(folder), "r": 4,
            "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
        }))  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    chat = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * 9
    data = out.parent / "chat.jsonl"
    data.write_text("".join(json.dumps(c) + "\n" for c in chat))
    at.run(at.sft(out, model=folder, data=at.random.choice((data, at.data))))


def place(at: Place, out: Path) -> None:
    """An `--out` that is somebody else's, an input, or holds one."""
    theirs = at.root / "theirs"
    target = at.random.choice(
        (theirs, theirs / "notes.md", at.root / "model", at.root, at.root / "model" / "in", at.data)
    )
    verb = at.random.choice(("run", "compare"))
    words = at.sft(target, *at.random.choice(((), ("--overwrite",))))
    if verb == "compare":
        words = ["compare", "sft", "--model", str(at.root / "model"), "--demo", str(at.data), "--budget", "2k-tokens"]
        words += ["--seeds", "1", "--out", str(target), *at.random.choice(((), ("--overwrite",)))]
    at.run(words, codes=(2,))


def configuration(at: Place, out: Path) -> None:
    """A YAML file or options that mean nothing."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = (bomb, "a: &a [*a]\n", "steps: !!python/object/apply:os.system ['touch executed']\n", "lr: 1:30:00\n",
             "steps: yes\n", "lr: 2020-01-01\n", "steps: 3\nsteps: 4\n", "\x00", "lr: .nan\n", "- 1\n",
             "steps: 1e400\n", "<<: {steps: 3}\n", "{" * 5000, "\x1b[31m: 1\n")  # fmt: skip
    path = out.parent / "odd.yaml"
    path.write_text(at.random.choice(texts))
    options = (
        ("--config", str(path)),
        ("--lr", "nan"),
        ("--steps", "-1"),
        ("--lr", "\x1b[2J"),
        ("--rows", "1e9"),
        ("--seed", "x"),
    )
    at.run(at.sft(out, *at.random.choice(options)))


def remote(at: Place, out: Path) -> None:
    """A server that answers anything."""
    with hostile_server(at.random.randrange(2**31)) as port:
        address = at.random.choice((
            f"http://127.0.0.1:{port}/v1#m", f"http://127.0.0.1:{port}/v1#m", f"http://127.0.0.1:{port}/v1#m",
            f"http://:{KEY}@127.0.0.1:{port}/v1#m", "http://[::1", "http://127.0.0.1:99999/v1#m", "http://#m", "http://127.0.0.1:1/v1#m",
        ))  # fmt: skip
        words = ["run", "few-shot", "--model", address, "--demos", str(at.data), "--out", str(out)]
        at.run(words, codes=(0, 2))
    if any(KEY.encode() in p.read_bytes() for p in out.parent.rglob("*") if p.is_file() and p.name != "said.txt"):
        at.broken.append("key")


def cache(at: Place, out: Path) -> None:
    """A cache whose entries are damaged."""
    folder = out.parent / "cache"
    words = ["run", "npo", "--out", str(out), "--steps", "2"]
    shutil.copytree(at.root / "cache", folder)
    for path in at.random.sample(files := [p for p in folder.rglob("*") if p.is_file()], min(2, len(files))):
        hurt(at.random, path)
    at.run(words, codes=(0,), DIDACT_CACHE=str(folder))


ATTACKS = {f.__name__: f for f in (kill, damage, records, model, place, configuration, remote, cache)}


@contextlib.contextmanager
def hostile_server(seed: int) -> Iterator[int]:
    """A server on loopback whose every reply is wrong in some way, or right."""
    draw = random.Random(seed)
    message = {"role": "assistant", "content": " a"}
    choice = {"index": 0, "text": " a", "finish_reason": "stop", "logprobs": None, "message": message}
    right = {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(
                    draw.choice(
                        ("right", "right", "weird", "deep", "bomb", "slow", "cut", "error", "echo", "html", "loop")
                    )
                )

        def answer(self, how: str) -> None:
            body, status, more = json.dumps(right).encode(), 200, {}
            if how == "weird":
                reply: Any = json.loads(json.dumps(right))
                part = draw.choice((reply, reply["choices"][0], reply["usage"], reply["choices"][0]["message"]))
                part[draw.choice(list(part))] = draw.choice(WEIRD)
                body = json.dumps(reply).encode()
            elif how == "deep":
                body = b"[" * 200_000 + b"]" * 200_000
            elif how == "bomb":
                body, more = gzip.compress(bytes(300_000_000), 9), {"Content-Encoding": "gzip"}
            elif how == "error":
                body, status = (
                    b'{"error": "\x1b[31m' + KEY.encode() + b'"}',
                    draw.choice((400, 401, 404, 429, 500, 503)),
                )
            elif how == "echo":
                body = body.replace(b" a", f" {self.headers.get('Authorization')}".encode())
            elif how == "html":
                body = b"<html>\x1b]0;x\x07"
            elif how == "loop":
                status, more = 302, {"Location": self.path}
            if how == "slow":
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.2)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body) * (2 if how == "cut" else 1)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield listening.server_address[1]
    finally:
        listening.shutdown()
        listening.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--out", help="a JSON file for the counts")
    args = parser.parse_args()
    began, done, broken = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="attacks-") as root:
        at = Place(Path(root), random.Random(args.seed))
        at.run(["run", "npo", "--out", f"{root}/warm", "--steps", "2"], codes=(0,), DIDACT_CACHE=f"{root}/cache")
        assert at.run(at.sft(at.root / "alone" / "out"), codes=(0,)) == 0 and not at.broken
        at.bits = at.weights(at.root / "alone" / "out")
        number = 0
        while time.monotonic() - began < 60 * args.minutes:
            number += 1
            at.random.seed(args.seed * 1_000_003 + number)
            name = args.only or at.random.choice(list(ATTACKS))
            folder = at.root / f"attack-{number}"
            folder.mkdir()
            ATTACKS[name](at, folder / "out")
            at.untouched()
            done[name] += 1
            if at.broken:
                said = (
                    (at.root / "said.txt").read_text(errors="replace")[-400:] if (at.root / "said.txt").exists() else ""
                )
                broken.append({"attack": name, "number": number, "what": sorted(set(at.broken)), "said": said})
                print(f"{name} {number}: {', '.join(sorted(set(at.broken)))}: {said!r}", flush=True)
                at.broken = []
            shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{sum(done.values())} attacks in {minutes:.0f} minutes: {len(broken)} did harm ({dict(done)})")
    if args.out:
        report = {"minutes": round(minutes, 1), "seed": args.seed, "attacks": dict(done), "broken": broken}
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
