"""Refining, selecting, training: each against known answers; and a model that learns from the feedback."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed import Halt
from scripted import Scripted
from servers import NAME, Small, Words
from shapes import EFFECTS, byte_tokenizer, tiny

from didact import alignment, baselines
from didact.claims import lab
from didact.data import encode
from didact.evaluate import judges, protocols
from didact.evaluate.protocols import Scoring
from didact.infer import calls, embed, generate, refine, selectors, yesno
from didact.infer import lm as language_models
from didact.infer.yesno import Question
from didact.learn import reward_functions
from didact.learn import rounds as loop
from didact.learn import yesno as reward_models
from didact.learn.refining import RefiningConfig
from didact.models import build, load
from didact.types import Critique, Demo, Fit, Preference, UserError, as_row
from didact.worlds.edits import Code

logps = st.floats(-60, 0)
chances = st.floats(0.001, 0.999)
CODE = Code(letters=8, length=3, wrong=3, seed=1)
TEXTS = {"refine_prompt": "{completion}!{feedback};", "plain_prompt": "{completion};", "tidy": "strip",
         "questions": ["{refinement}{feedback}?|Y|N"], "max_new_tokens": 4}  # fmt: skip


def short(**changes):
    """Return critiques of short texts, with some fields changed."""
    return {"refining": RefiningConfig(**{**TEXTS, **changes})}


SHORT = short()
FIT = Fit(lr=1e-3, steps=2, rows=8)
PLAIN = Fit(lr=0.1, steps=2, rows=8, optimizer="sgd")  # Adam amplifies rounding


# --- yes or no -------------------------------------------------------------------------------


def test_a_share_is_the_softmax_of_two_logits():
    assert yesno.share(2.0, 0.0) == pytest.approx(0.8808, abs=5e-5)
    assert yesno.share(-math.inf, -1.0) == 0.0 and yesno.share(-1.0, -math.inf) == 1.0
    assert math.isnan(yesno.share(-math.inf, -math.inf))


@given(logps, logps, st.floats(-50, 50))
def test_a_constant_in_both_logits_does_not_matter_and_the_shares_of_yes_and_no_are_one(a, b, shift):
    assert yesno.share(a + shift, b + shift) == pytest.approx(yesno.share(a, b), abs=1e-9)
    assert yesno.share(a, b) + yesno.share(b, a) == pytest.approx(1, abs=1e-12)


def test_pooling_probabilities_and_logits():
    assert yesno.pool([0.9, 0.1]) == pytest.approx(0.5) == yesno.pool([0.9, 0.1], "logit")
    assert yesno.pool([0.9999, 0.3, 0.3], "logit") > 0.8 > yesno.pool([0.9999, 0.3, 0.3])
    assert yesno.pool([math.nan, 0.25]) == 0.25 and math.isnan(yesno.pool([math.nan]))
    assert yesno.pool([1.0, 0.0], "logit") == pytest.approx(0.5)


@given(st.lists(chances, min_size=1, max_size=6))
def test_a_mean_lies_between_its_parts_and_wordings_that_agree_say_the_same_either_way(ps):
    for mean in ("probability", "logit"):
        assert min(ps) - 1e-9 <= yesno.pool(ps, mean) <= max(ps) + 1e-9
        assert yesno.pool([ps[0]] * 3, mean) == pytest.approx(ps[0], abs=1e-9)


def plain_logp(model, prompt, text):
    """Return the log-prob of a text after a prompt by the model's own forward, token by token."""
    head = encode.prompt_ids(model.tokenizer, prompt, model.kind)
    body, total = model.tokenizer(text, add_special_tokens=False)["input_ids"], 0.0
    for i, token in enumerate(body):
        if model.kind == "seq2seq":
            decoder = torch.tensor([[model.start, *body[:i]]])
            logits = model.module(input_ids=torch.tensor([head]), decoder_input_ids=decoder).logits
        else:
            logits = model.module(input_ids=torch.tensor([head + body[:i]])).logits
        total += logits[0, -1].double().log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize(("yes", "no"), [("Y", "N"), ("Yes", "No"), ("True", "False")])
