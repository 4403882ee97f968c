"""iTool: tree search finds the fragments of tool calls that are still wrong after tuning, for preference training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from didact.bounds import BelowOne, Count, NonNegative, Positive, PositiveShare, Whole
from didact.data import encode, selection
from didact.evaluate import tool_calls
from didact.infer import tree
from didact.infer.generate import SamplingConfig
from didact.infer.policy import FragmentSearch, Pieces
from didact.infer.tree import Node
from didact.learn import branches, language, pairs
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook, NoDropout
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "dpo": {"loss": "dpo", "beta": 0.1},
    "orpo": {"loss": "orpo", "beta": 0.1},
    "ipo": {"loss": "ipo", "beta": 0.1},
    "random": {"select": "random"},
    "cold": {"bins": 0},  # no warm-up
    "response": {"search.group": 1000, "search.depth": 1},  # whole answers are compared
    "official": {"rounds": 1, "judge": "self", "search.depth": 2, "search.group": 1},
}
ANSWERED = 64  # selected prompts that are answered greedily, to report errors


@method(
    "tool-rft",
    paper="Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning",
    year=2025,
    source="arXiv:2501.09766",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    kinds=("causal",),
    protocol=("answer",),
    presets=PRESETS,
)
def tool_rft(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: Count = 3,
    bins: Whole = 3,
    warm_lr: NonNegative = 1e-4,
    warm_epochs: NonNegative = 1.0,
    difficulty: Callable[[Demo], float] | None = None,
    select: Literal["ppl", "random", "easy"] = "ppl",
    ratio: PositiveShare = 0.3,
    trim: BelowOne = 0.0,
    search: FragmentSearch = FragmentSearch(),
    judge: Literal["ast", "self", "words"] = "ast",
    gap: float = 0.1,
    floor: float = -0.3,
    most: Count = 4000,
    loss: preference.PairLossName = "simpo",
    beta: Positive = 2.5,
    gamma: float = 0.5,
    fit: Fit = Fit(lr=1e-6, epochs=2, rows=8, schedule="cosine", warmup=0.1, lora=8),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Get tool calls right down to the last parameter, from demonstrations of requests and their calls.

    Warm-up: tune on the demonstrations in `bins` classes of difficulty, from easy to hard. Then, in every round, the
    prompts whose right answer the model finds least likely, ppl = exp(mean nll of its tokens), are searched: a tree of
    fragments, cut at delimiters, from the model's own continuations. The fragment of highest value, y_w, and that of
    lowest, y_l, after the same prefix x are a pair, and

        L = -log sigmoid(beta [mean logp(y_w | x) - mean logp(y_l | x)] - gamma),      means over the fragment's tokens

    The value is +1 while the text so far begins the right answer (once ended: has the same calls, arguments in any
    order) and -1 from the first wrong fragment on; or with `judge="self"` the model's own verdict on the five criteria
    of the paper, given the right answer: (1.0 pA + 0.1 pB - 1.0 pC - 2.0 pD) / 4.

    Values are means over visits, and fragments are token ids as sampled; the official code sums values and joins
    fragments with blanks. A pair must differ in more than white space and quotes.

    Args:
        model: a causal model that knows the format of calls; left unchanged.
        demos: prompts with tool schemas and a request; completions `[f(a=1, b='x')]`, or plain answers.
        rounds: rounds of selection, search and training.
        bins: classes of difficulty in the warm-up; 0 skips it.
        warm_lr: learning rate of the warm-up.
        warm_epochs: passes over each class.
        difficulty: difficulty of a demonstration; by default the mean rank of its number of tools (`extra["tools"]`, or
            `"name"` in the prompt), the prompt's length and the number of calls.
        select: prompts of the highest ppl, any at random, or those of the lowest.
        ratio: share that is selected, separately among answers with `)` and the others.
        trim: share of the highest ppl that is left out, where labels may be wrong.
        search: the trees; fragments are cut at `delimiters`, `group` of them to a step.
        judge: `ast` compares with the right answer, `self` asks the model, `words` is the official code's first
            estimate, from the words a fragment shares with the right answer.
        gap: minimum difference in value within a pair.
        floor: minimum value of the better side.
        most: maximum number of pairs per round.
        loss: simpo; dpo (SUMS) and ipo (means) have the round's first model as reference; orpo has none.
        beta: scale of the margin; for orpo, weight of the odds.
        gamma: for simpo, the target margin.
        fit: how to train one round.
        hooks: called around every step of every round.

    Returns:
        The model; all pairs as preferences; `findings["rounds"]`: prompts selected, pairs, ppl, and of the greedy
        answers to selected prompts the share with an error in each field (form, count, function, names, values).

    Raises:
        UserError: more bins than demonstrations; no prompt is selected; no search gave a pair.
    """
    if bins > len(demos):
        raise UserError(f"bins = {bins}: there are {len(demos)} demonstrations to put into classes")
    answers = [(d.prompt, d.completion) for d in demos]
    rows = encode.rows(model.tokenizer, answers, model.kind, model.context, "demos")
    hardness = [difficulty(d) for d in demos] if difficulty else tool_calls.difficulties(demos)
    classes = selection.classes(hardness, bins)

    def collect(now: Round) -> RoundData:
        if now.number < len(classes):
            part = classes[now.number]
            return RoundData([(rows[i],) for i in part], {"demos": len(part)})

        def proposer(part: Sequence[int], seed: int) -> Pieces:
            return Pieces(now.model, {k: rows[i].prompt for k, i in enumerate(part)}, search, seed)

        def value(at: list[int], nodes: list[Node], texts: list[str], kv_cache: KVCache) -> Sequence[float]:
            steps = [(branches.text(model, n.step.tokens), n.step.terminal) for n in nodes]
            return tool_calls.values(judge, now.model, [demos[i] for i in at], texts, steps, kv_cache)

        def pick(grown: tree.Tree) -> list[tree.Pair]:
            unlike = branches.differ(model, tool_calls.lexemes)
            return tree.pairs(list(grown.root.walk()), "worst", gap, floor, unlike=unlike)

        nll = now.mean_nll(rows)
        index = tool_calls.selected(demos, nll, ratio, trim, select, now.fit.seed)
        if not index:
            raise UserError(f"tool-rft: a ratio of {ratio} of {len(demos)} demonstrations is none")
        trees = branches.search_trees(now, index, proposer, value, search.of_tree())
        room = max(search.max_new_tokens, *(len(rows[i].completion) for i in index))
        prompts = [rows[i].prompt for i in index[:ANSWERED]]
        greedy = now.samples(prompts, 1, SamplingConfig(max_new_tokens=room), "answers")
        step_pairs = branches.collect(trees, model, demos, rows, pick, now.number - len(classes))[:most]
        errors = [tool_calls.errors(g.text, demos[i].completion) for (g,), i in zip(greedy, index, strict=False)]
        stats = branches.stats(trees, step_pairs) | {
            "selected": len(index), "ppl": float(np.exp(np.mean(nll))),
            "ppl_selected": float(np.exp(np.mean([nll[i] for i in index]))),
            "errors": tool_calls.tally(errors),
        }  # fmt: skip
        return branches.data(step_pairs, stats)

    def train(now: Round, data: RoundData) -> TrainResult:
        if now.number < len(classes):
            warm_fit = now.fit.replace(lr=warm_lr, epochs=warm_epochs, steps=None)
            return language.train(now.model, {"demos": data.items}, language.nll, warm_fit, hooks=hooks)
        if not data.items:
            return round_loop.untrained(now.model)
        pair_loss = preference.pair_loss(loss, beta, gamma)
        return pairs.train(
            now.model, data.items, pair_loss.loss, now.fit, reference=now.model if pair_loss.reference else None,
            mean=pair_loss.mean or loss == "ipo", log=pairs.margins(beta), hooks=[NoDropout(), *hooks], loss_name=loss,
        )  # fmt: skip

    outcome = round_loop.run_rounds(model, len(classes) + rounds, collect, train, fit, name="tool-rft", hooks=hooks)
    warmed, searches = outcome.data[: len(classes)], outcome.data[len(classes) :]
    if not any(r.items for r in searches):
        right = searches[0].stats["errors"]["exact"]
        cause = f"no search gave a pair ({right:.0%} of the selected prompts are answered right)"
        raise UserError(f"tool-rft: {cause}: tune on demos first, or raise ratio, search.actions or search.temperature")
    stats = [{"round": n, **r.stats} for n, r in enumerate(searches)]
    return outcome.result(findings={"warm_up": [r.stats for r in warmed], "rounds": stats})
