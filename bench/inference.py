"""Inference arms: K-shot choice against lm-eval, generation against transformers, exact spans against all spans."""

from __future__ import annotations

import random
from typing import Any

import torch

from bench import problems
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.infer import generate
from didact.models import forward, logit_ensemble
from didact.models.model import Model

ITEMS, CHOICES = 24, 4
NEW_TOKENS = 64


def _questions(model: Model, shared: bool) -> list[list[tuple[str, str]]]:
    """About 700 tokens of demonstrations, a query of 100, four choices of 1-12; (context, choice) pairs per item."""
    write, draw = problems.Writer(model), random.Random(3)
    demonstrations = write(700)
    out = []
    for _ in range(ITEMS):
        context = f"{demonstrations if shared else write(700)}\n{write(100)}"
        out.append([(context, " " + write(draw.randint(1, 12))) for _ in range(CHOICES)])
    return out


def _choices(scores: list[float]) -> dict[str, Any]:
    best = [max(range(CHOICES), key=lambda c: scores[i * CHOICES + c]) for i in range(ITEMS)]
    return {"choices": best, "scores": scores}


def choice_ours(shared: bool = True) -> dict[str, Any]:
    model = problems.llama(d=256)
    pairs = [pair for item in _questions(model, shared) for pair in item]

    def score() -> dict[str, Any]:
        rows = [encode.row(model.tokenizer, p, c, model.kind, model.context, end=False) for p, c in pairs]
        return _choices(forward.row_logp(model, rows)[0].tolist())

    return problems.measured(score, ITEMS, score)


def choice_lm_eval(shared: bool = True, batch: int = 1) -> dict[str, Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = problems.llama(d=256)
    questions = _questions(model, shared)
    lm = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch, max_length=1024)

    def score() -> dict[str, Any]:
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=c, metadata=("bench", i, 1))
            for i, item in enumerate(questions)
            for c, pair in enumerate(item)
        ]
        return _choices([logp for logp, _ in lm.loglikelihood(requests, disable_tqdm=True)])

    return problems.measured(score, ITEMS, score)


def _prompts(model: Model, count: int = 256, shared: int = 0) -> list[str]:
    """Prompts of 20 to 300 tokens, behind an instruction of `shared` tokens that is the same for all."""
    write, draw = problems.Writer(model), random.Random(5)
    instruction = f"{write(shared)}\n" if shared else ""
    return [instruction + write(draw.randint(20, 300)) for _ in range(count)]


def _vary_lengths(model: Model) -> None:
    """Make the random model's answers end at different lengths by raising the probability of its end token."""
    module: Any = model.module
    head = module.get_output_embeddings()
    with torch.no_grad():
        head.weight[model.tokenizer.eos_token_id] = head.weight.mean(0) * 0 + head.weight.std() * 2.2


def _texts_and_tokens(model: Model, texts: list[str]) -> dict[str, Any]:
    return {"texts": texts, "tokens": sum(len(model.tokenizer(t)["input_ids"]) for t in texts)}


def generate_ours(shared: int = 0) -> dict[str, Any]:
    model = problems.llama(tied=False)
    _vary_lengths(model)
    prompts = _prompts(model, shared=shared)
    warm = prompts[:16]
    return problems.measured(
        lambda: _texts_and_tokens(model, generate.generate(model, prompts, NEW_TOKENS)),
        1,
        lambda: generate.generate(model, warm, NEW_TOKENS),
    )


