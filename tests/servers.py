"""Servers for the tests, each a process on loopback that counts every call: `Small` (ours) and `transformers serve`.

`python servers.py --log FILE [--model DIR] [--port N]` serves the OpenAI endpoints: for a transformers model, with
log-probs from one plain forward pass, or (no torch, quick to start) for a rule that makes text from text.
POST /plan sets the faults of the next calls, POST /ways the server's capabilities.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "small"
WAYS = {
    "key": None,  # the required bearer token
    "endpoints": ["completions", "chat/completions"],
    "logprobs": 20,  # the maximum; 0: ignored
    "echo": "empty",  # works with max_tokens 0; "one": only with 1; "ignored"; "refused"; "zeros": all log-probs are 0
    "form": "lists",  # format of log-probs; "content": the chat format
    "seed": True,  # False: refused
    "noise": False,  # True: no two answers are equal
    "limit": "max_tokens",  # name of the limit in requests
    "usage": True,
    "listed": True,
    "spaced": True,  # False: tokens are returned without their white space
}


class Words:
    """A rule in place of a model: tokens are words with the space before them; longer words are less likely."""

    context = 64
    chats = True

    def tokens(self, text):
        return [t for t in re.split(r"(?<=\S)(?=\s)", text) if t]

    def echo(self, text):
        tokens = self.tokens(text)
        return tokens, [None, *(-float(len(t)) for t in tokens[1:])]

    def top(self, text, k):
        return [(self.say(text, 1, 0.0, 0), -0.1), *((f" {i}", -3.0 - i) for i in range(k - 1))]

    def say(self, text, limit, temperature, seed):
        digest = hashlib.sha256(f"{text}|{seed if temperature else 'greedy'}".encode()).hexdigest()
        return "".join(f" {digest[4 * i : 4 * i + 4]}" for i in range(min(limit, 8)))

    def render(self, messages):
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)


class Hugging:
    """A transformers model: every number from one plain forward pass over the whole text."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch, self.lock = torch, threading.Lock()
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.context = self.model.config.max_position_embeddings
        self.chats = bool(self.tokenizer.chat_template)

    def ids(self, text):
        return self.tokenizer(text)["input_ids"]

    def tokens(self, text):
        return [self.tokenizer.decode([i]) for i in self.ids(text)]

    def logp(self, ids):
        with self.lock, self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def echo(self, text):
        ids = self.ids(text)
        logp = self.logp(ids)
        return self.tokens(text), [None, *(float(logp[t, i]) for t, i in enumerate(ids[1:]))]

    def top(self, text, k):
        values, ids = self.logp(self.ids(text))[-1].topk(k)
        return [(self.tokenizer.decode([i]), v) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]

    def say(self, text, limit, temperature, seed):
        ids = self.torch.tensor([self.ids(text)])
        with self.lock, self.torch.no_grad():
            self.torch.manual_seed(seed)
            options = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            ids_out = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=limit, **options
            )
        return self.tokenizer.decode(ids_out[0, ids.shape[1] :], skip_special_tokens=True)

    def render(self, messages):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model, log, ways, plan, lock = None, None, dict(WAYS), [], threading.Lock()

    def log_message(self, *args):
        pass

    def note(self, **row):
        with self.lock, open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"at": time.time()}) + "\n")

    def give(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, what in headers:
            self.send_header(name, what)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, message):
        self.note(event="refused", status=status, message=message)
        self.give(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def do_GET(self):
        if self.path == "/v1/models" and self.ways["listed"]:
            return self.give(200, {"data": [{"id": NAME, "max_model_len": self.model.context}]})
        return self.give(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/plan":
            self.plan.extend(body)
            return self.give(200, {})
        if self.path == "/ways":
            type(self).ways = WAYS | body
            return self.give(200, {})
        endpoint = self.path.removeprefix("/v1/")
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        self.note(event="came", endpoint=endpoint, prompt=prompt, seed=body.get("seed"))
        with self.lock:
            fault = self.plan.pop(0) if self.plan else None
        if fault and self.fail(fault):
            return None
        ways = self.ways
        if ways["key"] and self.headers["Authorization"] != f"Bearer {ways['key']}":
            return self.refuse(401, f"Incorrect API key provided: {self.headers['Authorization']}")
        if not self.path.startswith("/v1/") or endpoint not in ways["endpoints"]:
            self.note(event="refused", status=404)
            return self.give(404, {"detail": "Not Found"})
        if body["model"] != NAME:
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        if not ways["seed"] and "seed" in body:
            return self.refuse(400, "Unrecognized request argument supplied: seed")
        if ways["limit"] not in body:
            return self.refuse(400, f"Unsupported parameter: use '{ways['limit']}' instead.")
        chat = endpoint.startswith("chat")
        if chat and not self.model.chats:
            return self.refuse(400, "the tokenizer has no chat template")
        text = self.model.render(body["messages"]) if chat else body["prompt"]
        limit, k = body[ways["limit"]], body.get("top_logprobs" if chat else "logprobs", 0)
        if len(self.model.tokens(text)) + limit > self.model.context:
            return self.refuse(400, f"This model's maximum context length is {self.model.context} tokens.")
        if k and ways["logprobs"] and k > ways["logprobs"]:
            return self.refuse(400, f"logprobs: {k} is more than {ways['logprobs']}")
        echo = body.get("echo") and ways["echo"] != "ignored"
        if echo and (ways["echo"] == "refused" or (ways["echo"] == "one" and limit < 1)):
            return self.refuse(400, "Only no echo is supported" if limit else "max_tokens must be at least 1")
        reply = self.model.say(text, limit, body.get("temperature", 1.0), body.get("seed", 0)) if limit else ""
        if ways["noise"]:
            reply += f" {time.perf_counter_ns()}"
        for stop in body.get("stop", []):
            reply = reply.partition(stop)[0]
        choice = {"index": 0, "finish_reason": "length"}
        choice |= (
            {"message": {"role": "assistant", "content": reply}} if chat else {"text": (text if echo else "") + reply}
        )
        if k and ways["logprobs"]:
            choice["logprobs"] = self.logprobs(text, k, echo, limit, chat)
        counts = {"prompt_tokens": len(self.model.tokens(text)), "completion_tokens": len(self.model.tokens(reply))}
        usage = {"usage": counts | {"total_tokens": sum(counts.values())}} if ways["usage"] else {}
        self.give(200, {"id": "x", "model": f"{NAME}@main", "choices": [choice], **usage})
        self.note(event="answered", endpoint=endpoint, prompt=prompt, seed=body.get("seed"))

    def logprobs(self, text, k, echo, limit, chat):
        tokens, logps = self.model.echo(text) if echo else ([], [])
        if self.ways["echo"] == "zeros":
            logps = [0.0 for _ in logps]
        tops = [None] * len(tokens)
        if limit:
            top = self.model.top(text, k)
            tokens, logps, tops = [*tokens, top[0][0]], [*logps, top[0][1]], [*tops, top]
        if not self.ways["spaced"]:
            tokens = [t.strip() for t in tokens]
        if chat or self.ways["form"] == "content":
            rows = [
                {"token": t, "logprob": p, "top_logprobs": [{"token": w, "logprob": q} for w, q in top or ()]}
                for t, p, top in zip(tokens, logps, tops, strict=True)
            ]
            return {"content": rows}
        return {"tokens": tokens, "token_logprobs": logps, "top_logprobs": [t and dict(t) for t in tops]}

    def fail(self, fault):
        kind = fault["kind"]
        self.note(event="failed", kind=kind)
        reply = json.dumps({"choices": [{"text": "never to be read", "index": 0}]}).encode()
        if kind.isdigit():
            headers = [("Retry-After", fault["after"])] if "after" in fault else []
            self.give(int(kind), {"error": {"message": fault.get("says", "a fault of ours"), "code": kind}}, headers)
        elif kind == "shape":
            self.give(200, {"object": "nothing"})
        elif kind == "invalid":
            self.send_response(200)
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b"<html>hi</html>")
        elif kind == "cut":  # fewer bytes than Content-Length says
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply[:20])
            self.close_connection = True
        elif kind == "cut quietly":  # the end of the connection is the end of the answer
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply[:20])
            self.close_connection = True
        elif kind == "closed":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "drip":  # never silent for long, never done
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            for byte in reply:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    break
                time.sleep(fault["s"])
            self.close_connection = True
        elif kind == "stall":
            time.sleep(fault["s"])
            self.close_connection = True
        elif kind == "slow":  # late, but correct
            time.sleep(fault["s"])
            return False
        return True