def test_a_local_models_word_is_exact_with_and_without_a_space_and_over_several_tokens(kind, yes, no):
    model, prompts = tiny(kind), ["Is it?", "Longer question, is it so?"]
    probabilities = yesno.probabilities(model, prompts, yes, no)
    for prompt, p in zip(prompts, probabilities, strict=True):
        a, b = (np.logaddexp(plain_logp(model, prompt, f" {w}"), plain_logp(model, prompt, w)) for w in (yes, no))
        assert p == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-5)
    assert 1e-4 < probabilities[0] < 1 - 1e-4
    assert yesno.probabilities(language_models.of(model), prompts, yes, no) == probabilities


def test_the_two_ways_to_ask_agree_where_words_are_one_token():
    """Through next-token log-probs, as from a server, and exactly."""
    model = tiny("llama")
    by_next_token = Scripted(tops=lambda prompt: language_models.of(model).top_logprobs([prompt], 400)[0])
    probabilities = yesno.probabilities(by_next_token, ["Is it?"], "Y", "N")
    y, n = (plain_logp(model, "Is it?", w) for w in "YN")  # " Y" is two tokens here: only the bare word counts
    assert probabilities[0] == pytest.approx(yesno.share(y, n), abs=1e-5)


def test_a_server_that_shows_neither_word_gives_no_answer():
    tops = {"both": {" Yes": -1.0, "Yes": -1.0, "No": -1.0}, "one": {" No": -0.1}, "none": {"Well": -0.1}}
    both, one, none = yesno.probabilities(Scripted(tops=tops.get), list(tops))
    assert both == pytest.approx(2 / 3) and one == 0.0 and math.isnan(none)
    with pytest.raises(UserError, match="two different words"):
        yesno.probabilities(Scripted(tops=tops.get), ["both"], "Yes", " Yes")


def test_a_template_with_a_field_that_is_not_there_is_one_line_and_braces_in_a_text_are_text():
    assert yesno.fill("{a}-{b}", {"a": "{b}", "b": "x"}) == "{b}-x"
    messages = {"{c}": r"\{c\} is not one of \{a\}", "{a": "not a valid template", "{}": "not one of"}
    for template, message in messages.items():
        with pytest.raises(UserError, match=message):
            yesno.fill(template, {"a": "x"}, "refine_prompt")
    with pytest.raises(UserError, match="at least one"):
        yesno.ask(tiny("gpt2"), [], [{}])


# --- a reward model that is a language model --------------------------------------------------


