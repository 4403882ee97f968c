"""Generation: one decoding loop for greedy, sampled and constrained completions.

Prompts are sorted by length; a prefix common to all is run once; finished rows leave the batch and waiting
prompts take their places. Model types whose cache is not proven exact (`prefix.PROVEN`) are decoded by their own
`generate`, with our choice of tokens injected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from didact import progress
from didact.bounds import Count, NonNegative, PositiveShare, Whole
from didact.data import encode
from didact.infer import beam, engines, sampling
from didact.infer.constrain import Constraint
from didact.infer.rows import Rows
from didact.models import cost, head, logit_ensemble, prefix, vocabulary
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.objectives import tokens as token_functions

Processor = Callable[[Tensor, Tensor], Tensor]
NEVER = 1 << 30  # no token's id: given as end token to the model's own `generate`, where we end the rows
SHARE = 16  # tokens: shorter common prefixes are not worth a pass of their own


class Completion(NamedTuple):
    """A decoded completion. `logp` is the model's own log-prob of `tokens`, SUM in nats, however they were chosen.

    `tokens` includes the end token, if any, and the tokens of a stop string; `text` includes neither.
    """

    text: str
    tokens: tuple[int, ...]
    logp: float


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Decoding options.

    Args:
        max_new_tokens: most tokens; fewer where the context ends.
        temperature: 0 is greedy.
        top_p: nucleus sampling's mass; 1 samples from all tokens.
        top_k: sample from this many likeliest tokens; 0 is all.
        seed: determines, with the numbers of row and draw, all randomness of a completion.
        rows: batch size of decoding.
        stop: a completion ends before the first of these strings.
        closing: a completion ends with the first of these tokens, which is kept; ignored by beam search.
        beams: beam width; 1 is no beam search, and `temperature` decides how tokens are chosen.
        length_penalty: beam search's alpha.
    """

    max_new_tokens: Count = 64
    temperature: NonNegative = 0.0
    top_p: PositiveShare = 1.0
    top_k: Whole = 0
    seed: int = 0
    rows: Count = 64
    stop: Sequence[str] = ()
    closing: Collection[int] = ()
    beams: Count = 1
    length_penalty: float = 0.6


def generate(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 64,
    *,
    top_k: int = 0,
    stop: Sequence[str] = (),
    beams: int = 1,
    length_penalty: float = 0.6,
    constraint: Constraint | Sequence[Constraint] | None = None,
    processors: Sequence[Processor] = (),
) -> list[str]:
    """Return one completion per prompt, in order; greedy at temperature 0.

    Prompts are truncated on the left so that prompt and completion fit the context, but never below half of it; then
    the completion is cut short. `SamplingConfig` explains the options, `completions` the rest.
    """
    how = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, rows=rows,
        stop=stop, beams=beams, length_penalty=length_penalty,
    )  # fmt: skip
    return [draws[0].text for draws in completions(model, prompts, 1, how, constraint, processors)]


def sample(
    model: Model,
    prompts: Sequence[str],
    n: int,
    how: SamplingConfig | None = None,
    constraint: Constraint | Sequence[Constraint] | None = None,
    processors: Sequence[Processor] = (),
) -> list[list[str]]:
    """Return `n` texts per prompt, at temperature 1 unless `how` is given; see `completions`."""
    rows = completions(model, prompts, n, how or SamplingConfig(temperature=1.0), constraint, processors)
    return [[c.text for c in draws] for draws in rows]


