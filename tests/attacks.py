"""Random attacks on the command line, counted: kills, damage, hostile files, models, servers and configurations.

`python tests/attacks.py --minutes 60 --seed 0 --out FILE` (part of `make soak`). After every attack: the exit code is
documented, a refusal is one line, no traceback, no hang, no control character on the terminal, no key printed,
nothing executed, other files unchanged, and a killed or damaged run ends bit-identical to an undisturbed one.
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
LIMIT = 300  # seconds after which a command counts as hanging; a busy machine may take long
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
TEXTS = [f"what is {a} {i}? it is {a}er." for a in ("red", "blue", "green") for i in range(8)]
WEIRD: list[Any] = [-1, 0, 1.5, "x", None, [], {}, True, "\x1b[31mred", "../../etc/passwd", float("nan"), 3]


@dataclass
class Place:
    """A folder with a start model, data, somebody else's files, and the weights' hash of an undisturbed run."""

    root: Path
    random: random.Random
    broken: list[str] = field(default_factory=list)
    bits: str = ""

    def __post_init__(self) -> None:
        self.data = self.root / "demos.jsonl"
        self.restore()

    def restore(self) -> None:
        """Create or reset everything."""
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
        """Return a hash of names and contents."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()

    def sft(self, out: Path, *more: str, model: str | Path = "", data: str | Path = "") -> list[str]:
        """Return the command of a short run."""
        words = ["run", "sft", "--model", str(model or self.root / "model"), "--demos", str(data or self.data)]
        return [*words, "--out", str(out), "--steps", "8", "--rows", "4", "--save-every", "2", *more]

    def run(
        self, words: list[str], kill_after: float | None = None, codes: tuple[int, ...] = (0, 2), **env: str
    ) -> int:
        """Run a command, with `kill_after` kill it, and record every violation in `broken`."""
        output = self.root / "said.txt"
        env = {"DIDACT_CACHE": "off", "OPENAI_API_KEY": KEY, **env}
        process = processes.Process(target=command, args=(words, str(output), env))
        process.start()
        process.join(LIMIT if kill_after is None else kill_after)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            if kill_after is None:
                self.broken.append("hang")
            return -9
        code, text = process.exitcode or 0, output.read_bytes() if output.exists() else b""
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
        """Check that the run in `out` is bit-identical to an undisturbed one."""
        if self.bits != self.weights(out):
            self.broken.append("other bits")

    def weights(self, out: Path) -> str:
        """Return a hash of the weights that a run saved."""
        path = out / "model" / "model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"

    def untouched(self) -> None:
        """Check that other files and the start model are unchanged."""
        if self.theirs != self.digest(self.root / "theirs") or self.start != self.digest(self.root / "model"):
            self.broken.append("lost")
            self.restore()
        if (self.root / "executed").exists():
            self.broken.append("executed")


# --- attacks -------------------------------------------------------------------------------------


def kill(site: Place, out: Path) -> None:
    """SIGKILL at a random time, up to three times, then an undisturbed run to the end."""
    for _ in range(site.random.randint(1, 3)):
        site.run(site.sft(out), kill_after=site.random.uniform(0.05, 2.0))
    if site.run(site.sft(out), codes=(0,)) == 0:
        site.whole(out)
    if [p for kind in ("tmp", "old", "held") for p in out.parent.rglob(f".didact-{kind}-*")]:
        site.broken.append("strays")


def damage(site: Place, out: Path) -> None:
    """Any file of a killed run is cut, flipped, emptied, removed, or replaced by a folder; then the same command."""
    site.run(site.sft(out), kill_after=site.random.uniform(0.3, 2.0))
    files = [p for p in out.rglob("*") if p.is_file()]
    if files:
        hurt(site.random, site.random.choice(files))
    if site.run(site.sft(out)) == 0:
        site.whole(out)


def hurt(rng: random.Random, path: Path) -> None:
    """Damage a file in one random way."""
    raw = path.read_bytes()
    cut = rng.randrange(len(raw) + 1)
    kind = rng.choice(("cut", "flip", "empty", "gone", "folder", "noise"))
    if kind in ("gone", "folder"):
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "flip" and raw:
        position = rng.randrange(len(raw))
        path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << rng.randrange(8))]) + raw[position + 1 :])
    elif kind != "gone":
        path.write_bytes({"cut": raw[:cut], "noise": rng.randbytes(len(raw))}.get(kind, b""))