def test_prompt_weight_0_is_the_loss_on_completions_and_1_that_on_everything():
    model, demos = tiny("llama"), [Demo(prompt=f"ask {i}", completion=f" say {'x' * i}") for i in range(5)]
    rows = encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], "causal", 64)
    fit = Fit(lr=1e-3, steps=1, rows=5)

    def first(weight):
        items, loss = reward_models.weighted(rows, weight, "s", model)
        return reward_models.language.train(model, {"s": items}, loss, fit, quiet=True).history[0]["nll"]

    whole = baselines.sft(model, demos, loss_on="all", fit=fit).history[0]["nll"]
    part = baselines.sft(model, demos, fit=fit).history[0]["nll"]
    labels, everything = sum(len(r.completion) for r in rows), sum(r.size - 1 for r in rows)
    assert first(0.0) == pytest.approx(part, rel=1e-6) and first(1.0) == pytest.approx(whole, rel=1e-6)
    # sum w ce / count(w != 0): between the two it is linear in w.
    assert first(0.25) == pytest.approx((0.25 * whole * everything + 0.75 * part * labels) / everything, rel=1e-5)
    with pytest.raises(UserError, match="only a causal model"):
        reward_models.weighted(rows, 0.5, "s", tiny("t5"))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_reward_model_learns_what_is_preferred(arch, tmp_path):
    """Good answers have an x, bad ones an o."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), 3)) for _ in range(160)]
    pairs = [Preference(prompt=f"p{i % 7}", chosen=f"{t}x", rejected=f"{t}o") for i, t in enumerate(texts)]
    model = build.build(arch, byte_tokenizer(), d=32, layers=1, heads=2, context=128, initializer_range=0.1)
    short = Question("{completion}?", "Y", "N")
    taught = reward_models.train(model, pairs[:120], Fit(lr=1e-2, steps=40, rows=32), question=short)
    reward = reward_functions.by_yesno(taught.model, question=short)
    wins = judges.by_reward(reward)(["p"] * 40, [p.chosen for p in pairs[120:]], [p.rejected for p in pairs[120:]])
    assert np.mean(wins) > 0.95
    taught.model.save(tmp_path)
    loaded = reward_functions.reward_of(str(tmp_path), "reward")  # for a language model's folder: the yes/no prompt
    assert loaded(["p"], ["abcx"]) == pytest.approx(reward_functions.by_yesno(taught.model)(["p"], ["abcx"]), abs=1e-6)


# --- refinements -----------------------------------------------------------------------------


def test_tidying_as_the_paper_does():
    for text, expected in (
        ("  - A dog.  It   barks.\nMore", "A dog. It barks."),
        ("**Fine", "Fine"),
        ("One sentence. And a half of", "One sentence."),
        ("no end at all", "no end at all"),
        ('He said "yes." Then', 'He said "yes."'),
        ("...", ""),
        ("3.5 is a number", "3.5 is a number"),
    ):
        assert refine.tidy(text) == expected
    assert refine.tidy(" -a\nb ", "strip") == "-a\nb"


@given(st.text(max_size=60), st.sampled_from(["summary", "strip"]))
def test_tidying_twice_is_tidying_once(text, how):
    once = refine.tidy(text, how)
    assert refine.tidy(once, how) == once and (how == "strip" or "\n" not in once)


NOTHING = Scripted(lambda prompt, i: 1 / 0)


def test_empty_and_forbidden_refinements_are_drawn_again_a_few_times_and_twins_kept_where_nothing_new_comes():
    texts = {
        "late": ["", " ", "bad word", "good", "better"], "never": [""] * 9, "same": ["one"] * 9,
        "some": ["one", "one", "two"],
    }  # fmt: skip
    lm = Scripted(lambda prompt, i: texts[prompt][i] if i < len(texts[prompt]) else "")
    delayed, empty, same, partial = refine.draw(lm, list(texts), 2, how="strip", forbidden=["bad"])
    assert delayed == refine.Drawn(["good", "better"], 3, 1)
    assert empty == refine.Drawn([], 2 * refine.TRIES, 0)
    assert same.texts == ["one", "one"] and partial.texts == ["one", "two"]
    assert lm.drawn["never"] == 2 * refine.TRIES


# --- selectors -------------------------------------------------------------------------------


def critiques(n=8):
    return [Critique(prompt=f"q{i}", completion="ab", feedback="-x", refinement="ax") for i in range(n)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_text_is_the_mean_of_its_own_hidden_states_whatever_stands_beside_it(kind):
    model, texts = tiny(kind), ["short", "a much longer text than that", "", "mid size"]
    together = embed.embed(model, texts)
    for text, vector in zip(texts, together, strict=True):
        ids = encode.prompt_ids(model.tokenizer, text, kind) or [model.pad]
        body = model.module.get_encoder() if kind == "t5" else model.module.base_model
        with torch.no_grad():
            plain = body(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, plain, atol=1e-5)
    assert torch.allclose(embed.cosine(together, 3 * together), torch.ones(4), atol=1e-6)


def test_every_selector_prefers_what_it_should():
    records, model = critiques(2), tiny("llama")
    texts = [["-x", "zzzzzz"], ["qqqq", "-x"]]
    near = selectors.similar(model, records, texts)
    assert near[0][0] == pytest.approx(1, abs=1e-5) and near[0][0] > near[0][1] and near[1][1] > near[1][0]
    assert selectors.longest(texts) == [[2, 6], [4, 2]]
    assert selectors.rewarded(lambda p, c: [len(x) for x in c], records, texts) == [[2, 6], [4, 2]]
    whole = selectors.at_random([["a", "b"]] * 6, 3)
    assert whole[4:] == selectors.at_random([["a", "b"]] * 2, 3, first=4) and whole[0] != whole[1]
    likely = selectors.likely(model, ["q", "r"], texts)
    total = language_models.of(model).score([("q", "-x")])[0]
    assert likely[0][0] == pytest.approx(total.logp / total.tokens, abs=1e-5)
    with pytest.raises(UserError, match="hidden states"):
        selectors.similar(Scripted(lambda p, i: ""), records, texts)


def test_the_judge_is_asked_every_question_about_every_candidate():
    model, records = tiny("gpt2"), critiques(1)
    questions = [Question("{refinement}{feedback}?", "Y", "N"), Question("{prompt}{completion}?", "N", "Y")]
    judged = selectors.judged(model, questions, records, [["ax", "bb"]])
    for text, p in zip(("ax", "bb"), judged[0], strict=True):
        one, two = yesno.probabilities(model, [f"{text}-x?"], "Y", "N"), yesno.probabilities(model, ["q0ab?"], "N", "Y")
        assert p == pytest.approx((one[0] + two[0]) / 2, abs=1e-6)
    assert len(selectors.INCORPORATED) == 5 and sum(q.yes != "Yes" for q in selectors.INCORPORATED) == 2


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (3, 0.3), (5, 0.5)])
def test_an_oracle_finds_a_right_refinement_if_there_is_one(n, p):
    """Best of n independent refinements that are right with probability p: 1 - (1 - p)^n."""
    rng = np.random.default_rng(7)
    lm = Scripted(lambda prompt, i: f"right {i}" if rng.random() < p else f"wrong {i}")
    records = [Critique(prompt=f"q{i}", completion="x", feedback="f") for i in range(600)]
    result = alignment.ilf(
        tiny("gpt2"), records, n=n, selector="reward", refiner=lm, reward=lambda p, c: ["right" in x for x in c],
        check=lambda c, f, r: ["right" in x for x in r], **short(refine_prompt="{prompt}"), fit=FIT,
    )  # fmt: skip
    expected = 1 - (1 - p) ** n
    share = np.mean(["right" in r.refinement for r in result.records])
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


# --- training targets ------------------------------------------------------------------------


def weights(result):
    return torch.cat([p.flatten() for p in result.models["model"].module.parameters()])


def test_one_refinement_leaves_nothing_to_select():
    results = [
        weights(alignment.ilf(tiny("llama"), critiques(), n=1, selector=s, **SHORT, fit=FIT))
        for s in ("judge", "random", "length")
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_refiner_that_changes_nothing_is_tuning_on_the_initial_answers_and_that_is_sft():
    model, same = tiny("llama"), Scripted(lambda prompt, i: prompt)
    options = short(refine_prompt="{completion}")
    echoed = alignment.ilf(model, critiques(), n=2, selector="random", refiner=same, **options, fit=PLAIN)
    initial = alignment.ilf(model, critiques(), target="initial", **SHORT, fit=PLAIN)
    assert torch.equal(weights(echoed), weights(initial))
    demos = [Demo(prompt=c.prompt, completion=c.completion) for c in critiques()]
    assert torch.allclose(weights(initial), weights(baselines.sft(model, demos, fit=PLAIN)), atol=1e-5)


def test_gold_teaches_the_records_own_refinements_and_joint_the_feedback_before_them():
    model = tiny("gpt2")
    gold = alignment.ilf(model, critiques(), target="gold", **SHORT, fit=PLAIN)
    demos = [Demo(prompt=c.prompt, completion=c.refinement) for c in critiques()]
    assert torch.allclose(weights(gold), weights(baselines.sft(model, demos, fit=PLAIN)), atol=1e-5)
    lm = Scripted(lambda prompt, i: "ax")
    joint = alignment.ilf(model, critiques(), n=1, refiner=lm, target="feedback+refinement", **SHORT, fit=PLAIN)
    both = [Demo(prompt=c.prompt, completion="Feedback: -x\nImproved: ax") for c in critiques()]
    assert torch.allclose(weights(joint), weights(baselines.sft(model, both, fit=PLAIN)), atol=1e-5)


def test_the_draft_may_be_a_candidate_and_a_threshold_leaves_records_out():
    lm = Scripted(lambda prompt, i: "axxx" if prompt.startswith("ab!") else "a")
    options = {"refiner": lm, "n": 1, "selector": "length", "fit": FIT}
    result = alignment.ilf(tiny("gpt2"), critiques(4), **options, **short(include_initial=True, threshold=3))
    assert {r.refinement for r in result.records} == {"axxx"}
    assert result.records[0].extra["candidates"] == ["axxx", "ab"]
    longer = [Critique(prompt="q", completion="abcdefgh", feedback="f"), *critiques(2)]
    with_draft = alignment.ilf(tiny("gpt2"), longer, **options, **short(include_initial=True))
    assert with_draft.records[0].refinement == "abcdefgh"
    half = alignment.ilf(tiny("gpt2"), longer, **options, **short(threshold=3))
    assert len(half.records) == 2 and "1 records are below the threshold" in half.warnings[0]


# --- the effect ------------------------------------------------------------------------------


@lab.shared
def believer(arch):
    """A model that knows four of the six letters' codes, and was never trained on feedback."""
    base = build.build(arch, byte_tokenizer(), d=32, layers=2, heads=2, context=48, initializer_range=0.2)
    fit = Fit(lr=5e-3, steps=120, rows=32, schedule="cosine", warmup_steps=10)
    return lab.tuned(base, CODE.lessons(400, *"xxx")["belief"], fit)


