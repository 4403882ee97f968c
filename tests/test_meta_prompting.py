"""Meta-prompting's protocol with scripted models, its programs in the real sandbox, and its checkers."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from servers import Small
from shapes import brief, tiny

from didact import prompting
from didact.data.scaffold_words import FINAL, FULL, QUOTES, RUN, answered, called
from didact.infer import ask, conductor, remote, scaffolds
from didact.infer.conductor import Call, Rules
from didact.tools import checkers, sandbox
from didact.types import Demo, Messages, UserError

DATA = Path(__file__).parents[2] / "shared" / "data" / "meta-prompting"
here = pytest.mark.skipif(bool(sandbox.lacks()), reason=sandbox.lacks())
NO_CODE = Rules(python=False)


def turns(prompt):
    """Return the turns of a conversation, alternately user and assistant, without the system's."""
    assert isinstance(prompt, Messages)
    return [t["content"] for t in prompt.turns if t["role"] != "system"]


def conducted(say, questions, rules=NO_CODE, box=None, **how):
    """`say(turns, i)` replies as conductor and expert: an expert's conversation is one turn that names it."""
    lm = Scripted(lambda prompt, i: say(turns(prompt), i))
    asker = ask.Asker(lm, ask.Asking(max_new_tokens=1024, **how))
    return conductor.conduct(asker, questions, rules, box), lm, asker


def is_expert(messages):
    return messages[0].startswith("You are Expert ")


def test_a_model_that_answers_at_once_is_asked_once():
    conversations, lm, _ = conducted(lambda messages, i: f"Simple.\n{answered('42')}", ["six times seven"])
    assert [t.answer for t in conversations] == ["42"] and len(lm.asked) == 1
    (prompt,) = lm.asked
    assert [t["role"] for t in prompt.turns] == ["system", "user"]
    assert prompt.turns[1]["content"] == "ROUND 1:\n\n" + FULL.opening("six times seven", python=False)


def three_rounds(messages, i):
    if is_expert(messages):
        return "seen: " + messages[0].rpartition("\n")[2]
    number = len(messages) // 2
    return answered("done") if number == 3 else called(f"Expert Number {number}", f"task {number} of {messages[0][-1]}")


def test_messages_alternate_and_experts_see_their_instruction_alone():
    conversations, lm, asker = conducted(three_rounds, ["question a", "question b"])
    conductors = [p for p in lm.asked if not is_expert(turns(p))]
    experts = [p for p in lm.asked if is_expert(turns(p))]
    assert [len(p.turns) for p in conductors] == [2, 2, 4, 4, 6, 6, 8, 8]  # 2 + 2k after k rounds with calls
    for prompt in conductors:
        roles = [t["role"] for t in prompt.turns]
        assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2 - 1) + ["user"]
    assert len(experts) == 6 and all(len(p.turns) == 2 for p in experts)
    assert turns(experts[0]) == ["You are Expert Number 0.\n\ntask 0 of a"]
    assert all("question" not in p and "seen" not in p for p in experts)
    assert [t.answer for t in conversations] == ["done", "done"] and conversations[0].experts == [
        f"Expert Number {k}" for k in range(3)
    ]
    assert asker.findings()["calls_by_role"] == {"conductor": 8, "expert": 6}
    assert [e.item for e in asker.exchanges if e.role == "expert"] == [0, 1, 0, 1, 0, 1]
    messages = turns(conductors[-1])
    assert messages[2].startswith(f"ROUND 2:\n\nExpert Number 0's output:\n{QUOTES}\nseen: task 0 of b\n{QUOTES}\n\n")


def test_what_an_expert_is_asked_does_not_depend_on_what_went_before():
    def chatty(messages, i):
        return three_rounds(messages, i) + ("" if is_expert(messages) else "\nand so on, " * 3)

    plain = conducted(three_rounds, ["question a"])[1].asked
    verbose = conducted(chatty, ["question a"])[1].asked
    experts = [[p for p in prompts if is_expert(turns(p))] for prompts in (plain, verbose)]
    assert experts[0] == experts[1]