@cost.timed("generation")
@torch.no_grad()
def completions(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    n: int = 1,
    how: SamplingConfig | None = None,
    constraint: Constraint | Sequence[Constraint] | None = None,
    processors: Sequence[Processor] = (),
    keys: Sequence[int] | None = None,
    kv_cache: KVCache | None = None,
) -> list[list[Completion]]:
    """Return `n` completions of every prompt with their tokens and log-probs.

    A model with a `condition` has its text in every prompt, and never generates the tokens it bans. Draw d of row i
    depends on `(how.seed, keys[i], d)` only: neither `rows`, nor `n`, nor the order in which rows finish changes it.
    The model's own generation defaults (repetition penalties, say) are not applied.

    Args:
        model: any causal or seq2seq model.
        prompts: texts, or token ids, which are used unchanged (without the text of a condition).
        n: draws per prompt, which share its forward pass; with beams, the best hypotheses (at most `beams`).
        how: lengths, temperature, stops, beams.
        constraint: which tokens may follow which, for all prompts or one for each; a row ends only where it or
            `max_new_tokens` does. The choice, greedy or drawn, is then among the allowed tokens (renormalised); `logp`
            stays the model's own.
        processors: transformers logits processors `(input_ids (B, T), logits (B, V)) -> logits`, called before
            temperature and constraint. Batches then keep their rows from first to last token, as processors
            with a state per row expect; finished rows go on with padding. A method `begin(prompts)`, if there is one,
            receives each batch's prompts, as token ids, before its first call.
        keys: seed each prompt's draws; by default its index among the prompts.
        kv_cache: prefix cache of this model: prompts continue from it, and what is read is added. Unused where the
            model's cache is not proven exact.

    Raises:
        ValueError: beam search with sampling, processors or `n > beams`; constraints of another number than prompts.
    """
    how = how or SamplingConfig()
    if how.beams > 1 and (how.temperature > 0 or n > how.beams or processors):
        raise ValueError(
            f"beam search of width {how.beams} needs temperature 0, n (here {n}) at most the width, and no processors"
        )
    guides: list[Processor] = []
    ensemble = model if how.beams == 1 and isinstance(model, logit_ensemble.EnsembleModel) else None
    if ensemble and isinstance(ensemble.module, logit_ensemble.Guided):
        from didact.infer import guide  # the base decodes, the guides keep caches of their own

        guides, model = [guide.decoder(ensemble)], ensemble.members[0]
    token_ids = [_prompt_ids(model, p) for p in prompts]
    if model.processor is not None:
        encode.check_vocabulary(model.tokenizer, [i for ids in token_ids for i in ids])
    context = model.context  # looked up once: the config is slow to read
    limit = _prompt_room(model.kind, context, how.max_new_tokens)
    encode.tell_cut(model.processor, "answers", sum(len(i) > limit for i in token_ids), len(token_ids), context)
    ids = [(encode.clipped(model.processor, i, limit) if len(i) > limit else i) or [model.pad] for i in token_ids]
    constraints = _per_prompt(constraint, len(ids))
    key_of = list(range(len(ids)) if keys is None else keys)
    if engine := engines.engine_for(model):
        if how.beams == 1 and constraint is None and not (guides or processors or banned(model)):
            rooms = [_room(model.kind, context, r, how) for r in ids]
            answers = engine.completions(model, ids, rooms, n, how, key_of, ends(model))
            return [[Completion(text_of(model, t, how.stop), t, logp) for t, logp in row] for row in answers]
        engine.local += len(ids) * n
    training = model.module.training
    model.module.eval()
    try:
        if how.beams > 1:
            decoded = [
                [(h.tokens, h.logp) for h in row[:n]]
                for row in beam.search(
                    model, ids, how.beams, how.length_penalty, [_room(model.kind, context, r, how) for r in ids],
                    ends(model), constraints, how.rows, n, banned(model),
                )
            ]  # fmt: skip
        else:
            draws = [
                [_Draw(i, d, how, _room(model.kind, context, r, how), constraints[i], key_of[i]) for d in range(n)]
                for i, r in enumerate(ids)
            ]
            with progress.Counted("answering", sum(not d.done for row in draws for d in row)) as bar:
                chooser = _Chooser(model, how, guides, processors, bar)
                if prefix.shares(model):
                    _decode(model, ids, draws, chooser, how.rows, kv_cache)
                else:
                    _decode_plain(model, ids, draws, chooser, how.rows)
            decoded = [[(tuple(d.tokens), d.logp) for d in row] for row in draws]
    finally:
        model.module.train(training)
    return [[Completion(text_of(model, tokens, how.stop), tokens, logp) for tokens, logp in row] for row in decoded]


def ends(model: Model) -> frozenset[int]:
    """Return the tokens that end a model's text; see `encode.stops`."""
    return frozenset(model.generation_ends) if model.processor is None else encode.stops(model.processor)


def banned(model: Model) -> list[int]:
    """Return the tokens that a model's condition bans."""
    if model.condition is None:
        return []
    return vocabulary.ids(model, model.condition.banned)


def text_of(model: Model, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """Decode tokens up to the first stop string, without end token, special tokens and surrounding white space."""
    tokens = tokens[:-1] if tokens and tokens[-1] in ends(model) else tokens
    text = str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=None)].strip()


