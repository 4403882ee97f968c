"""A conductor: a model that solves a problem by calling experts, fresh conversations with the same model.

A round: the conductor's reply is read; every call in it is answered by an expert that sees its own instructions alone;
the outputs are the conductor's next turn. A reply with an answer and no call ends the conversation.

Source: Suzgun & Kalai 2024, arXiv:2401.12954.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from didact.bounds import Count
from didact.data import words as texts
from didact.data.scaffold_words import FINAL, FULL, PYTHON, QUOTES, RUN, TERSE, Words, printed
from didact.infer import ask
from didact.tools.sandbox import Sandbox
from didact.types import Messages

OUTPUT = 4000  # characters of a program's output that go on
DRAWN = 0.7  # temperature of experts who are asked twice
_NAMED = re.compile(r"Expert ((?:\w+ ?){1,5}):\n")
_CALL = re.compile(r'^(Expert(?: \w+){1,5}):[ \t]*\n\s*"""(.*?)"""', re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


WORDS = {"full": FULL, "terse": TERSE}


class Call(NamedTuple):
    """An expert's name and what it is told."""

    name: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a conductor works.

    Args:
        python: programs of Expert Python are run.
        rounds: of a conductor at most, for one question.
        early: the last round is announced a round early, so that one more follows it (the official count).
        strict: a call is a line of its own with an expert's name and a quoted block directly after it; else any
            `Expert ...:` at the end of a line makes every quoted block a call whose line before names an expert.
        named: experts are told who they are.
        steps: experts are told to think step by step.
        verify: every call is answered by two experts at temperature 0.7, and where they differ by a third, who
            decides.
        words: full, or terse: questions, calls and results alone, for models that were taught the protocol so.
    """

    python: bool = True
    rounds: Count = 16
    early: bool = False
    strict: bool = True
    named: bool = True
    steps: bool = False
    verify: bool = False
    words: Literal["full", "terse"] = "full"

    @property
    def texts(self) -> Words:
        """What is said."""
        return WORDS[self.words]


@dataclass
class Talk:
    """One question's conversation: user and assistant by turns; the answer once there is one."""

    question: str
    turns: list[str] = field(default_factory=list)
    answer: str | None = None
    rounds: int = 0
    experts: list[str] = field(default_factory=list)


def conduct(
    asker: ask.Asker, questions: Sequence[str], rules: Rules, box: Sandbox | None, first: int = 0
) -> list[Talk]:
    """One conversation for every question, all a round at a time, until the last has its answer or its rounds are over.

    Args:
        asker: asks conductor and experts.
        questions: the problems.
        rules: how.
        box: where Expert Python's programs run; none are where there is none.
        first: the number of the first question, for the transcript.
    """
    opening = [turn(rules, 1, rules.texts.opening(q, rules.python)) for q in questions]
    talks = [Talk(q, [said]) for q, said in zip(questions, opening, strict=True)]
    for number in range(2, rules.rounds + 2):
        waiting = [i for i, talk in enumerate(talks) if talk.answer is None]
        if not waiting or asker.ended:
            break
        asked = [ask.conversation(rules.texts.system, *talks[i].turns) for i in waiting]
        replies = asker.ask(asked, str, "conductor", [first + i for i in waiting])
        calls: list[list[Call]] = []
        for i, reply in zip(waiting, replies, strict=True):
            found = read_calls(reply, rules.strict) if reply is not None else []
            calls.append(found)
            if reply is not None:
                talks[i].rounds += 1
                talks[i].turns.append(reply)
                talks[i].experts += [call.name for call in found]
                talks[i].answer = None if found else read_answer(reply)
        outputs = iter(consult(asker, talks, waiting, calls, rules, box, first))
        for i, reply, found in zip(waiting, replies, calls, strict=True):
            told = [next(outputs) for _ in found]
            if reply is not None and talks[i].answer is None:
                said = results(found, told, rules.texts) if found else rules.texts.lost
                talks[i].turns.append(turn(rules, number, said))
    return talks


def problem(prompt: str) -> str:
    """A prompt as a conductor is told it: the user's words where it is a conversation of one turn."""
    if isinstance(prompt, Messages) and len(prompt.turns) == 1:
        return str(prompt.turns[0]["content"])
    return str(prompt)