@pytest.mark.parametrize(("early", "at"), [(False, 16), (True, 15)])
def test_a_model_that_does_neither_is_asked_sixteen_times_and_told_of_the_last_round(early, at):
    conversations, lm, _ = conducted(lambda messages, i: "Hm.", ["q"], dataclasses.replace(NO_CODE, early=early))
    assert len(lm.asked) == 16 and conversations[0].answer is None and conversations[0].rounds == 16
    messages = turns(lm.asked[-1])[::2]
    assert len(messages) == 16 and all(FULL.lost in text for text in messages[1:])
    assert [i + 1 for i, text in enumerate(messages) if FULL.last in text] == [at]


def test_calls_of_one_reply_are_answered_in_order_and_go_before_an_answer():
    def say(said, i):
        if is_expert(said):
            return said[0].rpartition("\n")[2].upper() + f" {QUOTES} "
        if len(said) == 1:
            return called("Expert A", "one") + "\nand\n" + called("Expert B C", "two") + "\n" + answered("too early")
        return answered("late")

    conversations, lm, _ = conducted(say, ["q"])
    message = turns(lm.asked[-1])[-1]
    assert re.findall(r"(Expert [\w ]+)'s output:\n\"\"\"\n(.*)\n\"\"\"", message) == [
        ("Expert A", "ONE ''' "), ("Expert B C", "TWO ''' "),
    ]  # fmt: skip
    assert conversations[0].answer == "late" and message.count(QUOTES) == 4


def test_calls_as_the_official_code_reads_them_and_strictly():
    whole = f"Let me ask.\n{called('Expert Chess Player', 'mate in one')}"
    for strict in (True, False):
        assert conductor.read_calls(whole, strict) == [Call("Expert Chess Player", "mate in one")]
    prose = f"What Expert Mathematician is:\nsure of is this.\n{answered('24')}"
    assert conductor.read_calls(prose, strict=True) == [] and conductor.read_answer(prose) == "24"
    prose = f"As Expert Mathematician provided the following solution:\n{QUOTES}\n6*4\n{QUOTES}"
    assert conductor.read_calls(prose, strict=True) == []
    assert conductor.read_calls(prose, strict=False) == [
        Call("As Expert Mathematician provided the following solution", "6*4")
    ]
    both = f"{called('Expert A', 'x')}\n{answered('y')}"
    assert conductor.read_calls(both, strict=False) == [Call("Expert A", "x")]  # the line of the answer names no expert
    open_ended = f"Expert A:\n{QUOTES}\nnever closed"
    assert conductor.read_calls(open_ended) == [] and conductor.read_calls(open_ended, strict=False)


def test_the_last_answer_counts():
    assert conductor.read_answer("no answer") is None
    assert conductor.read_answer(f"{answered('first')}\n{answered('second')}") == "second"
    assert conductor.read_answer(f"{FINAL} 24") == "24"
    assert conductor.read_answer(f"{FINAL}\n{QUOTES}cut") == "cut"


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z]\w{0,8}", fullmatch=True), st.text(max_size=40)), max_size=4))
def test_whatever_is_asked_of_experts_is_read_back(calls):
    expected = [Call(f"Expert {name}", instruction.replace('"', "'").strip()) for name, instruction in calls]
    assert conductor.read_calls("\n\n".join(called(*c) for c in expected)) == expected


@here
@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("print(6 * 7)", "42"),
        ("import sys; print('why', file=sys.stderr)", "why"),
        ("x = 1", "(nothing was printed: the program must print its result)"),
        ("print('so far', flush=True)\nwhile True: pass", "so far\n(stopped: its time ran out)"),
        ("open('/etc/passwd')", "FileNotFoundError"),
    ],
)
def test_what_a_program_prints_is_added(program, printed):
    text = f"Like so:\n```python\nprint('first')\n```\nor better:\n```python\n{program}\n```\n{RUN}"
    out = conductor.run(text, sandbox.Sandbox(sandbox.Limits(seconds=1)))
    assert (out.startswith(text + "\n\nOutput of the program:\n") and out.endswith(printed)) or printed in out
    assert "first" not in out.removeprefix(text)


def test_a_program_is_run_only_where_its_writer_says_so():
    text = "```python\nprint(1)\n```"
    assert conductor.run(text, None) == text
    assert conductor.run(f"{RUN} {text}", sandbox.Sandbox()) == f"{RUN} {text}"


