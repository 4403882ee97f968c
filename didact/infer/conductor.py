"""A conductor: a model that solves a problem by calling experts, which are fresh conversations with the same model.

In a round the conductor's reply is parsed; every call in it is answered by an expert that sees its own instructions
alone; the outputs become the next user turn. A reply with an answer and no call ends the conversation.

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

MAX_OUTPUT = 4000  # characters of a program's output that are kept
DRAWN = 0.7  # temperature of experts where several answers to a call are drawn
_EXPERT_LINE = re.compile(r"Expert ((?:\w+ ?){1,5}):\n")
_CALL = re.compile(r'^(Expert(?: \w+){1,5}):[ \t]*\n\s*"""(.*?)"""', re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


WORDS = {"full": FULL, "terse": TERSE}


class Call(NamedTuple):
    """An expert's name and its instruction."""

    name: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Protocol of a conductor.

    Args:
        python: run the programs of Expert Python.
        rounds: most replies of the conductor to one question.
        early: announce the last round one round early, so that one more follows it (the official count).
        strict: a call is a line of its own with an expert's name and a quoted block directly after it; without it, once
            any line ends in `Expert ...:`, every quoted block after a line that names an expert is a call.
        named: each expert's prompt names the expert.
        steps: experts are asked to think step by step.
        verify: every call is answered by two experts at temperature 0.7; where they differ, a third decides.
        words: full prompts, or terse ones of questions, calls and results only, for models trained on that form.
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
        """The prompt texts."""
        return WORDS[self.words]


@dataclass
class Talk:
    """The conversation on one question: alternating user and assistant turns, and the answer once there is one."""

    question: str
    turns: list[str] = field(default_factory=list)
    answer: str | None = None
    rounds: int = 0
    experts: list[str] = field(default_factory=list)


def conduct(
    asker: ask.Asker, questions: Sequence[str], rules: Rules, box: Sandbox | None, first: int = 0
) -> list[Talk]:
    """Hold one conversation per question, all a round at a time, until each has an answer or no rounds are left.

    Args:
        asker: asks conductor and experts.
        questions: the problems.
        rules: the protocol.
        box: runs Expert Python's programs; with None they are not run.
        first: index of the first question, for the transcript.
    """
    first_turns = [turn(rules, 1, rules.texts.opening(q, rules.python)) for q in questions]
    talks = [Talk(q, [text]) for q, text in zip(questions, first_turns, strict=True)]
    for number in range(2, rules.rounds + 2):
        pending = [i for i, talk in enumerate(talks) if talk.answer is None]
        if not pending or asker.ended:
            break
        conversations = [ask.conversation(rules.texts.system, *talks[i].turns) for i in pending]
        replies = asker.ask(conversations, str, "conductor", [first + i for i in pending])
        calls: list[list[Call]] = []
        for i, reply in zip(pending, replies, strict=True):
            reply_calls = read_calls(reply, rules.strict) if reply is not None else []
            calls.append(reply_calls)
            if reply is not None:
                talks[i].rounds += 1
                talks[i].turns.append(reply)
                talks[i].experts += [call.name for call in reply_calls]
                talks[i].answer = None if reply_calls else read_answer(reply)
        outputs = iter(consult(asker, talks, pending, calls, rules, box, first))
        for i, reply, reply_calls in zip(pending, replies, calls, strict=True):
            answers = [next(outputs) for _ in reply_calls]
            if reply is not None and talks[i].answer is None:
                text = results(reply_calls, answers, rules.texts) if reply_calls else rules.texts.lost
                talks[i].turns.append(turn(rules, number, text))
    return talks


def problem(prompt: str) -> str:
    """Return a prompt as text for a conductor: of a conversation with a single turn, that turn's content."""
    if isinstance(prompt, Messages) and len(prompt.turns) == 1:
        return str(prompt.turns[0]["content"])
    return str(prompt)


def turn(rules: Rules, number: int, text: str) -> str:
    """Return a user turn: its number, the text, and a notice where it is the last."""
    notice = rules.texts.last if number == rules.rounds - rules.early else ""
    return rules.texts.round.replace("{number}", str(number)) + text + notice