def turn(rules: Rules, number: int, said: str) -> str:
    """A user turn: its number, what is said, and a notice in the last."""
    notice = rules.texts.last if number == rules.rounds - rules.early else ""
    return rules.texts.round.replace("{number}", str(number)) + said + notice


def results(calls: Sequence[Call], outputs: Sequence[str], words: Words) -> str:
    """What the experts said, each in quotes, and how to go on. Quotes inside would end an output: they become '''."""
    told = [
        words.result.replace("{name}", call.name).replace("{output}", output.replace(QUOTES, "'''"))
        for call, output in zip(calls, outputs, strict=True)
    ]
    return "\n\n".join(told) + words.go_on


def consult(
    asker: ask.Asker,
    talks: Sequence[Talk],
    asking: Sequence[int],
    calls: Sequence[Sequence[Call]],
    rules: Rules,
    box: Sandbox | None,
    first: int = 0,
) -> list[str]:
    """What the expert of every call says, in order; empty where the budget ended first. `talks[asking[i]]` made
    `calls[i]`; experts see nothing of them."""
    flat = [(first + i, call) for i, found in zip(asking, calls, strict=True) for call in found]
    prompts = [expert(call, rules) for _, call in flat]
    items = [item for item, _ in flat]
    if rules.verify:
        said = _twice(asker, prompts, items)
    else:
        said = [text or "" for text in asker.ask(prompts, str, "expert", items)]
    return [
        run(text, box) if rules.python and call.name == PYTHON else text
        for (_, call), text in zip(flat, said, strict=True)
    ]


def expert(call: Call, rules: Rules) -> Messages:
    """An expert's conversation: who it is and what it is told."""
    words = rules.texts
    told = (words.persona.replace("{name}", call.name) if rules.named else "") + (
        words.python if rules.python and call.name == PYTHON else ""
    )
    return ask.conversation(words.expert_system, told + call.instruction + (words.steps if rules.steps else ""))


def _twice(asker: ask.Asker, prompts: Sequence[Messages], items: Sequence[int]) -> list[str]:
    """Two answers to each, and where they differ a third: what two say, else the third."""
    draws = [asker.ask(prompts, str, "expert", items, temperature=DRAWN) for _ in range(2)]
    one, two = ([text or "" for text in draw] for draw in draws)
    unlike = [i for i in range(len(prompts)) if texts.key(one[i]) != texts.key(two[i])]
    third = asker.ask([prompts[i] for i in unlike], str, "verifier", [items[i] for i in unlike], temperature=DRAWN)
    said = dict(zip(unlike, third, strict=True))
    return [said.get(i) or text for i, text in enumerate(one)]


def run(text: str, box: Sandbox | None) -> str:
    """An expert's text with the output of its last program before the sentence that asks to run it."""
    before, asked, _ = text.rpartition(RUN)
    programs = _FENCED.findall(before)
    if not asked or not programs or box is None:
        return text
    outcome = box.run(programs[-1])
    said = outcome.stdout.strip() or outcome.stderr.strip()[-OUTPUT:]
    if outcome.late:
        said += f"\n({outcome.failure})"
    told = said.strip()[:OUTPUT] or "(nothing was printed: the program must print its result)"
    return printed(text, told)


def read_calls(reply: str, strict: bool = True) -> list[Call]:
    """The calls of experts in a conductor's reply, in order."""
    if strict:
        return [Call(name, told.strip()) for name, told in _CALL.findall(reply)]
    if not _NAMED.search(reply):
        return []
    pieces = reply.split(QUOTES)
    named = [before.strip().rpartition("\n")[2].strip() for before in pieces[::2]]
    found = zip(named, pieces[1::2], strict=False)
    return [Call(name.removesuffix(":"), told.strip()) for name, told in found if "Expert " in name]


def read_answer(reply: str) -> str | None:
    """The text in quotes after the last mark of a final answer, or the rest where there are no quotes; None without."""
    _, mark, after = reply.rpartition(FINAL)
    if not mark:
        return None
    pieces = after.split(QUOTES)
    return (pieces[1] if len(pieces) > 1 else after).strip()
