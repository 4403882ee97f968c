"""Few-shot evaluation: K demonstrations before every item, scored by GPT-3's rules, with honest intervals.

Every item is measured at every K and every draw of demonstrations; what comes out is a matrix (items, draws) a K,
whose mean has an interval clustered by both.

Source: Brown et al. 2020, arXiv:2005.14165, section 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from didact.data import contamination, demonstrations
from didact.data.demonstrations import Framing
from didact.evaluate import qa
from didact.evaluate.statistics import Interval
from didact.infer import generate, rank
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.types import LM, Cost, Demo, Likelihood, Metric, Record, Result, Text, UserError, as_row

Floats = NDArray[np.float64]
Free = Literal["exact", "normalised", "f1", "bleu"]
Chosen = Literal["token", "sum", "character", "unconditional", "auto"]
RULES: tuple[rank.Rule, ...] = get_args(rank.Rule)
AUTO: tuple[rank.Rule, ...] = ("token", "unconditional")  # what the paper chose between, on dev sets
TIE = 1e-6  # nats: scores nearer than this are equal
START_END = 2  # tokens a tokenizer may put around a text


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How items are asked; the method's options, whose docstring explains them."""

    shots: tuple[int, ...] = (0, 1, 4, 16)
    draws: int = 1
    fresh: bool = True
    framing: Framing = "answer"
    description: str = ""
    separator: str = "\n\n"
    answer_context: str = rank.ANSWER
    metric: Free = "exact"
    max_new_tokens: int = 32
    stop: str = "\n"
    beams: int = 4
    length_penalty: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("separator", "stop", "description"):  # a shell hands over the two characters \\n
            object.__setattr__(self, name, getattr(self, name).replace("\\n", "\n"))
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots = {self.shots}: different numbers of demonstrations, 0 or more")
        if self.draws < 1 or self.beams < 1 or self.max_new_tokens < 1:
            raise UserError("draws, beams and max_new_tokens must be at least 1")


@dataclass
class Outcome:
    """What items gave at one K.

    `right` is `{rule: (items, draws)}` in [0, 1] (free-form answers have one rule, the metric); `said` the first
    draw's answers, `scores` its scores of all choices; `used` how many demonstrations stood in the prompt
    `(items, draws)`, `cut` how many queries do not fit the context even alone.
    """

    shots: int
    right: dict[str, Floats]
    said: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    used: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    cut: int = 0