def right(model):
    demos = CODE.demos(2, 36)
    completions = generate.generate(model, [d.prompt for d in demos], 4)
    return np.mean([m == d.completion for m, d in zip(completions, demos, strict=True)])


def own(model, n=128):
    prompts = CODE.prompts(1, n)
    return CODE.critiques(prompts, lab.sampled(model, prompts, 4))


def follows(prompt, i):
    """A refiner that follows the feedback every other time."""
    draft, _, feedback = prompt.rstrip(";").partition("!")
    mended = "".join(a if f == "-" else f for a, f in zip(draft, feedback, strict=False))
    return (mended if i % 2 else draft) or "?"


def check(completions, feedback, refinements):
    return [CODE.incorporated(*row) for row in zip(completions, feedback, refinements, strict=True)]


TEACH = Fit(lr=3e-3, epochs=10, rows=32)
LEARN = {**SHORT, "selector": "reward", "check": check, "fit": TEACH,
         "reward": lambda ps, cs: [np.mean([a == b for a, b in zip(c, CODE.answer(p), strict=False)])
                                   for p, c in zip(ps, cs, strict=True)]}  # fmt: skip


@pytest.mark.parametrize("arch", EFFECTS)
def test_feedback_teaches_what_the_model_believed_wrong_and_others_feedback_does_not(arch):
    start = believer(arch)
    start_accuracy, records = right(start), own(start)
    taught = alignment.ilf(start, records, refiner=Scripted(follows), **LEARN)
    facts = taught.findings["rounds"][0]
    assert facts["incorporated"]["plain"] < facts["incorporated"]["random"] < facts["incorporated"]["selected"]
    assert not taught.warnings and start_accuracy < 0.6 and right(taught.models["model"]) > start_accuracy + 0.25
    scoring = Scoring(records={"demos": CODE.demos(2, 36)}, start=start, options=LEARN)
    before, after = (protocols.by_name("reward").score(m, scoring) for m in (start, taught.models["model"]))
    assert after["reward"].value > before["reward"].value
    swapped = [Critique(prompt=r.prompt, completion=r.completion, feedback=s.feedback)
              for r, s in zip(records, records[1:] + records[:1], strict=True)]  # fmt: skip
    broken = alignment.ilf(start, swapped, refiner=Scripted(follows), **{**LEARN, "selector": "random"})
    assert right(broken.models["model"]) < start_accuracy + 0.1