@here
def test_expert_python_runs_and_other_experts_do_not():
    code = f"```python\nprint(2**20)\n```\n{RUN}"

    def say(said, i):
        if is_expert(said):
            return code
        return (
            called(f"Expert {'Python' if 'python' in said[0][-8:] else 'Coder'}", "compute")
            if len(said) == 1
            else (answered("1048576" if "Output of the program:\n1048576" in said[-1] else "unknown"))
        )

    conversations, lm, _ = conducted(say, ["by python", "by hand"], Rules(), sandbox.Sandbox())
    assert [t.answer for t in conversations] == ["1048576", "unknown"]
    experts = [turns(p)[0] for p in lm.asked if is_expert(turns(p))]
    assert FULL.python in experts[0] and FULL.python not in experts[1]
    assert "Expert Python, writes and runs" in turns(lm.asked[0])[0]


def test_two_experts_and_a_third_where_they_differ():
    def say(said, i):
        if is_expert(said):
            return ["same", "same"][i] if "easy" in said[0] else ["one", "two", "two"][i]
        return (
            called("Expert A", "easy" if "easy" in said[0][-6:] else "hard")
            if len(said) == 1
            else (answered(re.search(r'"""\n(.*)\n"""', said[-1])[1]))
        )

    conversations, _, asker = conducted(say, ["easy", "hard"], dataclasses.replace(NO_CODE, verify=True))
    assert [t.answer for t in conversations] == ["same", "two"]
    assert asker.findings()["calls_by_role"] == {"conductor": 4, "expert": 4, "verifier": 1}


def test_the_budget_ends_it_with_what_there_is():
    conversations, lm, asker = conducted(three_rounds, ["question a", "question b"], calls=9)
    assert len(lm.asked) == 9 and asker.ended and [t.answer for t in conversations] == [None, None]
    assert all(len(t.turns) % 2 == 1 for t in conversations)  # each partial conversation still ends with a user's turn


BASELINES = {
    "standard": (1, "asked"), "steps": (1, "step by step"), "expert-static": (1, "expert of long standing"),
    "expert-dynamic": (2, "You are Ada."), "multipersona": (1, "Participants"), "self-consistency": (5, "step by step"),
}  # fmt: skip


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_presets_of_the_same_function(name):
    calls, answers = BASELINES[name]

    def write(prompt, i):
        if "describe in a few sentences" in prompt:
            return " You are Ada. "
        return answered(["5", "4", "4", "3", "4"][i]) if name == "self-consistency" else f"So:\n{answered('4')}"

    lm = Scripted(write)
    preset = {"scaffold": name} | ({"draws": 5} if name == "self-consistency" else {})
    result = prompting.meta_prompting(lm, [Demo(prompt="asked", completion="4")], **preset)
    assert result.records[0].extra["prediction"] == "4" and result.findings["right"] == 1
    assert result.findings["calls"] == calls == len(lm.asked) and answers in lm.asked[-1] and "asked" in lm.asked[-1]


def test_answers_without_the_form_are_taken_whole_and_votes_are_counted():
    assert scaffolds.read("1+1=2;#2") == "2" and scaffolds.read(" plain ") == "plain"
    assert scaffolds.commonest(["a", "b ", "b"]) == "b " and scaffolds.commonest([]) is None


def test_a_transcript_keeps_what_led_to_right_answers():
    def write(prompt, i):
        messages = turns(prompt)
        return three_rounds(messages, i) if "question a" in messages[0] or is_expert(messages) else answered("wrong")

    questions = [
        Demo(prompt="question a", completion="done"),
        Demo(prompt="b", completion="c"),
        Demo(prompt="d", completion=""),
    ]
    result = prompting.meta_prompting(Scripted(write), questions, rules=NO_CODE)
    assert [r.extra.get("right") for r in result.records] == [True, False, None]
    assert result.findings["right"] == 0.5 and result.findings["answered"] == 1
    assert [d.extra["item"] for d in result.transcript] == [0, 2, 0, 0, 0, 0, 0, 0]
    assert result.predict(["b", "question a"]) == ["wrong", "done"]
    before = result.findings["calls"]
    assert result.predict(["question a", "new"]) == ["done", "wrong"] and before == 9