class Asker:
    """Asks one model items with demonstrations from one pool, and counts what that costs.

    Args:
        lm: the model, with `score` for choices or `generate` for free answers.
        pool: where demonstrations come from; an item that stands in it is never shown to itself.
        setup: how.
    """

    def __init__(self, lm: LM, pool: Sequence[Demo], setup: Setup) -> None:
        self.lm, self.pool, self.setup, self.cost = lm, list(pool), setup, Cost()
        self.shown = [demonstrations.written(record, setup.framing) for record in self.pool]
        self.sizes = lm.tokens([text + setup.separator for text in self.shown]) if self.pool else []
        self.sampler = demonstrations.Sampler(self.pool, max(setup.shots), setup.seed, setup.fresh)

    def outcomes(self, items: Sequence[Demo]) -> dict[int, Outcome]:
        """Every K of the setup. At K = 0 all draws are one."""
        choice = choices(items)
        out = {}
        for k in self.setup.shots:
            draws = [self._choose(items, k, d) if choice else self._write(items, k, d) for d in range(self._draws(k))]
            draws += draws[:1] * (self.setup.draws - len(draws))
            first = draws[0]
            right = {rule: np.stack([d.right[rule][:, 0] for d in draws], 1) for rule in first.right}
            used = np.concatenate([d.used for d in draws], 1)
            out[k] = Outcome(k, right, first.said, first.scores, used, first.cut)
        return out

    def said(self, items: Sequence[Demo], k: int, rule: str) -> list[str]:
        """Answers at one K, by one rule where there are choices."""
        one = self._choose(items, k, 0) if choices(items) else self._write(items, k, 0)
        return one.said[rule if rule in one.said else self.setup.metric]

    def prompts(self, items: Sequence[Demo], k: int, draw: int = 0, room: int = 0) -> tuple[list[str], list[int], int]:
        """The text before each item's query, how many demonstrations it has, and how many queries do not fit.

        All K demonstrations stand in the prompt or fewer: the last drawn are left out until the whole fits the
        context beside `room` tokens, so that no prompt is ever cut on its left.
        """
        setup, limit = self.setup, self.lm.context - START_END - room
        ends = [pair for record in items for pair in demonstrations.pairs(record, setup.framing)]
        sizes = self.lm.tokens([a + " " + b for a, b in ends])
        counts = iter(sizes)
        heads = dict(zip(texts := list({self._head(r): None for r in items}), self.lm.tokens(texts), strict=True))
        before, used, cut = [], [], 0
        for i, record in enumerate(items):
            tails = [next(counts) for _ in demonstrations.pairs(record, setup.framing)]
            left = limit - max(tails) - heads[self._head(record)]
            drawn = self.sampler(record, i, draw)[:k] if k else []
            fits = int(np.searchsorted(np.cumsum([self.sizes[j] for j in drawn]), left, side="right"))
            cut += left < 0
            kept = [self.shown[j] for j in drawn[:fits]]
            shared = heads[self._head(record)] + sum(self.sizes[j] for j in drawn[:fits])
            self.cost.tokens += sum(shared + tail for tail in tails)
            before.append(demonstrations.assemble(self._head(record), kept, "", setup.separator))
            used.append(len(kept))
        return before, used, cut

    def _head(self, record: Demo) -> str:
        return self.setup.description or record.instruction or ""

    def _draws(self, k: int) -> int:
        return self.setup.draws if k else 1

    def _choose(self, items: Sequence[Demo], k: int, draw: int) -> Outcome:
        """One draw of items with choices: every choice scored by every rule."""
        setup = self.setup
        before, used, cut = self.prompts(items, k, draw)
        pairs = [
            (demonstrations.assemble("", [head] if head else [], end, setup.separator), scored)
            for head, record in zip(before, items, strict=True)
            for end, scored in demonstrations.pairs(record, setup.framing)
        ]
        bare = list(dict.fromkeys(scored for _, scored in pairs))
        # All in one call: the model shares what prompts have in common.
        found = iter(self._score([*((setup.answer_context.rstrip(" "), text) for text in bare), *pairs]))
        alone = {text: next(found).logp for text in bare}
        outcome = Outcome(k, {}, used=np.array(used)[:, None], cut=cut)
        told = [[(scored, next(found)) for _, scored in demonstrations.pairs(r, setup.framing)] for r in items]
        for rule in RULES:
            scores = [
                [rank.by_rule(rule, one.logp, one.tokens, max(1, len(text.strip())), alone[text]) for text, one in row]
                for row in told
            ]
            right = [credit(s, demonstrations.gold(r)) for s, r in zip(scores, items, strict=True)]
            outcome.right[rule] = np.array(right)[:, None]
            outcome.scores[rule] = scores
            outcome.said[rule] = [(r.choices or [])[int(np.argmax(s))] for s, r in zip(scores, items, strict=True)]
        return outcome

    def _write(self, items: Sequence[Demo], k: int, draw: int) -> Outcome:
        """One draw of items without choices: an answer is generated and compared."""
        setup = self.setup
        before, used, cut = self.prompts(items, k, draw, setup.max_new_tokens)
        asked = [
            demonstrations.assemble(
                "", [head] if head else [], demonstrations.question(r, setup.framing), setup.separator
            )
            for head, r in zip(before, items, strict=True)
        ]
        said = self.answers(asked)
        right = [matches(text, r.answers or [r.completion], setup.metric) for text, r in zip(said, items, strict=True)]
        return Outcome(
            k, {setup.metric: np.array(right)[:, None]}, {setup.metric: said}, {}, np.array(used)[:, None], cut
        )

    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.cost.calls += len(pairs)
        return self.lm.score(pairs)

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Free answers: by beam search where the model is here, else greedy; up to the stop string."""
        setup, stop = self.setup, (self.setup.stop,) if self.setup.stop else ()
        self.cost.calls += len(prompts)
        if isinstance(self.lm, language_models.Local):
            return generate.generate(
                self.lm.model, prompts, setup.max_new_tokens, stop=stop, beams=setup.beams,
                length_penalty=setup.length_penalty,
            )  # fmt: skip
        return [one[0].strip() for one in self.lm.generate(prompts, setup.max_new_tokens, stop=stop)]


def ask(
    model: Model | LM,
    items: Sequence[Demo],
    train: Sequence[Demo] | None,
    dev: Sequence[Demo] | None,
    corpus: Sequence[Text] | None,
    setup: Setup,
    rule: Chosen,
    by: str,
) -> Result:
    """The whole evaluation: K and rule chosen on `dev`, items asked, intervals, warnings, contamination.

    Demonstrations come from `train`, else `dev`, else the items themselves, each left out of its own prompt.
    """
    if not items:
        raise UserError("test: no records")
    choice = choices(items)
    lm = language_models.need(model, "score" if choice else "generate", by=by)
    if rule == "auto" and not (dev and choice):
        raise UserError("rule auto chooses between token and unconditional on dev: give --dev, and items with choices")
    pool = train or dev or items
    asker = Asker(lm, pool, setup)
    result = Result()
    fixed = [rule] if choice and rule != "auto" else list(AUTO) if choice else [setup.metric]
    best, name = max(setup.shots), fixed[0]
    if dev:
        if choices(dev) != choice:
            raise UserError("dev and test: either both have choices or neither")
        tried = asker.outcomes(dev)
        # The first of equals: fewer demonstrations, and the default rule.
        order = [(k, r) for k in sorted(setup.shots) for r in fixed]
        best, name = max(order, key=lambda at: tried[at[0]].right[at[1]].mean())
        result.findings["dev"] = {r: {str(k): float(tried[k].right[r].mean()) for k in setup.shots} for r in fixed}
    found = asker.outcomes(items)
    _report(result, items, found, best, name, setup)
    result.findings["demonstrations"] = "train" if train else "dev" if dev else "test, each item left out of its own"
    result.findings["chosen"] = {
        "shots": best,
        "rule": name,
        "on": "dev" if dev else "nothing: the most demonstrations",
    }
    result.warnings += _warnings(items, found, best, name, setup, pool if train else None, lm)
    dirty = None
    if corpus:
        audit = contamination.audit([f"{r.prompt} {r.completion}" for r in items], (t.text for t in corpus))
        _contamination(result, found, best, name, audit, choice)
        dirty = audit.dirty
    result.records = list(_table(items, found, best, name, dirty))
    result.cost = asker.cost
    return result


def choices(items: Sequence[Demo]) -> bool:
    """Whether items have choices.

    Raises:
        UserError: some have and some have not, or a right answer is not among them.
    """
    having = [bool(r.choices) for r in items]
    if any(having) and not all(having):
        raise UserError(f"record {having.index(False) + 1} has no choices and others have: score them apart")
    if any(having):
        for number, record in enumerate(items, 1):
            try:
                demonstrations.gold(record)
            except UserError as error:
                raise UserError(f"record {number}: {error}") from None
    return any(having)


def credit(scores: Sequence[float], gold: int) -> float:
    """1 if the right choice scores highest; where m choices tie at the top and it is among them, 1/m."""
    s = np.asarray(scores)
    top = s >= s.max() - TIE
    return float(top[gold] / top.sum())


def matches(said: str, answers: Sequence[str], metric: Free) -> float:
    """How well a free answer matches any accepted one: to the letter, as SQuAD normalises it, by F1 or by BLEU."""
    if metric == "exact":
        return float(any(said.strip() == a.strip() for a in answers))
    return {"normalised": qa.exact_match, "f1": qa.f1, "bleu": qa.bleu}[metric](said, answers)


def two_way(values: Floats, level: float = 0.95, share: bool = False) -> Interval:
    """Interval of the mean of `(items, draws)`, both of which could have been others.

    With x_id = mu + item_i + draw_d + rest_id and the mean squares of the two-way table,

        V(mean) = (MS_item + MS_draw - MS_rest) / (n D),

    which is unbiased, and never less than MS_item / (n D) or MS_draw / (n D), what either clustering alone gives.
    The quantile is Student's, with Satterthwaite's degrees of freedom: n - 1 where items make the variance (one
    draw, say), D - 1 where draws do, so that few draws give the t interval over draws.

    Args:
        values: every item at every draw.
        level: of the interval.
        share: values are shares in [0, 1] and so is the mean; if all are 0 or all 1, the interval is the exact
            binomial one of the n items (a width of 0 would be a lie).
    """
    x = np.asarray(values, dtype=float)
    n, draws = x.shape
    mean = float(x.mean())
    if share and (np.all(x == 0) or np.all(x == 1)):
        far = ((1 - level) / 2) ** (1 / n)
        return Interval(mean, *((0.0, 1 - far) if mean == 0 else (far, 1.0)))
    item = draws * ((x.mean(1) - mean) ** 2).sum() / (n - 1) if n > 1 else 0.0
    draw = n * ((x.mean(0) - mean) ** 2).sum() / (draws - 1) if draws > 1 else 0.0
    both = n > 1 and draws > 1
    rest = ((x - x.mean(1, keepdims=True) - x.mean(0) + mean) ** 2).sum() / ((n - 1) * (draws - 1)) if both else 0.0
    if n * draws == 1:
        return Interval(mean, math.nan, math.nan)
    total = max(item + draw - rest, item, draw)
    freedom = float(n - 1 if total == item else draws - 1)
    if total > max(item, draw):
        freedom = total**2 / (item**2 / (n - 1) + draw**2 / (draws - 1) + rest**2 / ((n - 1) * (draws - 1)))
        freedom = max(freedom, min(n, draws) - 1.0)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total / (n * draws)) if total > 0 else 0.0
    low, high = mean - half, mean + half
    return Interval(mean, max(0.0, low), min(1.0, high)) if share else Interval(mean, low, high)


def relative_change(everything: float, clean: float) -> float | None:
    """`(clean - all) / all`, the paper's; none where all is 0."""
    return (clean - everything) / everything if everything else None