def test_rounds_draft_anew_and_get_better():
    start, requests = believer("llama"), []

    def critic(prompts, drafts):
        requests.append(list(drafts))
        return CODE.critic(prompts, drafts)

    options = {**LEARN, "feedback": critic, "finetune_from": "previous", "window": "current"}
    one = alignment.ilf(start, own(start, 64), refiner=Scripted(follows), **LEARN)
    two = alignment.ilf(start, own(start, 64), refiner=Scripted(follows), rounds=2, **options)
    assert len(requests) == 1 and len(requests[0]) == 64
    assert [r.extra["round"] for r in two.records] == [0] * 64 + [1] * 64
    assert [r.completion for r in two.records[64:]] == requests[0] != [r.completion for r in two.records[:64]]
    assert right(two.models["model"]) > right(one.models["model"])


@pytest.mark.parametrize(("window", "rows"), [("all", [8, 16]), ("current", [8, 8])])
def test_a_round_teaches_all_refinements_so_far_or_its_own_from_the_start_or_from_the_last(window, rows):
    model, lm = tiny("gpt2"), Scripted(lambda prompt, i: f"ax{i}")
    critic = {"feedback": lambda p, c: ["-x"] * len(p), "rounds": 2, "refiner": lm, "n": 1, "selector": "random"}
    fit = Fit(lr=1e-3, epochs=1, rows=4)
    both = {f: alignment.ilf(model, critiques(), window=window, finetune_from=f, **critic, **SHORT, fit=fit)
            for f in ("start", "previous")}  # fmt: skip
    for result in both.values():
        steps = [row["round"] for row in result.history]
        assert [4 * steps.count(k) for k in (0, 1)] == rows
    # The answers of round 1 are the same; the continued model starts from the weights of round 0.
    first = {f: next(row["nll"] for row in r.history if row["round"] == 1) for f, r in both.items()}
    assert first["previous"] < first["start"] - 0.01