def records(site: Place, out: Path) -> None:
    """A data file with lines that are invalid or unusual records."""
    lines = site.data.read_bytes().splitlines(keepends=True)
    odd_lines: list[Callable[[], bytes]] = [
        lambda: b"\xff\xfe\x00bad\n", lambda: b"[" * 100_000 + b"\n", lambda: b'{"prompt": 1, "completion": []}\n',
        lambda: b'{"prompt": "p\\ud800", "completion": "c"}\n', lambda: b'{"prompt": "", "completion": ""}\n',
        lambda: b'{"prompt": "\\u001b]0;x\\u0007", "completion": "\\u001b[2J"}\n', lambda: b"null\n",
        lambda: b"\x00" * 999, lambda: b"\xef\xbb\xbf" + lines[0],
        lambda: json.dumps({"prompt": "p" * 2_000_000, "completion": "c"}).encode() + b"\n",
        lambda: b'{"prompt": NaN, "completion": 1e999}\n', lambda: b'{"\\u001b[31m": 1}\n',
        lambda: bytes(site.random.choice(lines)[: site.random.randrange(30)]) + b"\n",
    ]  # fmt: skip
    for _ in range(site.random.randint(1, 3)):
        lines.insert(site.random.randrange(len(lines) + 1), site.random.choice(odd_lines)())
    path = out.parent / site.random.choice(
        ("odd.jsonl", "odd.json", "odd.csv", "odd.parquet", "odd.jsonl.gz", "\x1b[31m.jsonl")
    )
    raw = b"".join(lines)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    site.run(site.sft(out, *site.random.choice(((), ("--skip-bad",), ("--dry-run",))), data=path))


