"""A server with the parts of vLLM's API that didact calls, around a small model: completions by token ids, adapters
loaded at run time, weights reloaded from a folder. It computes with transformers alone, and can be made to err."""

import contextlib
import copy
import json
import multiprocessing
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FORK = multiprocessing.get_context("fork")
NAME = "small"
# Capabilities and errors: adapters and reload can be "off", or "ignored" (the server reports success and does nothing).
WAYS = {"adapters": "on", "reload": "on", "logps": "raw", "ids": True, "sees": True, "rank": 64, "slow": 0.0}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log, folder, models, tokenizer, lock, ways = None, None, {}, None, None, dict(WAYS)

    def log_message(self, *args):
        pass

    def give(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, message):
        self.give(status, {"error": {"message": message, "code": status}})

    def do_GET(self):
        if self.path == "/v1/models":
            rows = [
                {"id": name, "root": str(self.folder), "parent": None if name == NAME else NAME} for name in self.models
            ]
            return self.give(200, {"data": rows})
        can_sleep = self.path == "/is_sleeping" and self.ways["reload"] != "off"
        return self.give(200, {"is_sleeping": False}) if can_sleep else self.give(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/ways":
            type(self).ways = WAYS | body
            return self.give(200, {})
        with self.lock, torch.no_grad():
            if self.path == "/v1/completions":
                return self.complete(body)
            if self.path.endswith("lora_adapter") and self.ways["adapters"] != "off":
                return self.load(body) if "/load" in self.path else self.unload(body)
            if self.path in ("/collective_rpc", "/reset_prefix_cache") and self.ways["reload"] != "off":
                return self.reload(body)
        return self.give(404, {"detail": "Not Found"})

    def load(self, body):
        if "lora_name" not in body:
            return self.refuse(400, "lora_name: field required")
        path = Path(body["lora_path"])
        if not self.ways["sees"] or not (path / "adapter_config.json").exists():
            return self.refuse(404, f"Loading lora {body['lora_name']} failed: No adapter found for {path}")
        config, tensors = (
            json.loads((path / "adapter_config.json").read_text()),
            load_file(path / "adapter_model.safetensors"),
        )
        if config["r"] > self.ways["rank"]:
            return self.refuse(500, f"LoRA rank {config['r']} is greater than max_lora_rank {self.ways['rank']}.")
        model = copy.deepcopy(self.models[NAME])
        for key in tensors:
            if key.endswith("lora_A.weight") and self.ways["adapters"] != "ignored":
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                change = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
                model.get_submodule(name).weight += config["lora_alpha"] / config["r"] * change
        self.models[body["lora_name"]] = model
        return self.give(200, "loaded")

    def unload(self, body):
        if self.models.pop(body["lora_name"], None) is None:
            return self.refuse(404, "cannot be found")
        return self.give(200, "removed")

    def reload(self, body):
        if body and self.ways["reload"] != "ignored":
            path = body["kwargs"]["weights_path"]
            if not self.ways["sees"]:
                return self.refuse(500, f"Worker failed with error 'Repo id must use alphanumeric chars: {path}'")
            self.models[NAME].load_state_dict(
                AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
            )
        return self.give(200, {"results": [None]})

    def complete(self, body):
        if body["model"] not in self.models:
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        model, prompt = self.models[body["model"]], body["prompt"]
        if max(prompt) >= model.config.vocab_size:
            return self.refuse(400, f"Token id {max(prompt)} is out of vocabulary")
        if body["n"] > 1 and body["temperature"] == 0:
            return self.refuse(400, "n must be 1 when using greedy sampling")
        time.sleep(self.ways["slow"])
        answers = [self.drawn(model, body, body["seed"] + d) for d in range(body["n"])]
        choices = [{"index": i, **choice} for i, choice in enumerate(answers)]
        with contextlib.suppress(OSError):
            self.give(
                200,
                {
                    "choices": choices[::-1],
                    "usage": {"total_tokens": len(prompt) + sum(c.pop("size") for c in choices)},
                },
            )
            with open(self.log, "a", encoding="utf-8") as out:
                out.write(
                    json.dumps({k: body[k] for k in ("model", "prompt", "seed", "n")} | {"slow": self.ways["slow"]})
                    + "\n"
                )

    def drawn(self, model, body, seed):
        """Sample one answer: seeded, no penalty, log-probs of the unmodified model."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        ids, logps, tops, stopped = [], [], [], None
        while len(ids) < body["max_tokens"] and stopped is None:
            logits = model(torch.tensor([[*body["prompt"], *ids]])).logits[0, -1]
            scaled = logits / (body["temperature"] or 1.0)
            p = scaled.softmax(-1)
            token = int(torch.multinomial(p, 1, generator=generator)) if body["temperature"] else int(logits.argmax())
            reported = (scaled if self.ways["logps"] == "processed" else logits).log_softmax(-1)
            likeliest = reported.topk(body["logprobs"]).indices.tolist() if body["logprobs"] else []
            ids.append(token)
            logps.append(float(reported[token]))
            tops.append({f"token_id:{i}": float(reported[i]) for i in {token, *likeliest}})
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            if token in body["stop_token_ids"]:
                stopped = token
            stopped = next((s for s in body["stop"] if s in text), stopped)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in body["stop"]:
            text = text.partition(stop)[0]
        tokens = [f"token_id:{i}" if self.ways["ids"] else self.tokenizer.decode([i]) for i in ids]
        return {
            "text": text, "finish_reason": "length" if stopped is None else "stop", "stop_reason": stopped,
            "token_ids": ids if self.ways["ids"] else None, "size": len(ids),
            "logprobs": {"tokens": tokens, "token_logprobs": logps, "top_logprobs": tops},
        }  # fmt: skip


class Vllm:
    """The server as a process; `log` has the requests that it answered, including probes."""

    def __init__(self, place, folder):
        self.log = Path(place) / "asked.jsonl"
        receiver, sender = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(folder, self.log, sender), daemon=True)
        self.process.start()
        self.url = f"http://127.0.0.1:{receiver.recv()}/v1"

    def ways(self, **changed):
        data, address = json.dumps(changed).encode(), self.url.replace("/v1", "/ways")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, data, timeout=10).read()

    def asked(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def kill(self):
        self.process.kill()
        self.process.join()


def serve(folder, log, sender):
    torch.set_num_threads(1)
    Handler.log, Handler.folder, Handler.lock = log, folder, threading.Lock()
    Handler.tokenizer = AutoTokenizer.from_pretrained(folder)
    Handler.models = {NAME: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()}
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sender.send(server.server_port)
    server.serve_forever()