def results(calls: Sequence[Call], outputs: Sequence[str], words: Words) -> str:
    """Return the experts' outputs in quotes and how to go on. Quotes inside would end an output: they become '''."""
    quoted = [
        words.result.replace("{name}", call.name).replace("{output}", output.replace(QUOTES, "'''"))
        for call, output in zip(calls, outputs, strict=True)
    ]
    return "\n\n".join(quoted) + words.go_on


def consult(
    asker: ask.Asker,
    talks: Sequence[Talk],
    pending: Sequence[int],
    calls: Sequence[Sequence[Call]],
    rules: Rules,
    box: Sandbox | None,
    first: int = 0,
) -> list[str]:
    """Return the expert's answer to every call in order; empty where the budget ended first. `calls[i]` are those of
    `talks[pending[i]]`, which the experts do not see."""
    flat = [(first + i, call) for i, group in zip(pending, calls, strict=True) for call in group]
    prompts = [expert(call, rules) for _, call in flat]
    items = [item for item, _ in flat]
    if rules.verify:
        answers = _verified(asker, prompts, items)
    else:
        answers = [text or "" for text in asker.ask(prompts, str, "expert", items)]
    return [
        run(text, box) if rules.python and call.name == PYTHON else text
        for (_, call), text in zip(flat, answers, strict=True)
    ]


def expert(call: Call, rules: Rules) -> Messages:
    """Return the prompt of an expert: its persona and its instruction."""
    words = rules.texts
    persona = (words.persona.replace("{name}", call.name) if rules.named else "") + (
        words.python if rules.python and call.name == PYTHON else ""
    )
    return ask.conversation(words.expert_system, persona + call.instruction + (words.steps if rules.steps else ""))


def _verified(asker: ask.Asker, prompts: Sequence[Messages], items: Sequence[int]) -> list[str]:
    """Draw two answers to each prompt and, where they differ, return a third instead of the first."""
    draws = [asker.ask(prompts, str, "expert", items, temperature=DRAWN) for _ in range(2)]
    first, second = ([text or "" for text in draw] for draw in draws)
    ties = [i for i in range(len(prompts)) if texts.key(first[i]) != texts.key(second[i])]
    verdicts = asker.ask([prompts[i] for i in ties], str, "verifier", [items[i] for i in ties], temperature=DRAWN)
    decided = dict(zip(ties, verdicts, strict=True))
    return [decided.get(i) or text for i, text in enumerate(first)]


def run(text: str, box: Sandbox | None) -> str:
    """Return an expert's text with the output of the last program before its request to run it."""
    body, request, _ = text.rpartition(RUN)
    programs = _FENCED.findall(body)
    if not request or not programs or box is None:
        return text
    outcome = box.run(programs[-1])
    output = outcome.stdout.strip() or outcome.stderr.strip()[-MAX_OUTPUT:]
    if outcome.late:
        output += f"\n({outcome.failure})"
    excerpt = output.strip()[:MAX_OUTPUT] or "(nothing was printed: the program must print its result)"
    return printed(text, excerpt)


def read_calls(reply: str, strict: bool = True) -> list[Call]:
    """Parse the calls of experts in a conductor's reply, in order."""
    if strict:
        return [Call(name, instruction.strip()) for name, instruction in _CALL.findall(reply)]
    if not _EXPERT_LINE.search(reply):
        return []
    pieces = reply.split(QUOTES)
    last_lines = [before.strip().rpartition("\n")[2].strip() for before in pieces[::2]]
    quoted = zip(last_lines, pieces[1::2], strict=False)
    return [Call(name.removesuffix(":"), instruction.strip()) for name, instruction in quoted if "Expert " in name]


def read_answer(reply: str) -> str | None:
    """Return the quoted text after the last final-answer mark, or all that follows if unquoted; None without a mark."""
    _, mark, after = reply.rpartition(FINAL)
    if not mark:
        return None
    pieces = after.split(QUOTES)
    return (pieces[1] if len(pieces) > 1 else after).strip()