def test_without_a_sandbox_python_is_refused_before_any_call(monkeypatch):
    monkeypatch.setattr(sandbox, "lacks", lambda: "it is not installed")
    lm = Scripted(lambda prompt, i: answered("4"))
    with pytest.raises(UserError, match="--allow-code"):
        prompting.meta_prompting(lm, [Demo(prompt="q", completion="4")])
    assert not lm.asked
    result = prompting.meta_prompting(lm, [Demo(prompt="q", completion="4")], allow_code=True)
    assert "not in a sandbox" in result.warnings[0]
    assert prompting.meta_prompting(lm, [Demo(prompt="q", completion="4")], rules=NO_CODE).warnings == []


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_local_models_of_two_architectures(arch):
    questions = [Demo(prompt="2+2=", completion="4"), Demo(prompt="1+1=", completion="")]
    rules = Rules(python=False, rounds=3, words="terse")
    result = prompting.meta_prompting(brief(tiny(arch)), questions, rules=rules, asking=ask.Asking(max_new_tokens=8))
    assert len(result.records) == 2 and result.findings["calls"] <= 6 and "right" not in result.records[1].extra


def test_a_server_is_asked_by_chat(tmp_path):
    server = Small(tmp_path)
    try:
        lm = remote.connect(server.url, cache=False)
        result = prompting.meta_prompting(
            lm,
            [Demo(prompt="2+2=", completion="4")],
            rules=Rules(python=False, rounds=2, words="terse"),
            asking=ask.Asking(max_new_tokens=4),
        )
        assert result.findings["calls"] == 2 and result.findings["answered"] == 0
    finally:
        server.kill()


NUMBERS = Demo(prompt="4 5 6 10", completion="24")
GAME = {
    "(5 - 4) * (10 + 6) + 8": False,  # no 8
    "4 * (10 - 5) + 6": False,  # 26
    "(10 - 4) * (5 - 6) + 30": False,
    "(4 + 5) * 6 - 10": False,
    "6 * 10 - 4 * 5": False,  # 40
    "(10 - 5 + 4) * 6": False,
    "10 * 4 - (5 + 6)": False,
    "6 * 5 + 4 - 10": True,
    "6 × 5 + 4 − 10 = 24": True,
    "Solution: ((6*5)+4)-10": True,
    "6*5 + 4 - 10 = 25": False,
    "__import__('os').system('true') or 24": False,
    "6 * 5 + 4 - 10 + 0": False,
    "6 * 5 + 4 - 1" + "0" * 300: False,
    "10 / (5 - 5) + 4 + 6": False,
    "(" * 90 + "24": False,
    "24": False,
    "": False,
}


@pytest.mark.parametrize("text", GAME)
def test_game_of_24_is_checked_by_its_syntax(text):
    assert checkers.game24(text, NUMBERS) is GAME[text]


def test_exact_fractions_count():
    assert checkers.game24("8 / (3 - 8/3)", Demo(prompt="3 3 8 8", completion="24"))


def test_words_are_checked_in_their_order():
    demo = Demo(prompt="Sort the following words alphabetically: List: syndrome therefrom it&t", completion="")
    for valid in ("it&t syndrome therefrom", "it&t, syndrome, therefrom", "['it&t', 'syndrome', 'therefrom']",
                  "1. it&t\n2. syndrome\n3. therefrom"):  # fmt: skip
        assert checkers.sorted_words(valid, demo), valid
    for invalid in (
        "syndrome it&t therefrom",
        "it&t syndrome",
        "it&t syndrome therefrom syndrome",
        "[open('/etc/passwd')]",
        "",
    ):
        assert not checkers.sorted_words(invalid, demo), invalid


@pytest.mark.skipif(not DATA.exists(), reason="the paper's data are not here")
def test_the_papers_targets_pass_their_checkers():
    rows = [json.loads(line) for line in (DATA / "word_sorting.jsonl").read_text().splitlines()]
    demos = [Demo(prompt=r["input"], completion=r["target"]) for r in rows]
    passed = [checkers.sorted_words(d.completion, d) for d in demos]
    assert len(demos) == 250 and sum(passed) >= 248  # two targets of the data are not in order
    numbers = [json.loads(line)["input"] for line in (DATA / "GameOf24.jsonl").read_text().splitlines()]
    assert len(numbers) == 100 and all(len(n.split()) == 4 for n in numbers)
