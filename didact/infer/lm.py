"""A local `Model` as an `LM`, and checks of the capabilities that methods need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from didact.data import encode
from didact.infer import generate
from didact.models import forward
from didact.models.model import Model
from didact.types import LM, Likelihood, Messages, UserError

LOCAL = frozenset({"generate", "top_logprobs", "score", "logits", "hidden", "embeds", "train"})
SERVED = frozenset({"generate", "chat", "top_logprobs", "score"})  # the most that a server can have


def of(model: Model | LM) -> LM:
    """Return the model as an `LM`."""
    return Local(model) if isinstance(model, Model) else model


def need(model: Model | LM, *wanted: str, by: str) -> LM:
    """Return the model as an `LM`, with the capabilities that `by` needs.

    Raises:
        UserError: it lacks one.
    """
    lm = of(model)
    for capability in sorted(wanted, key=SERVED.__contains__):  # what no server has first: checking that takes no call
        if reason := lacks(lm, capability):
            raise UserError(f"{by} needs a model with {capability}: {reason}")
    return lm


def lacks(lm: LM, what: str) -> str | None:
    """Return why the model lacks a capability, or None. Only this one is checked: each check of a server is a call."""
    check = getattr(lm, "lacks", None)
    if check is not None:
        return cast("str | None", check(what))
    return None if what in lm.capabilities else f"{lm.name} has {', '.join(sorted(lm.capabilities))}"


def plainly(
    lm: LM, prompts: Sequence[str], choices: Sequence[Sequence[str] | None], stop: Sequence[str] = ()
) -> list[str]:
    """Answer with the plain model: the likeliest choice where a prompt has choices, else a greedy completion."""
    scored = [i for i, texts in enumerate(choices) if texts]
    if scored and lacks(lm, "score"):
        scored = []
    scores = iter(lm.score([(prompts[i], c) for i in scored for c in choices[i] or ()]) if scored else [])
    answers = {i: max(((next(scores).logp, c) for c in choices[i] or ()), key=lambda pair: pair[0])[1] for i in scored}
    remaining = [i for i in range(len(prompts)) if i not in answers]
    completions = lm.generate([prompts[i] for i in remaining], stop=stop) if remaining else []
    answers |= {i: texts[0] for i, texts in zip(remaining, completions, strict=True)}
    return [answers[i] for i in range(len(prompts))]


def cut(text: str, stop: Sequence[str]) -> str:
    """Cut a text before the first stop string, and strip white space around it."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=None)].strip()


class Local:
    """A `Model` behind the `LM` protocol; `model` is the wrapped model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """The folder or hub id it was loaded from."""
        return self.model.base or f"a {getattr(self.model.config, 'model_type', self.model.kind)} of ours"

    def fingerprint(self) -> str:
        """Return the model's fingerprint."""
        return self.model.fingerprint()

    @property
    def capabilities(self) -> frozenset[str]:
        """All capabilities; chat only where the tokenizer has a template."""
        return LOCAL | ({"chat"} if self.model.tokenizer.chat_template else set())

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """See `infer.generate`."""
        how = generate.SamplingConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop)
        )
        return generate.sample(self.model, prompts, n, how)

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """Answer conversations with the tokenizer's own chat template."""
        prompts = [Messages(c) for c in conversations]
        return self.generate(prompts, max_new_tokens, temperature=temperature, seed=seed, n=n)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `models.forward.row_logp`."""
        model = self.model
        rows = [
            encode.row(model.tokenizer, p, c, model.kind, model.context, end=False, condition=model.condition)
            for p, c in pairs
        ]
        total, count = forward.row_logp(model, rows)
        return [Likelihood(float(t), int(n)) for t, n in zip(total, count, strict=True)]

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> list[dict[str, float]]:
        """Return each prompt's top next tokens; probabilities of tokens that decode to the same text are added."""
        model = self.model
        any_token = (int(model.tokenizer.eos_token_id or 0),)
        rows = [
            encode.TokenizedExample(tuple(ids[-model.context :]), any_token)
            for ids in (encode.prompt_ids(model.tokenizer, p, model.kind, model.condition) for p in prompts)
        ]
        out: list[dict[str, float]] = [{} for _ in prompts]

        def best(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            values, ids = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]))
            return torch.stack([values.double(), ids.double()], dim=-1)

        for group, _, values in forward.score(model, rows, {"best": best}):
            for i, pairs in zip(group, values["best"].tolist(), strict=True):
                for logp, token in pairs:
                    text = str(model.tokenizer.decode([int(token)]))
                    before = out[i].get(text)
                    out[i][text] = (
                        float(torch.logaddexp(torch.tensor(before), torch.tensor(logp))) if before is not None else logp
                    )
        return out

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Return exact counts by the model's tokenizer."""
        return [len(self.model.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]

    @property
    def context(self) -> int:
        """The model's own limit."""
        return self.model.context