class Small:
    """Our server as a process; `log` is a file that outlives it."""

    def __init__(self, folder, model=None):
        self.log = Path(folder) / "calls.jsonl"
        self.model, self.port = model, 0
        self.start()

    def start(self):
        model_options = ["--model", str(self.model)] if self.model else []
        command = [sys.executable, __file__, "--log", str(self.log), "--port", str(self.port), *model_options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = False

    @property
    def url(self):
        """The address; waits until the server is up."""
        if not self.ready:
            self.port, self.ready = int(self.process.stdout.readline()), True
        return f"http://127.0.0.1:{self.port}/v1"

    def tell(self, place, value):
        data, address = json.dumps(value).encode(), self.url.replace("/v1", place)
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, data, timeout=10).read()

    def plan(self, *faults):
        self.tell("/plan", faults)

    def ways(self, **changed):
        self.tell("/ways", changed)

    def rows(self, event):
        rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [row for row in rows if row["event"] == event]

    def prompts(self, event="came"):
        """Prompts of the calls so far, without the probes."""
        return [r["prompt"] for r in self.rows(event) if r.get("prompt") not in ("1 2 3", "one two three four")]

    def wait(self, count, event="came"):
        for _ in range(600):
            if len(self.prompts(event)) >= count:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{len(self.prompts(event))} of {count} calls {event}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def clear(self):
        self.ways()
        self.log.unlink(missing_ok=True)


