"""Prompts of a meta-prompting conductor, of its experts and of the baselines, in our own words.

The protocol is that of Suzgun & Kalai 2024: an expert is called by a line `Expert Name:` and instructions in triple
quotes, the answer is in triple quotes after `>> FINAL ANSWER:`, and code is run if its author asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

QUOTES = '"""'
FINAL = ">> FINAL ANSWER:"
RUN = "Please run this code!"
PYTHON = "Expert Python"
FORMAT = f"Give the answer in this form, with nothing after it:\n{FINAL}\n{QUOTES}\n[the answer]\n{QUOTES}"
PROGRAM = f"```python\n{{code}}\n```\n{RUN}"
STEPS = "Let's think step by step."

_INSTRUCTION = f"""You are Meta-Expert: you solve problems by directing experts, each a specialist you may invent for \
the purpose (a mathematician, an editor, a chess player, ...).{{python}}

To consult one, write a line with its name and then everything it needs to know between triple quotes:

Expert Mathematician:
{QUOTES}
You know modular arithmetic well. Find the remainder of 7 to the power 22 when divided by 10, and show your work.
{QUOTES}

An expert sees the text between the quotes and nothing else: not the problem, not this conversation, not what another \
expert said. It remembers nothing from one call to the next. So state its task completely and without ambiguity, with \
every number and word it needs; you may say who it is to be.

Break the problem into parts and consult one expert at a time. When two results do not agree, or you find a mistake, \
give both to a new expert and ask which is right and why. Before you answer, have the result checked against all that \
the problem demands, best by two experts who do not know of each other. There are at most 15 rounds, so do not ask \
the same thing again.

When you are sure, answer in this form, with nothing after it:
{FINAL}
{QUOTES}
[the answer]
{QUOTES}
Where the problem offers choices, the answer is one of them.

The problem:
"""
_WITH_PYTHON = f" One of them, {PYTHON}, writes and runs Python programs for you; describe to it what to compute."


@dataclass(frozen=True)
class Words:
    """The texts of a conversation with a conductor; `{...}` are filled in.

    `round` opens a turn (`{number}`), `last` is added to the last one; `result` is an expert's output with `{name}` and
    `{output}`, and `go_on` follows all of them; `lost` replies to text that is neither a call nor an answer.
    """

    system: str
    instruction: str
    with_python: str
    round: str
    last: str
    result: str
    go_on: str
    lost: str
    expert_system: str
    persona: str
    python: str
    standard: str
    steps: str

    def opening(self, question: str, python: bool) -> str:
        """The conductor's first prompt for a problem."""
        return self.instruction.replace("{python}", self.with_python if python else "") + question


FULL = Words(
    system="You are an expert at directing others. Solve the problem, and give the answer in the form you are told.",
    instruction=_INSTRUCTION,
    with_python=_WITH_PYTHON,
    round="ROUND {number}:\n\n",
    last="\n\nThis is the last round: give your answer now, in the form you were told.",
    result=f"{{name}}'s output:\n{QUOTES}\n{{output}}\n{QUOTES}",
    go_on=(
        "\n\nFrom this, decide what comes next. Check it against everything the problem demands; where you doubt it, "
        f"have another expert review it. When it is verified, answer with {FINAL} and the answer in triple quotes."
    ),
    lost=(
        f"I found neither a call of an expert nor an answer in this. Call one by its name and instructions in triple "
        f"quotes, or answer with {FINAL} and the answer in triple quotes."
    ),
    expert_system="You are an expert who is given one task. Do it with care and show what your result rests on.",
    persona="You are {name}.\n\n",
    python=(
        "You write Python. Write one program in a fenced block that does what is asked below with the standard library "
        "alone (no files, no network) and prints the result with print(). If it is to be run, end with the sentence "
        f"'{RUN}', and what it prints is added to your answer.\n\n"
    ),
    standard="{question}\n\n" + FORMAT,
    steps=f"\n\n{STEPS}",
)
TERSE = Words(
    system="", instruction="{python}", with_python="with python ", round="", last="", result="{output}", go_on="",
    lost="again", expert_system="", persona="", python="python ", standard="{question} answer", steps=" in steps",
)  # fmt: skip
"""For models taught the protocol, which need no instruction: questions and results alone."""


def called(name: str, instruction: str) -> str:
    """Format a call of an expert."""
    return f"{name}:\n{QUOTES}\n{instruction}\n{QUOTES}"


def answered(answer: str) -> str:
    """Format a final answer."""
    return f"{FINAL}\n{QUOTES}\n{answer}\n{QUOTES}"


def printed(text: str, output: str) -> str:
    """An expert's text with the output of its program."""
    return f"{text}\n\nOutput of the program:\n{output}"


STATIC = (
    "You are an expert of long standing in the field this question belongs to. You know its methods and its usual "
    "mistakes, and you answer precisely.\n\n"
)
DYNAMIC = """For each task, describe in a few sentences the expert who would do it best: what they know, how they work.

Task: Is the following sentence grammatical? "The key to the cabinets are lost."
Expert: You are a grammarian who has edited English prose for decades. You find the subject of a clause whatever \
stands between it and the verb, and you say whether they agree before you judge.

Task: How many grams of salt are in 2.5 litres of a 0.9 % solution?
Expert: You are a laboratory chemist who prepares solutions every day. You write down the units of every quantity, \
convert them first, and check the size of the result.

Task: Write a two-line rhyme for a child's birthday.
Expert: You are a children's poet. You choose simple words, keep one metre, and read every line aloud until it sings.

Task: {question}
Expert:"""
PERSONAS = f"""Several people work on a task in one conversation that you write: begin by naming those whose knowledge \
it needs, always an AI assistant among them. The assistant proposes, the others criticise in turn, the assistant \
improves, until all agree. Then give the answer. Two examples:

Task: Use the numbers 1, 1, 6 and 12 once each, and + - * /, to make 24.
Participants: AI assistant; mathematician
Mathematician: 12 is half of 24, so let us see whether 1, 1 and 6 can make 12 or 2.
AI assistant: 1 + 1 is 2, and 12 * 2 is 24, but that leaves out the 6.
Mathematician: Then use 6 * 2 = 12 and add the other 12: 6 * (1 + 1) + 12.
AI assistant: 6 * 2 is 12, and 12 + 12 is 24; 1, 1, 6 and 12 each stand there once. Agreed.
{FINAL}
{QUOTES}
6 * (1 + 1) + 12
{QUOTES}

Task: Write a poem of three lines whose first letters spell OAK. The second line names a bird.
Participants: AI assistant; poet; child who likes birds
AI assistant: Over the meadow it stands / A finch in its leaves / Keeping the wind from my window.
Poet: The last line could be about the tree's age; it is long, too.
Child: A finch is a bird. I can see it!
AI assistant: Then the last line is: Kept by a hundred years.
Poet: O, A, K are the first letters, and the finch is there. Agreed.
{FINAL}
{QUOTES}
Over the meadow it stands
A finch in its leaves
Kept by a hundred years
{QUOTES}

Task: {{question}}
"""