@dataclass(eq=False)
class _Draw:
    """One completion in progress."""

    row: int
    number: int
    how: SamplingConfig
    room: int
    constraint: Constraint | None
    key: int
    tokens: list[int] = field(default_factory=list)
    logp: float = 0.0
    done: bool = False
    state: Any = None
    uniforms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.done = self.room < 1
        if self.constraint is not None:
            self.state = self.constraint.start()
            self.done |= not self.constraint.allowed(self.state)

    def uniform(self) -> float:
        """Return this step's random number."""
        if not self.uniforms:
            self.uniforms = sampling.uniforms(self.how.seed, self.key, self.number, self.room)
        return self.uniforms[len(self.tokens)] if not self.done else 0.0


class _Chooser:
    """Chooses every row's next token from the logits and appends it to the row."""

    def __init__(
        self, model: Model, how: SamplingConfig, guides: Sequence[Processor], processors: Sequence[Processor],
        bar: progress.Counted,
    ) -> None:  # fmt: skip
        self.model, self.how, self.guides, self.processors = model, how, guides, [*guides, *processors]
        self.bar = bar
        self.ends = ends(model)
        self.banned = banned(model)
        # A stop string ending now began at most its bytes in tokens ago: a token is at least one byte.
        self.reach = max((len(s.encode()) for s in how.stop), default=0) + 8

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Pass the next rows' prompts to the processors that keep a state (those with a `begin`)."""
        for processor in self.processors:
            if begin := getattr(processor, "begin", None):
                begin(prompts)

    def __call__(self, rows: Sequence[_Draw], logits: Tensor, read: Tensor | None) -> Tensor:
        """Choose tokens `(B,)` from `logits (B, V)`; `read (B, T)`, for processors, holds all tokens read so far."""
        chosen = logits
        if read is not None:
            for processor in self.processors:
                chosen = processor(read, chosen)
                logits = chosen if processor in self.guides else logits  # a guided model's own logits
        if self.banned:
            chosen = chosen.index_fill(-1, torch.tensor(self.banned, device=chosen.device), -torch.inf)
        if any(row.constraint is not None for row in rows):
            chosen = chosen + _constraint_mask(rows, chosen)
        uniform = torch.tensor([row.uniform() for row in rows], dtype=torch.float64) if self.how.temperature else None
        size = head.at_once(logits.shape[-1])
        parts = [slice(at, at + size) for at in range(0, len(rows), size)]
        tokens = torch.cat([self._pick(chosen[part], None if uniform is None else uniform[part]) for part in parts])
        logp = torch.cat([token_functions.logp(logits[part], tokens[part]) for part in parts])
        for row, token, value in zip(rows, tokens.tolist(), logp.tolist(), strict=True):
            if not row.done:
                self._append(row, token, value)
        return tokens

    def _pick(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """Return the likeliest tokens, or ones drawn with the random numbers `uniform (B,)`."""
        if uniform is None:
            return logits.argmax(-1)
        p = sampling.probabilities(logits, self.how.temperature, self.how.top_p, self.how.top_k)
        return sampling.draw(p, uniform)

    def _append(self, row: _Draw, token: int, logp: float) -> None:
        row.tokens.append(token)
        row.logp += logp
        if row.constraint is not None:
            row.state = row.constraint.advance(row.state, token)
            row.done = not row.constraint.allowed(row.state)
        else:
            row.done = token in self.ends or token in self.how.closing
        row.done |= len(row.tokens) >= row.room
        if self.how.stop and not row.done:
            row.done = self._has_stop(row.tokens[-self.reach :]) and self._has_stop(row.tokens)
        if row.done:
            self.bar.advance()

    def _has_stop(self, tokens: Sequence[int]) -> bool:
        text = str(self.model.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return any(s in text for s in self.how.stop)


def _decode(
    model: Model,
    ids: Sequence[Sequence[int]],
    draws: Sequence[Sequence[_Draw]],
    chooser: _Chooser,
    rows: int,
    kv_cache: KVCache | None = None,
) -> None:
    """Decode with our own cache; fills the draws."""
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    queue = [d for i in order for d in draws[i] if not d.done][::-1]
    shared = prefix.common(ids)
    state = Rows(model, ids[0][:shared] if shared >= SHARE else (), kv_cache)
    live: list[_Draw] = []
    read: Tensor | None = None
    while queue or live:
        running = [k for k, d in enumerate(live) if not d.done]
        free = rows - len(running)
        # Moving rows costs about a step: worth it once a quarter has finished.
        if not running or (4 * (len(live) - len(running)) >= len(live) > len(running) and not chooser.processors):
            for k, draw in enumerate(live if kv_cache is not None else ()):
                if draw.done:  # its last token was never read
                    state.remember(k, [*ids[draw.row], *draw.tokens[:-1]])
            fresh = [queue.pop() for _ in range(min(free, len(queue)))]
            if not running and not fresh:
                break
            admitted = list(dict.fromkeys(d.row for d in fresh))
            counts = [sum(d.row == i for d in fresh) for i in admitted]
            state.turn(running, [ids[i] for i in admitted], max((d.room for d in fresh), default=0), counts)
            live = [live[k] for k in running] + fresh
            chooser.begin([ids[d.row] for d in live])
            # With processors the batch is all new here, so that its rows have read their prompts and nothing else.
            read = _left_padded(model, [ids[d.row] for d in live]) if chooser.processors else None
        done = [d.done for d in live]
        tokens = chooser(live, state.logits, read)
        if not all(d.done for d in live):
            if read is not None:  # as in transformers: padding after a row's end
                appended = tokens.masked_fill(torch.tensor(done, device=tokens.device), model.pad)
                read = torch.cat([read, appended[:, None]], 1)
            state.step(tokens)


def _decode_plain(
    model: Model, ids: Sequence[Sequence[int]], draws: Sequence[Sequence[_Draw]], chooser: _Chooser, rows: int
) -> None:
    """Decode with the model's own `generate`, our choice injected as a logits processor."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    queue = [d for i in order for d in draws[i] if not d.done]
    for start in range(0, len(queue), rows):
        live = queue[start : start + rows]
        chooser.begin([ids[d.row] for d in live])
        tokens = _left_padded(model, [ids[d.row] for d in live])
        mask = torch.tensor([[0] * (tokens.shape[1] - len(ids[d.row])) + [1] * len(ids[d.row]) for d in live])

        def choose(read: Tensor, logits: Tensor, live: Sequence[_Draw] = live) -> Tensor:
            done = torch.tensor([d.done for d in live], device=logits.device)
            chosen = chooser(live, logits, read).masked_fill(done, model.pad)
            return torch.full_like(logits, -torch.inf).scatter_(-1, chosen[:, None], 0.0)

        def finished(read: Tensor, logits: Any, live: Sequence[_Draw] = live, **kwargs: Any) -> Tensor:
            return torch.tensor([d.done for d in live], device=read.device)

        module: Any = model.module  # every transformers model has `generate`
        module.generate(
            input_ids=tokens,
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=max(d.room for d in live), do_sample=False, num_beams=1, pad_token_id=model.pad,
                eos_token_id=NEVER, decoder_start_token_id=model.start,
                repetition_penalty=1.0, no_repeat_ngram_size=0, encoder_repetition_penalty=1.0, min_length=0,
            ),
            logits_processor=LogitsProcessorList([choose]),
            stopping_criteria=StoppingCriteriaList([finished]),
        )  # fmt: skip


def _prompt_ids(model: Model, prompt: str | Sequence[int]) -> list[int]:
    """Return a prompt's tokens."""
    if isinstance(prompt, str):
        return encode.prompt_ids(model.tokenizer, prompt, model.kind, model.condition)
    return list(prompt)


def _prompt_room(kind: str, context: int, new: int) -> int:
    """Return the most tokens of a prompt: those that leave room for the completion, and half the context at least."""
    return max(context - new, context // 2) if kind == "causal" else context


def _room(kind: str, context: int, ids: Sequence[int], how: SamplingConfig) -> int:
    return min(how.max_new_tokens, context - len(ids)) if kind == "causal" else how.max_new_tokens


def _per_prompt(constraint: Constraint | Sequence[Constraint] | None, n: int) -> list[Constraint | None]:
    if not isinstance(constraint, Sequence):
        return [constraint] * n
    if len(constraint) != n:
        raise ValueError(f"{len(constraint)} constraints for {n} prompts")
    return list(constraint)


def _constraint_mask(rows: Sequence[_Draw], logits: Tensor) -> Tensor:
    """Return `(B, V)`: 0 at allowed tokens, minus infinity elsewhere."""
    out = torch.full_like(logits, -torch.inf)
    for i, row in enumerate(rows):
        out[i, list(row.constraint.allowed(row.state)) if row.constraint and not row.done else slice(None)] = 0
    return out


def _left_padded(model: Model, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return token ids `(B, T)`, padded on the left."""
    width = max(map(len, rows))
    return torch.tensor([[model.pad] * (width - len(r)) + list(r) for r in rows], device=model.device)