class Raw:
    """A server in a thread that answers every request with whatever bytes `answer(connection, path, body)` sends.

    `heads` are the request lines and headers received.
    """

    def __init__(self, answer):
        self.answer, self.heads = answer, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self.serve, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.talk, args=[self.socket.accept()[0]], daemon=True).start()

    def talk(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            head = list(iter(lines.readline, b"\r\n"))
            self.heads.append(b"".join(head).decode())
            size = next((int(h.split(b":")[1]) for h in head if h.lower().startswith(b"content-length")), 0)
            self.answer(connection, head[0].split()[1].decode(), lines.read(size))


def said(text, status="200 OK", **headers):
    """Return the bytes of a complete HTTP response."""
    data = text if isinstance(text, bytes) else text.encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n{lines}\r\n".encode() + data


class Serve:
    """`transformers serve` as a process."""

    def __init__(self, folder, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.output = str(model), Path(folder) / "serve.txt"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        command = [str(Path(sys.executable).with_name("transformers")), "serve", self.model, *options]
        with open(self.output, "w", encoding="utf-8") as out:
            env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env)

    @property
    def url(self):
        """The address; waits until the server is up, at most a minute."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            try:
                opener.open(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return f"http://127.0.0.1:{self.port}/v1"
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"transformers serve did not start:\n{self.output.read_text()[-2000:]}")

    def kill(self):
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--model")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    Handler.log, Handler.model = args.log, Hugging(args.model) if args.model else Words()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    threading.Thread(
        target=lambda: os._exit(sys.stdin.read() != ""), daemon=True
    ).start()  # exits with the test process
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