def model(site: Place, out: Path) -> None:
    """A model folder with a corrupt or hostile configuration, tokenizer, template or weights."""
    folder = out.parent / "hostile"
    shutil.copytree(site.root / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    change = site.random.choice(("config", "config", "file", "template", "remote code", "adapter"))
    if change == "config":
        config[site.random.choice(list(config))] = site.random.choice(WEIRD)
    elif change == "file":
        hurt(site.random, site.random.choice([p for p in folder.iterdir() if p.is_file()]))
    elif change == "template":
        templates = (
            "{% for i in range(10**9) %}{% endfor %}",
            "{{ 'x' * 10**10 }}",
            "{{ ''.__class__.__mro__ }}",
            "{% if %}",
        )
        (folder / "chat_template.jinja").write_text(site.random.choice(templates))
    elif change == "remote code":
        config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
        config["model_type"] = site.random.choice(("evil", config["model_type"]))
        (folder / "evil.py").write_text(f"open({str(site.root / 'executed')!r}, 'w').close()")
    else:
        (folder / "adapter_config.json").write_text(json.dumps({
            "peft_type": site.random.choice(("LORA", "EVIL", None)), "base_model_name_or_path": str(folder), "r": 4,
            "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
        }))  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    chat = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * 9
    data = out.parent / "chat.jsonl"
    data.write_text("".join(json.dumps(c) + "\n" for c in chat))
    site.run(site.sft(out, model=folder, data=site.random.choice((data, site.data))))


def place(site: Place, out: Path) -> None:
    """An `--out` that is somebody else's folder, an input, or a folder that contains one."""
    theirs = site.root / "theirs"
    target = site.random.choice(
        (theirs, theirs / "notes.md", site.root / "model", site.root, site.root / "model" / "in", site.data)
    )
    verb = site.random.choice(("run", "compare"))
    words = site.sft(target, *site.random.choice(((), ("--overwrite",))))
    if verb == "compare":
        words = [
            "compare",
            "sft",
            "--model",
            str(site.root / "model"),
            "--demo",
            str(site.data),
            "--budget",
            "2k-tokens",
        ]
        words += ["--seeds", "1", "--out", str(target), *site.random.choice(((), ("--overwrite",)))]
    site.run(words, codes=(2,))


def configuration(site: Place, out: Path) -> None:
    """A hostile YAML file or invalid options."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = (bomb, "a: &a [*a]\n", "steps: !!python/object/apply:os.system ['touch executed']\n", "lr: 1:30:00\n",
             "steps: yes\n", "lr: 2020-01-01\n", "steps: 3\nsteps: 4\n", "\x00", "lr: .nan\n", "- 1\n",
             "steps: 1e400\n", "<<: {steps: 3}\n", "{" * 5000, "\x1b[31m: 1\n")  # fmt: skip
    path = out.parent / "odd.yaml"
    path.write_text(site.random.choice(texts))
    options = (
        ("--config", str(path)),
        ("--lr", "nan"),
        ("--steps", "-1"),
        ("--lr", "\x1b[2J"),
        ("--rows", "1e9"),
        ("--seed", "x"),
    )
    site.run(site.sft(out, *site.random.choice(options)))


def remote(site: Place, out: Path) -> None:
    """A server with arbitrary replies."""
    with hostile_server(site.random.randrange(2**31)) as port:
        address = site.random.choice((
            f"http://127.0.0.1:{port}/v1#m", f"http://127.0.0.1:{port}/v1#m", f"http://127.0.0.1:{port}/v1#m",
            f"http://:{KEY}@127.0.0.1:{port}/v1#m", "http://[::1", "http://127.0.0.1:99999/v1#m", "http://#m", "http://127.0.0.1:1/v1#m",
        ))  # fmt: skip
        words = ["run", "few-shot", "--model", address, "--demos", str(site.data), "--out", str(out)]
        site.run(words, codes=(0, 2))
    if any(KEY.encode() in p.read_bytes() for p in out.parent.rglob("*") if p.is_file() and p.name != "said.txt"):
        site.broken.append("key")


def cache(site: Place, out: Path) -> None:
    """A cache whose entries are damaged."""
    folder = out.parent / "cache"
    words = ["run", "npo", "--out", str(out), "--steps", "2"]
    shutil.copytree(site.root / "cache", folder)
    for path in site.random.sample(files := [p for p in folder.rglob("*") if p.is_file()], min(2, len(files))):
        hurt(site.random, path)
    site.run(words, codes=(0,), DIDACT_CACHE=str(folder))


ATTACKS = {f.__name__: f for f in (kill, damage, records, model, place, configuration, remote, cache)}


@contextlib.contextmanager
def hostile_server(seed: int) -> Iterator[int]:
    """Yield the port of a server on loopback whose replies are valid or invalid at random."""
    rng = random.Random(seed)
    message = {"role": "assistant", "content": " a"}
    choice = {"index": 0, "text": " a", "finish_reason": "stop", "logprobs": None, "message": message}
    valid = {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(
                    rng.choice(
                        ("right", "right", "weird", "deep", "bomb", "slow", "cut", "error", "echo", "html", "loop")
                    )
                )

        def answer(self, fault: str) -> None:
            body, status, headers = json.dumps(valid).encode(), 200, {}
            if fault == "weird":
                reply: Any = json.loads(json.dumps(valid))
                part = rng.choice((reply, reply["choices"][0], reply["usage"], reply["choices"][0]["message"]))
                part[rng.choice(list(part))] = rng.choice(WEIRD)
                body = json.dumps(reply).encode()
            elif fault == "deep":
                body = b"[" * 200_000 + b"]" * 200_000
            elif fault == "bomb":
                body, headers = gzip.compress(bytes(300_000_000), 9), {"Content-Encoding": "gzip"}
            elif fault == "error":
                body, status = (
                    b'{"error": "\x1b[31m' + KEY.encode() + b'"}',
                    rng.choice((400, 401, 404, 429, 500, 503)),
                )
            elif fault == "echo":
                body = body.replace(b" a", f" {self.headers.get('Authorization')}".encode())
            elif fault == "html":
                body = b"<html>\x1b]0;x\x07"
            elif fault == "loop":
                status, headers = 302, {"Location": self.path}
            if fault == "slow":
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.2)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body) * (2 if fault == "cut" else 1)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--out", help="a JSON file for the counts")
    args = parser.parse_args()
    start, counts, broken = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="attacks-") as root:
        site = Place(Path(root), random.Random(args.seed))
        site.run(["run", "npo", "--out", f"{root}/warm", "--steps", "2"], codes=(0,), DIDACT_CACHE=f"{root}/cache")
        assert site.run(site.sft(site.root / "alone" / "out"), codes=(0,)) == 0 and not site.broken
        site.bits = site.weights(site.root / "alone" / "out")
        number = 0
        while time.monotonic() - start < 60 * args.minutes:
            number += 1
            site.random.seed(args.seed * 1_000_003 + number)
            name = args.only or site.random.choice(list(ATTACKS))
            folder = site.root / f"attack-{number}"
            folder.mkdir()
            ATTACKS[name](site, folder / "out")
            site.untouched()
            counts[name] += 1
            if site.broken:
                output = (
                    (site.root / "said.txt").read_text(errors="replace")[-400:]
                    if (site.root / "said.txt").exists()
                    else ""
                )
                broken.append({"attack": name, "number": number, "what": sorted(set(site.broken)), "said": output})
                print(f"{name} {number}: {', '.join(sorted(set(site.broken)))}: {output!r}", flush=True)
                site.broken = []
            shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{sum(counts.values())} attacks in {minutes:.0f} minutes: {len(broken)} did harm ({dict(counts)})")
    if args.out:
        report = {"minutes": round(minutes, 1), "seed": args.seed, "attacks": dict(counts), "broken": broken}
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