def test_the_policy_may_refine_and_a_model_may_give_the_feedback():
    model = tiny("llama")
    result = alignment.ilf(
        model, critiques(4), refiner="policy", judge="policy", feedback="policy", rounds=2, n=2,
        **short(feedback_prompt="{completion}?"), fit=FIT,
    )  # fmt: skip
    assert {r.extra["round"] for r in result.records} <= {0, 1} and len(result.findings["rounds"]) == 2


# --- errors ----------------------------------------------------------------------------------


def test_empty_refinements_are_counted_and_shown_and_none_left_is_one_line():
    lm = Scripted(lambda prompt, i: "" if "0" in prompt else "ax")
    options = {**short(refine_prompt="{prompt}"), "refiner": lm, "n": 2, "selector": "random", "fit": FIT}
    result = alignment.ilf(tiny("gpt2"), critiques(4), **options)
    facts = result.findings["rounds"][0]
    assert len(result.records) == 3 and facts["empty"] == 1 and facts["empty_draws"] == 2 * refine.TRIES
    assert any("1 records got nothing but empty refinements" in w for w in result.warnings)
    with pytest.raises(
        UserError, match="no refinement is left of 4 records: 0 without feedback, 4 with empty"
    ) as error:
        alignment.ilf(tiny("gpt2"), critiques(4), **{**options, "refiner": Scripted(lambda p, i: " ")})
    assert "\n" not in str(error.value)


def test_a_refiner_that_cannot_follow_feedback_is_told_before_it_is_too_late():
    lm = Scripted(lambda prompt, i: f"zz{i}")
    result = alignment.ilf(tiny("gpt2"), critiques(), refiner=lm, check=check, **SHORT, fit=FIT)
    assert any("cannot follow feedback" in w for w in result.warnings)


