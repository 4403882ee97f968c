"""iTool: where tuning on more tool calls stops paying, a tree search finds the fragments that are still wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from didact.data import encode, selection
from didact.data.streams import ExampleGroup, MicroBatch
from didact.evaluate import tool_calls
from didact.infer import generate, policy, rank, tree
from didact.infer.tree import Node
from didact.learn import branches, language, preferences
from didact.learn import rounds as loop
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.learn.rounds import Round
from didact.models import forward
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Preference, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "dpo": {"loss": "dpo", "beta": 0.1},
    "orpo": {"loss": "orpo", "beta": 0.1},
    "ipo": {"loss": "ipo", "beta": 0.1},
    "random": {"select": "random"},
    "cold": {"bins": 0},  # no warm-up
    "response": {"group": 1000, "depth": 1},  # whole answers are compared
    "official": {"rounds": 1, "judge": "self", "depth": 2, "group": 1},
}
ASKED = (
    "REQUEST: {request}\n\nGROUND TRUTH: {truth}\n\nANSWER: {answer}\n\n"
    "Compare the answer with the ground truth by five criteria: function names, number of parameters, parameter names, "
    "parameter values and types, and meaning. A fragment of the ground truth is excellent too.\n"
    "(A) Excellent\n(B) Acceptable\n(C) Fair\n(D) Poor\n\nVerdict:"
)
WORTH = {"A": 1.0 / 4, "B": 0.1 / 4, "C": -1.0 / 4, "D": -2.0 / 4}
LOOKED = 64  # of the selected prompts answered for the report of errors


class RoundData(NamedTuple):
    """What a round is taught: answers in the warm-up, pairs of fragments after it; and what they are like."""

    items: list[ExampleGroup]
    records: list[Preference]
    facts: dict[str, Any]


@method(
    "tool-rft",
    paper="Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning",
    year=2025,
    source="arXiv:2501.09766",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    protocol="answer",
    presets=PRESETS,
)
def tool_rft(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: int = 3,
    bins: int = 3,
    warm_lr: float = 1e-4,
    warm_epochs: float = 1.0,
    difficulty: Callable[[Demo], float] | None = None,
    select: Literal["ppl", "random", "easy"] = "ppl",
    ratio: float = 0.3,
    trim: float = 0.0,
    simulations: int = 5,
    actions: int = 3,
    depth: int = 3,
    c: float = 1.0,
    temperature: float = 1.5,
    max_new_tokens: int = 50,
    delimiters: Sequence[str] = (". ", ", ", "=", "("),
    group: int = 2,
    judge: Literal["ast", "self", "words"] = "ast",
    gap: float = 0.1,
    floor: float = -0.3,
    most: int = 4000,
    loss: Literal["simpo", "dpo", "orpo", "ipo"] = "simpo",
    beta: float = 2.5,
    gamma: float = 0.5,
    fit: Fit = Fit(lr=1e-6, epochs=2, rows=8, schedule="cosine", warmup=0.1, lora=8),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make tool calls right to the last parameter, from demonstrations of requests and their calls.

    Warm-up: the demonstrations in `bins` classes of difficulty, tuned on from easy to hard. Then, in every round, the
    prompts whose right answer the model finds least likely, ppl = exp(mean nll of its tokens), are searched: a tree
    of fragments, cut at `delimiters`, out of the model's own continuations. The fragment of highest value, y_w, and
    that of lowest, y_l, after the same beginning x are a pair, and

        L = -log sigmoid(beta [mean logp(y_w | x) - mean logp(y_l | x)] - gamma),      means over the fragment's tokens

    Values are +1 while all that was said begins the right answer (an ended one: has the same calls, arguments in any
    order) and -1 from the first wrong fragment on; or with `judge="self"` the model's own verdict on the five criteria
    of the paper, the right answer before it: (1.0 pA + 0.1 pB - 1.0 pC - 2.0 pD) / 4.

    Values are means over visits, and fragments are token ids as they were sampled; the code sums the one and
    joins the other with blanks. A pair must differ in more than white space and quotes.

    Args:
        model: a causal model that knows what calls look like; it stays as it was.
        demos: prompts with tool schemas and a request; completions `[f(a=1, b='x')]`, or plain answers.
        rounds: of selection, search and training.
        bins: classes of difficulty of the warm-up; 0 leaves it out.
        warm_lr: learning rate of the warm-up.
        warm_epochs: passes over each class.
        difficulty: of a demonstration; by default the mean rank of its number of tools (`extra["tools"]`, or
            `"name"` in the prompt), the prompt's length and the number of calls.
        select: prompts of the highest ppl, any at random, or those of the lowest.
        ratio: share that is selected, of answers with `)` and of the others apart.
        trim: share of the highest ppl that is left out, where labels may be wrong.
        simulations: of a tree.
        actions: continuations sampled from a node.
        depth: steps of an answer; what is left goes into the last.
        c: weight of the prior in PUCT.
        temperature: at which continuations are sampled.
        max_new_tokens: of a continuation.
        delimiters: texts a fragment ends with.
        group: fragments to a step.
        judge: `ast` compares with the right answer, `self` asks the model, `words` is the code's first guess, of words
            a fragment shares with the right answer.
        gap: least difference of value of a pair.
        floor: least value of the better side.
        most: pairs of a round at most.
        loss: simpo; dpo (SUMS) and ipo (means) have the round's first model as reference; orpo has none.
        beta: scale of the margin; of orpo, weight of the odds.
        gamma: the margin SimPO wants.
        fit: how to train one round.
        hooks: called around every step of every round.

    Returns:
        The model; all pairs as preferences; `findings["rounds"]`: prompts selected, pairs, ppl, and of the greedy
        answers to selected prompts the share with an error in each field (form, count, function, names, values).

    Raises:
        UserError: an option is out of range; the model is not causal; no search gave a pair.
    """
    if min(rounds, simulations, actions, depth, max_new_tokens, group, most) < 1 or bins < 0 or bins > len(demos) > 0:
        raise UserError(
            "tool-rft needs rounds, simulations, actions, depth, group and the like of 1 or more, bins of 0 or more"
        )
    if not 0 < ratio <= 1 or not 0 <= trim < 1 or min(temperature, beta) <= 0 or min(c, warm_lr, warm_epochs) < 0:
        raise UserError("tool-rft needs ratio in (0, 1], trim in [0, 1), temperature and beta above 0")
    if model.kind != "causal":
        raise UserError("tool-rft needs a causal model: it goes on from the middle of an answer")
    pairs = [(d.prompt, d.completion) for d in demos]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "demos")
    classes = selection.classes([difficulty(d) for d in demos] if difficulty else difficulties(demos), bins)
    searching = tree.SearchConfig(simulations=simulations, depth=depth, c=c, deep=False, decide=False)

    def collect(now: Round) -> RoundData:
        if now.number < len(classes):
            return RoundData([(rows[i],) for i in classes[now.number]], [], {"demos": len(classes[now.number])})

        def measured(start: int, stop: int) -> list[Any]:
            total, count = forward.row_logp(now.model, rows[start:stop])
            return list((-total / count).tolist())

        def proposer(part: Sequence[int], seed: int) -> policy.Pieces:
            return policy.Pieces(
                now.model, {k: rows[i].prompt for k, i in enumerate(part)}, actions, delimiters, group, depth,
                max_new_tokens, temperature, seed,
            )  # fmt: skip

        def value(at: list[int], nodes: list[Node], said: list[str], kv_cache: KVCache) -> Sequence[float]:
            wanted = [demos[i].completion for i in at]
            if judge == "self":
                return _judged(now.model, [demos[i] for i in at], said, kv_cache)
            if judge == "words":
                return [guessed(branches.text(model, n.step.tokens), w) for n, w in zip(nodes, wanted, strict=True)]
            return [valued(s, w, n.step.terminal) for s, w, n in zip(said, wanted, nodes, strict=True)]

        def answered(start: int, stop: int) -> list[Any]:
            room = max(max_new_tokens, *(len(rows[i].completion) for i in index))
            how = generate.SamplingConfig(max_new_tokens=room)
            made = generate.completions(now.model, [rows[i].prompt for i in index[start:stop]], 1, how)
            return [c.text for (c,) in made]

        nll = now.chunks("nll", len(rows), measured)
        index = selected(demos, nll, ratio, trim, select, now.fit.seed)
        if not index:
            raise UserError(f"tool-rft: a ratio of {ratio} of {len(demos)} demonstrations is none")
        told = branches.searched(now, index, proposer, value, searching)
        greedy = now.chunks("answers", min(LOOKED, len(index)), answered)

        def pick(grown: tree.Tree) -> list[tree.Pair]:
            unlike = branches.differ(model, tool_calls.lexemes)
            return tree.pairs(list(grown.root.walk()), "worst", gap, floor, unlike=unlike)

        found = branches.mined(told, model, demos, rows, pick, now.number - len(classes))[:most]
        wrong = [tool_calls.errors(g, demos[i].completion) for g, i in zip(greedy, index, strict=False)]
        facts = branches.facts(told, found) | {
            "selected": len(index), "ppl": float(np.exp(np.mean(nll))),
            "ppl_selected": float(np.exp(np.mean([nll[i] for i in index]))),
            "errors": tool_calls.tally(wrong),
        }  # fmt: skip
        return RoundData([b.item for b in found], [b.record for b in found], facts)

    def train(now: Round, data: RoundData) -> TrainResult:
        if now.number < len(classes):
            warm = now.fit.replace(lr=warm_lr, epochs=warm_epochs, steps=None)
            return language.train(now.model, {"demos": data.items}, _nll, warm, hooks=hooks, name="train")
        if not data.items:
            return loop.untrained(now.model)
        return preferences.train_rows(
            now.model, data.items, now.fit, loss=loss, beta=beta, gamma=gamma, per_token=loss == "ipo",
            hooks=[loop.NoDropout(), *hooks], name="train",
        )  # fmt: skip

    chosen: dict[str, Any] = {
        "warm-up": [bins, warm_lr, warm_epochs, getattr(difficulty, "__qualname__", None)],
        "select": [select, ratio, trim], "search": [simulations, actions, depth, c, temperature, max_new_tokens],
        "pieces": [list(delimiters), group], "judge": judge, "pairs": [gap, floor, most], "loss": [loss, beta, gamma],
        "data": hashlib.sha256(repr(rows).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(
        model, len(classes) + rounds, collect, train, fit, name="tool-rft", identity=chosen, hooks=hooks
    )
    searches = rounds_result.data[len(classes) :]
    if not any(m.items for m in searches):
        exact = searches[0].facts["errors"]["exact"]
        raise UserError(
            f"tool-rft: no search gave a pair ({exact:.0%} of the selected prompts are answered right): tune the "
            "model on the demonstrations first, or raise ratio, actions or temperature"
        )
    return Result(
        models={"model": rounds_result.model},
        records=[r for m in searches for r in m.records],
        findings={"warm_up": [m.facts for m in rounds_result.data[: len(classes)]],
                  "rounds": [{"round": n, **m.facts} for n, m in enumerate(searches)]},
        history=rounds_result.history,
        cost=rounds_result.cost,
    )  # fmt: skip


def _nll(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"nll": language.cross_entropy(student, micro)}


def valued(said: str, wanted: str, terminal: bool) -> float:
    """`judge="ast"`: +1 where what was said is right so far, -1 where it is not."""
    good = not tool_calls.errors(said, wanted) if terminal else tool_calls.on_track(said, wanted)
    return 1.0 if good else -1.0


def guessed(step: str, wanted: str) -> float:
    """`judge="words"`: 0.1 where a fragment ends the calls if and only if the right answer does, else -0.1, plus the
    overlap of their words less 0.5; 0 for white space."""
    if not step.strip():
        return 0.0
    return (0.1 if (")]" in step) == (")]" in wanted) else -0.1) + tool_calls.overlap(wanted, step) - 0.5


def _judged(model: Model, demos: Sequence[Demo], said: Sequence[str], kv_cache: KVCache) -> list[float]:
    """The model's own verdict, in [-0.5, 0.25]."""
    asked = [ASKED.format(request=d.prompt, truth=d.completion, answer=s) for d, s in zip(demos, said, strict=True)]
    return rank.expected(model, asked, WORTH, kv_cache)


def selected(
    demos: Sequence[Demo], nll: Sequence[float], ratio: float, trim: float = 0.0, select: str = "ppl", seed: int = 0
) -> list[int]:
    """Which demonstrations are searched: `floor(n ratio)` of those with calls and of the others, hardest first."""
    chance = np.random.default_rng([seed, 57]).random(len(demos)).tolist()
    score = {"ppl": nll, "easy": [-x for x in nll], "random": chance}[select]
    return selection.top(score, ratio, [")" in d.completion for d in demos], trim, nll)


def difficulties(demos: Sequence[Demo]) -> list[float]:
    """Mean rank by number of tools, length of the prompt and number of calls."""
    tools = [len(d.extra.get("tools", ())) or d.prompt.count('"name"') for d in demos]
    calls = [len(tool_calls.parse(d.completion) or ()) for d in demos]
    return selection.mean_rank([tools, [len(d.prompt) for d in demos], calls])