def _report(
    result: Result, items: Sequence[Demo], found: Mapping[int, Outcome], best: int, name: str, setup: Setup
) -> None:
    """Metrics, curves over K, and the gain over the fewest demonstrations."""
    fewest, n = min(found), len(items)
    start = found[fewest].right[name]
    for k, outcome in sorted(found.items()):
        of = two_way(outcome.right[name], share=True)
        before = float(start.mean()) if k > fewest else None
        result.metrics[f"accuracy_{k}_shot"] = _metric(of, n, f"{name}, {k} demonstrations", before)
    chosen = two_way(found[best].right[name], share=True)
    text = f"scored by {name}, {best} demonstrations; before: {fewest}"
    result.metrics = {"accuracy": _metric(chosen, n, text, float(start.mean()))} | result.metrics
    rules = [name, *(r for r in found[best].right if r != name)]
    result.findings["curves"] = {f"accuracy by {r}": _curve({k: o.right[r] for k, o in found.items()}) for r in rules}
    gain = {k: two_way(o.right[name] - start) for k, o in sorted(found.items()) if k > fewest}
    result.findings["gain"] = {f"{k} over {fewest}": g._asdict() for k, g in gain.items()}
    result.findings["rules"] = {r: two_way(found[best].right[r], share=True)._asdict() for r in rules}
    result.findings["setup"] = {**vars(setup), "shots": list(setup.shots)}