def test_records_without_feedback_and_candidates_without_a_verdict_are_counted():
    quiet = [*critiques(3), Critique(prompt="q9", completion="a", feedback=" ")]
    options = short(questions=["{prompt}{refinement}?|Y|N"])
    options |= {"refiner": Scripted(lambda prompt, i: f"ax{i}"), "n": 2, "fit": FIT}
    options["judge"] = Scripted(tops=lambda prompt: {"Y": -1.0} if "q1" in prompt else {"hm": -0.1})
    result = alignment.ilf(tiny("gpt2"), quiet, **options)
    facts = result.findings["rounds"][0]
    assert facts["without_feedback"] == 1 and facts["unclear"] == 2 and len(result.records) == 3
    assert [r.extra["score"] for r in result.records] == [None, 1.0, None]
    assert any("2 records on which the selector gave no verdict" in w for w in result.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [(short(temperature=0.0), "temperature = 0"), ({"rounds": 2}, "--feedback says who"),
     ({"selector": "reward"}, "selector reward needs"), ({"check": "math:pi"}, "check 'math:pi' is not a function"),
     ({"feedback": "no_module:f", "rounds": 2}, "feedback 'no_module:f' cannot be imported"),
     ({"feedback": lambda p, c: ["x"], "rounds": 2}, "gave 1 texts for 2"),
     ({"feedback": lambda p, c: [1] * 2, "rounds": 2}, "gave int where a text"),
     ({"reward": lambda p, c: [math.nan] * len(c), "selector": "reward"}, "gave NaN"),
     (short(questions="no.jsonl"), "no.jsonl cannot be read"), (short(refine_prompt="{x}"), r"\{x\} is not one of"),
     (short(questions=["{other}"]), r"\{other\} is not one of"), ({"critiques": []}, "critiques: no records"),
     ({"judge": NOTHING}, "selector judge needs a model with top_logprobs"),
     ({"judge": NOTHING, "selector": "embedding"}, "selector embedding needs a model with hidden"),
     ({"selector": "logp"}, "selector logp needs a model with score"),
     ({"critiques": [*critiques(1), Critique(prompt="q", completion="a", feedback="f")], "target": "gold"},
      "record 2: field 'refinement' is missing")],
)  # fmt: skip
def test_a_part_that_is_missing_or_wrong_is_one_line(options, words):
    settings = {
        "critiques": critiques(2),
        "refiner": Scripted(lambda prompt, i: f"a{i}"),
        **SHORT,
        "fit": FIT,
        **options,
    }
    with pytest.raises(UserError, match=words) as error:
        alignment.ilf(tiny("gpt2"), **settings)
    assert "\n" not in str(error.value)


def test_a_killed_run_asks_nobody_twice(tmp_path):
    """Killed in the training of round 1, after all sampling and judging."""
    requests, fit = [], Fit(lr=1e-3, steps=3, rows=4, save_every=1, folder=str(tmp_path))

    def critic(prompts, drafts):
        requests.extend(drafts)
        return ["-x"] * len(prompts)

    lm = Scripted(lambda prompt, i: f"a{prompt[0]}{i}")
    options = {"selector": "length", "n": 2, "rounds": 2, "feedback": critic, "check": check, "refiner": lm, **SHORT}
    whole = alignment.ilf(tiny("llama"), critiques(), **options, fit=fit.replace(folder=None))
    lm.drawn = {}
    with pytest.raises(KeyboardInterrupt):
        alignment.ilf(tiny("llama"), critiques(), **options, fit=fit, hooks=[Halt(5)])
    requests.clear(), lm.asked.clear()
    again = alignment.ilf(tiny("llama"), critiques(), **options, fit=fit, hooks=[Halt(0)])
    assert not requests and not lm.asked
    assert again.models["model"].fingerprint() == whole.models["model"].fingerprint()
    assert [as_row(r) for r in again.records] == [as_row(r) for r in whole.records]


# --- parts on a server -----------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real server on loopback for a rule: words from the prompt and the seed; ` 0` is likelier next than ` 1`."""
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(calls, "BACKOFF", 0.01)
    process = Small(tmp_path)
    yield process
    process.kill()