def generate_transformers(batch: int = 64, ordered: bool = False, shared: int = 0) -> dict[str, Any]:
    """`ordered`: prompts sorted by length first, which transformers leaves to its user."""
    model = problems.llama(tied=False)
    _vary_lengths(model)
    prompts = _prompts(model, shared=shared)
    tokenizer: Any = model.tokenizer
    tokenizer.padding_side = "left"

    def run(texts: list[str]) -> dict[str, Any]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if ordered else list(range(len(texts)))
        out = [""] * len(texts)
        module: Any = model.module
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            inputs = tokenizer([texts[i] for i in group], return_tensors="pt", padding=True)
            inputs.pop("token_type_ids", None)
            inputs = {k: v.to(model.device) for k, v in inputs.items()}
            sequences = module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=model.pad)
            new = sequences[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(group, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[i] = text.strip()
        return _texts_and_tokens(model, out)

    return problems.measured(lambda: run(prompts), 1, lambda: run(prompts[:batch]))


def _pair(batch: int) -> tuple[Model, Model, list[str]]:
    """A base, a reward model of half its width, and prompts."""
    base, arm = problems.llama(d=256), problems.llama(d=128, layers=4, seed=1)
    return base, arm, _prompts(base, batch)


def guided_ours(batch: int = 64) -> dict[str, Any]:
    """Decode with a reward model that guides every token."""
    base, arm, prompts = _pair(batch)
    model = logit_ensemble.guided(base, [(arm, 1.0)])
    how = generate.SamplingConfig(max_new_tokens=NEW_TOKENS, rows=batch)
    warm = generate.SamplingConfig(max_new_tokens=4, rows=batch)

    def decode(how: generate.SamplingConfig) -> int:
        return sum(len(row[0].tokens) for row in generate.completions(model, prompts, 1, how))

    return problems.measured(lambda: decode(how), 1, lambda: decode(warm))


def guided_apart(batch: int = 64) -> dict[str, Any]:
    """Decode with the base and with the reward model separately: the least that guidance has to compute."""
    base, arm, prompts = _pair(batch)
    how = generate.SamplingConfig(max_new_tokens=NEW_TOKENS, rows=batch)
    warm = generate.SamplingConfig(max_new_tokens=4, rows=batch)

    def both(how: generate.SamplingConfig) -> int:
        completions = [generate.completions(model, prompts, 1, how) for model in (base, arm)]
        return sum(len(row[0].tokens) for row in completions[0])

    return problems.measured(lambda: both(how), 1, lambda: both(warm))


def _span_question(model: Model) -> Any:
    """Return the prompt format and a question about a passage of 500 tokens."""
    from didact.infer import qa_prompts

    write = problems.Writer(model)
    form = qa_prompts.prompt_format(model)
    return form, qa_prompts.encode_question(model, form, write(500), write(12))


def spans_ours(longest: int = 30, prune: bool = True) -> dict[str, Any]:
    from didact.infer import span_scores

    model = problems.llama()
    form, question = _span_question(model)

    def best() -> list[int]:
        table = span_scores.score(model, [question], form, longest, prune=prune)[0]
        span = span_scores.best(question, table, form)[0]
        return [int(span.start or 0), len(span.tokens)]

    return problems.measured(best, 1, best)


def spans_all(longest: int = 30, every: int = 20) -> dict[str, Any]:
    """Forced decoding of every span on its own, sorted by length, in batches of 32; every 20th start is timed."""
    model = problems.llama()
    form, question = _span_question(model)
    passage = question.passage
    starts = range(0, len(passage), every)
    rows = [
        TokenizedExample(question.prompt, (*passage[i : j + 1], form.end))
        for i in starts
        for j in range(i, min(i + longest, len(passage)))
    ]
    rows.sort(key=lambda r: len(r.completion))

    def score() -> None:
        for first in range(0, len(rows), 32):
            batch = collate(rows[first : first + 32], model.kind, model.pad, model.start)
            with torch.no_grad():
                logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                logits.flatten(0, 1)[batch.at].log_softmax(-1).gather(1, batch.target[:, None])

    return problems.measured(score, len(starts) / len(passage))


TREES = 16
SEARCHED: dict[str, Any] = {"simulations": 8, "depth": 3}  # depth and steps per node as in the MCTS-DPO paper
STEP, BREADTH = 16, 2
VERDICT = " A"


def _tree_prompts(model: Model) -> dict[int, tuple[int, ...]]:
    """Prompts of 100-150 tokens, by tree number."""
    write, draw = problems.Writer(model), random.Random(7)
    return {n: tuple(model.tokenizer(write(draw.randint(100, 150)))["input_ids"]) for n in range(TREES)}


def _search_trees(side_by_side: int, propose: Any, value: Any) -> dict[str, Any]:
    """Search all trees, `side_by_side` at a time."""
    from didact.infer import tree

    sizes = []
    for start in range(0, TREES, side_by_side):
        trees = tree.search(range(start, start + side_by_side), propose, value, tree.SearchConfig(**SEARCHED))
        sizes += [[len(t.rows()), t.root.visits] for t in trees]
    return {"trees": sizes, "nodes": sum(n - 1 for n, _ in sizes)}


def tree_ours() -> dict[str, Any]:
    """Trees of three steps of 16 tokens, two per node; a node's value is the log-probability of a verdict after it."""
    from didact.infer import policy

    model = problems.llama()
    prompts, verdict = _tree_prompts(model), tuple(model.tokenizer(VERDICT)["input_ids"])
    config = policy.StepSearch(
        root_actions=BREADTH, actions=BREADTH, depth=9, step_tokens=STEP, prior_power=1.0, last=""
    )

    def search() -> dict[str, Any]:
        actor = policy.Steps(model, prompts, frozenset(), config, 3)

        def value(nodes: list[Any]) -> list[float]:
            rows = [TokenizedExample((*prompts[n.tree], *n.tokens), verdict) for n in nodes]
            return [float(x) / 100 for x in forward.row_logp(model, rows, kv_cache=actor.kv_cache)[0]]

        return _search_trees(TREES, actor.propose, value)

    return problems.measured(search, 1, search)


def tree_plain() -> dict[str, Any]:
    """The same search one tree at a time: transformers' `generate` for steps and priors, its forward for values."""
    from didact.infer.steps import prior
    from didact.infer.tree import Step

    model = problems.llama()
    prompts, verdict = _tree_prompts(model), model.tokenizer(VERDICT)["input_ids"]
    module: Any = model.module

    def propose(nodes: list[Any]) -> list[list[list[Step]]]:
        out = []
        for node in nodes:
            prompt = torch.tensor([(*prompts[node.tree], *node.tokens)])
            torch.manual_seed(node.key)
            picked = module.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEP, do_sample=True,
                num_return_sequences=BREADTH, pad_token_id=model.pad, top_k=0, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
            logp = module.compute_transition_scores(picked.sequences, picked.logits, normalize_logits=True).sum(-1)
            rows = picked.sequences[:, prompt.shape[1] :].tolist()
            out.append([[Step(tuple(r), prior(float(p), len(r), 1.0))] for r, p in zip(rows, logp, strict=True)])
        return out

    @torch.no_grad()
    def value(nodes: list[Any]) -> list[float]:
        rows = [(*prompts[n.tree], *n.tokens, *verdict) for n in nodes]  # children of one parent: equal lengths
        logits = module(input_ids=torch.tensor(rows)).logits[:, -len(verdict) - 1 : -1].log_softmax(-1)
        picked = logits.gather(-1, torch.tensor([verdict] * len(rows))[..., None])
        return [float(x) / 100 for x in picked.sum((1, 2))]

    return problems.measured(lambda: _search_trees(1, propose, value), 1, lambda: _search_trees(1, propose, value))