def _metric(of: Interval, n: int, text: str, before: float | None = None) -> Metric:
    ci = None if math.isnan(of.low) else (of.low, of.high)
    return Metric(after=of.estimate, before=before, n=n, ci=ci, better="higher", help=text)


def _curve(values: Mapping[int, Floats]) -> dict[str, Any]:
    points = {k: two_way(v, share=True) for k, v in sorted(values.items())}
    return {
        "x": list(points),
        "y": [p.estimate for p in points.values()],
        "low": [p.low for p in points.values()],
        "high": [p.high for p in points.values()],
        "xlabel": "demonstrations K",
        "ylabel": "accuracy",
    }


def _warnings(
    items: Sequence[Demo], found: Mapping[int, Outcome], best: int, name: str, setup: Setup,
    pool: Sequence[Demo] | None, lm: LM,
) -> list[str]:  # fmt: skip
    out = []
    for k, outcome in sorted(found.items()):
        if share := float((outcome.used < k).mean()):
            least = int(outcome.used.min())
            out.append(f"K = {k}: {share:.0%} of the prompts have fewer demonstrations (down to {least}): "
                       "no more fit the context, or there are no more")  # fmt: skip
    if cut := found[min(found)].cut:
        out.append(f"{cut} items do not fit the context even without demonstrations and are cut on their left")
    asked = {demonstrations.key(r) for r in items}
    if pool is not None and (same := sum(demonstrations.key(r) in asked for r in pool)):
        out.append(f"{same} records of train ask what a test item asks; none is shown to it, but the sets overlap")
    for rule, right in found[best].right.items():
        apart = two_way(found[best].right[name] - right)
        differ = np.mean([a != b for a, b in zip(found[best].said[name], found[best].said[rule], strict=True)])
        if rule != name and apart.excludes(0.0):
            out.append(f"rules disagree at K = {best}: {rule} would give {right.mean():.3f}, {name} gives "
                       f"{found[best].right[name].mean():.3f} ({differ:.0%} of the answers differ)")  # fmt: skip
    if setup.draws == 1 and max(found) > 0 and not setup.fresh:
        out.append("one draw shared by all items: the interval leaves out what other demonstrations would change")
    if not choices(items) and setup.beams > 1 and not isinstance(lm, language_models.Local):
        out.append(f"{lm.name} has no beam search: answers are greedy")
    return out