def test_a_server_refines_judges_and_gives_feedback(server, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 2)
    address = f"{server.url}#{NAME}"
    texts = short(questions=["{refinement}{feedback}?|0|1"], feedback_prompt="{completion}?")
    options = {**texts, "n": 3, "fit": FIT}
    parts = {"refiner": address, "judge": address, "feedback": address, "rounds": 2}
    result = alignment.ilf(tiny("gpt2"), critiques(4), **parts, **options)
    assert result.cost.calls == len(server.rows("came")) > 0
    first, later = result.records[:4], result.records[4:]
    assert all(s == pytest.approx(1 / (1 + math.exp(-1))) for r in result.records for s in r.extra["scores"])
    # Each sample is the rule's answer to the prompt with its own seed
    for c, r in zip(critiques(4), first, strict=True):
        seeds = [row["seed"] for row in server.rows("answered") if row["prompt"] == "ab!-x;"]
        assert set(r.extra["candidates"]) <= {Words().say("ab!-x;", 4, 1.0, s).strip() for s in seeds}
        assert len(set(r.extra["candidates"])) == 3 and r.prompt == c.prompt
    prompts = [row["prompt"] for row in server.rows("answered")]
    # One seed per chunk
    assert len({row["seed"] for row in server.rows("answered") if row["prompt"].endswith("?")} - {0}) == 2
    assert all(f"{r.completion}?" in prompts and f"{r.completion}!{r.feedback};" in prompts for r in later)
    with pytest.raises(UserError, match="selector embedding needs a model with hidden"):
        alignment.ilf(tiny("gpt2"), critiques(4), judge=address, selector="embedding", **options)


def test_a_server_that_dies_is_one_line_and_the_same_command_goes_on(server, tmp_path):
    critiqued = [Critique(prompt=f"q{i}", completion=f"a{i}", feedback="-x") for i in range(6)]
    fit = FIT.replace(folder=str(tmp_path / "out"))
    options = {**SHORT, "selector": "length", "n": 2, "check": lambda c, f, r: [1] * len(c), "fit": fit}
    options["refiner"] = f"{server.url}#{NAME}"
    server.plan(*[{"kind": "slow", "s": 0}] * 4, *[{"kind": "401", "says": "no more"}] * 40)
    with pytest.raises(UserError) as error:
        alignment.ilf(tiny("gpt2"), critiqued, **options)
    assert "no more" in str(error.value) and "\n" not in str(error.value)
    answered = len(server.rows("answered"))
    server.kill()
    server.start()  # reset: without the planned faults
    options["refiner"] = f"{server.url}#{NAME}"
    result = alignment.ilf(tiny("gpt2"), critiqued, **options)
    assert answered > 1 and len(result.records) == 6
    prompts = [(row["prompt"], row["seed"]) for row in server.rows("answered") if "!" in row["prompt"]]
    assert len(prompts) == len(set(prompts)) == 12  # answered requests were not repeated


def test_preferences_give_a_reward_model_that_selects_in_another_run_and_questions_come_from_a_file(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"template": "{feedback}: {refinement}?", "yes": "Y", "no": "N"}\n')
    pairs = [Preference(prompt=f"q{i}", chosen="well", rejected="no") for i in range(11)]
    options = {**short(questions=str(tmp_path / "q.jsonl")), "n": 2, "fit": FIT}
    result = alignment.ilf(tiny("gpt2", context=512), critiques(6), pairs, best_of_n=2, **options)
    findings = result.findings["reward"]
    assert (findings["pairs"], findings["trained_on"]) == (3, 8) and 0 <= findings["accuracy"] <= 1
    assert len(result.predict(["q"])) == 1
    result.save(tmp_path / "out")
    assert load.load(tmp_path / "out" / "model-reward").kind == "causal"
    again = {**options, "selector": "reward", "reward": str(tmp_path / "out" / "model-reward")}
    picked = alignment.ilf(tiny("gpt2", context=512), critiques(6), **again).records
    assert all(r.extra["score"] == max(r.extra["scores"]) for r in picked) and "reward" not in result.metrics
