"""Requests of a prompt procedure: bounded retries, a budget, a transcript for training."""

import pytest
from scripted import Scripted
from servers import NAME, Small

from didact.errors import BudgetError
from didact.infer import ask, remote
from didact.types import Demo, Messages


def number(reply):
    return int(reply) if reply.isdigit() else None


def test_what_cannot_be_read_is_asked_again_alone_and_given_up_after_the_tries():
    lm = Scripted(lambda prompt, i: {"a": ["7"], "b": ["?", "8"], "c": ["?", "?", "?"]}[prompt][i])
    asker = ask.Asker(lm, ask.Asking(tries=3))
    assert asker.ask(["a", "b", "c"], number, "worker") == [7, 8, None]
    assert lm.asked == ["a", "b", "c", "b", "c", "c"]
    assert asker.findings() == {
        "calls": 6, "calls_by_role": {"worker": 6}, "unreadable": 4, "complete": True,
    }  # fmt: skip
    assert "4 of 6 answers could not be read" in asker.warnings()[0]


def test_a_budget_ends_a_procedure_with_what_it_has():
    lm = Scripted(lambda prompt, i: "1")
    asker = ask.Asker(lm, ask.Asking(calls=3))
    assert asker.ask(["a", "b"], number) == [1, 1]
    assert asker.ask(["c", "d"], number) == [1, None]
    assert asker.ended and asker.ask(["e"], number) == [None]
    assert lm.asked == ["a", "b", "c"]
    assert asker.warnings() == ["the budget ended after 3 calls: this is a partial result"]


def test_a_budget_that_is_used_up_exactly_is_enough():
    asker = ask.Asker(Scripted(lambda prompt, i: "1"), ask.Asking(calls=2))
    assert asker.ask(["a", "b"], number) == [1, 1]
    assert asker.findings()["complete"] and not asker.warnings() and asker.left == 0


def test_retries_count_against_the_budget():
    lm = Scripted(lambda prompt, i: "?")
    asker = ask.Asker(lm, ask.Asking(calls=4, tries=3))
    assert asker.ask(["a", "b"], number) == [None, None]
    assert len(lm.asked) == 4 and asker.ended


def test_a_greedy_answer_is_asked_again_with_some_warmth_and_rounds_differ_in_their_seed():
    recorded = []

    class Watched(Scripted):
        def generate(self, prompts, max_new_tokens=64, **how):
            recorded.append((how["temperature"], how["seed"], max_new_tokens))
            return super().generate(prompts, max_new_tokens, **how)

    asker = ask.Asker(Watched(lambda prompt, i: "?"), ask.Asking(tries=2), seed=5)
    asker.ask(["a"], number, max_new_tokens=9)
    asker.ask(["a"], number, temperature=0.3)
    assert [t for t, _, _ in recorded] == [0.0, ask.WARM, 0.3, 0.3]
    assert [n for _, _, n in recorded] == [9, 9, 512, 512]
    assert len({seed for _, seed, _ in recorded}) == 4


def test_the_transcript_becomes_demonstrations():
    asker = ask.Asker(Scripted(lambda prompt, i: "4" if "2+2" in prompt else "?"), ask.Asking(tries=1))
    conversation = ask.conversation("Be brief.", "2+2")
    asker.ask([conversation, "x"], number, "solver", items=[10, 11])
    assert [e.read for e in asker.exchanges] == [True, False]
    (demo,) = asker.demos()
    assert demo == Demo(prompt=conversation, completion="4", extra={"role": "solver", "item": 10})
    assert demo.prompt.turns == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"})
    assert asker.demos(lambda e: e.item == 11) == []


def test_a_conversation_without_a_system_message_alternates_from_the_user():
    conversation = ask.conversation("", "one", "two", "three")
    assert isinstance(conversation, Messages)
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant", "user"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    served = Small(tmp_path_factory.mktemp("asked"))
    yield served
    served.kill()


def test_a_servers_budget_ends_the_procedure_and_a_second_run_repeats_no_call(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))

    def run(calls):
        lm = remote.connect(server.url, budget_calls=calls, retries=0)
        asker = ask.Asker(lm, ask.Asking(max_new_tokens=4))
        for i in range(6):
            asker.ask([f"question {i}"], str)
        return asker

    first = run(4)
    assert first.ended and 0 < len(first.exchanges) < 6
    second = run(None)
    assert not second.ended and len(second.exchanges) == 6
    assert sorted(server.prompts()) == [f"question {i}" for i in range(6)]
    assert [e.reply for e in second.exchanges[: len(first.exchanges)]] == [e.reply for e in first.exchanges]


def test_without_a_procedure_the_end_of_the_budget_is_the_users_one_line(server):
    with pytest.raises(BudgetError, match="budget of 0 calls is used up"):
        remote.connect(server.url, NAME, budget_calls=0, cache=False).generate(["x"])


def test_the_end_of_the_budget_ends_scoring_too():
    class Ends(Scripted):
        def score(self, pairs):
            raise BudgetError("used up")

    asker = ask.Asker(Ends(lambda prompt, i: "x"), ask.Asking())
    assert asker.score([("a", "b")]) is None and asker.ended and asker.ask(["a"], str) == [None]