def _contamination(
    result: Result, found: Mapping[int, Outcome], best: int, name: str, audit: contamination.Audit, choice: bool
) -> None:
    """Accuracy on all, clean and dirty items."""
    right, dirty = found[best].right[name], audit.dirty
    parts = {"all": right, "clean": right[~dirty], "dirty": right[dirty]}
    shown = {part: two_way(v, share=True)._asdict() | {"items": len(v)} for part, v in parts.items() if len(v)}
    for part in ("clean", "dirty"):
        if part in shown:
            of = two_way(parts[part], share=True)
            result.metrics[f"accuracy_{part}"] = _metric(of, len(parts[part]), f"{part} items, as accuracy")
    change = relative_change(float(right.mean()), float(parts["clean"].mean())) if "clean" in shown else None
    result.findings["contamination"] = {
        "n": audit.n, "dirty": int(dirty.sum()), "share": audit.share, "accuracy": shown, "relative_change": change,
    }  # fmt: skip
    if not dirty.any():
        return
    text = f"{audit.share:.0%} of the test items share {audit.n} words in a row with the corpus"
    if "clean" in shown and len(parts["dirty"]) > 1 < len(parts["clean"]):
        gap, by = gap_interval(parts["dirty"], parts["clean"]), f"{parts['dirty'].mean() - parts['clean'].mean():+.3f}"
        helped = "and the model is better on them" if gap.low > 0 else "with no clear effect on accuracy"
        text += f", {helped} ({by}, 95 % [{gap.low:.3f}, {gap.high:.3f}])"
    result.warnings.append(text)


def gap_interval(dirty: Floats, clean: Floats, level: float = 0.95) -> Interval:
    """Welch's interval of the mean over dirty items less that over clean ones, draws averaged within an item."""
    a, b = dirty.mean(1), clean.mean(1)
    gap = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Interval(gap, math.nan, math.nan)
    parts = [float(v.var(ddof=1)) / len(v) for v in (a, b)]
    variance = sum(parts)
    if not variance:
        return Interval(gap, gap, gap)
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return Interval(gap, gap - half, gap + half)


def _table(
    items: Sequence[Demo], found: Mapping[int, Outcome], best: int, name: str, dirty: NDArray[np.bool_] | None
) -> list[Record]:
    """One record an item: what was said, its scores by every rule, and how it went at every K."""
    out: list[Record] = []
    for i, record in enumerate(items):
        at = found[best]
        more: dict[str, Any] = {
            "shots": best,
            "rule": name,
            "said": at.said[name][i],
            "right": float(at.right[name][i].mean()),
            "right_by_shots": {str(k): float(o.right[name][i].mean()) for k, o in sorted(found.items())},
            "shots_used": [int(u) for u in at.used[i]],
        }
        if at.scores:
            more["scores"] = {rule: rows[i] for rule, rows in at.scores.items()}
        if dirty is not None:
            more["clean"] = not bool(dirty[i])
        kept = {k: v for k, v in as_row(record).items() if k not in record.extra}
        out.append(Demo(**kept, extra=record.extra | more))
    return out


def predictor(model: Model | LM, demos: Sequence[Demo], shots: int, setup: Setup, rule: rank.Rule, by: str) -> Any:
    """`predict(prompts, choices=None) -> answers`: each prompt behind its own draw of demonstrations."""

    def predict(prompts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[str]:
        lm = language_models.need(model, "score" if choices else "generate", by=by)
        asker = Asker(lm, demos, setup)
        given = choices or [()] * len(prompts)
        items = [
            Demo(prompt=p, completion=c[0] if c else "-", choices=list(c) or None)
            for p, c in zip(prompts, given, strict=True)
        ]
        if not items:
            return []
        return asker.said(items, shots, rule)

    return predict
