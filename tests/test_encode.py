"""Records to token rows: only the completion and its end are labels; records that do not fit are cut or reported."""

import copy
import dataclasses
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shapes import TOKENIZERS, tiny, tokenizer_of
from tokenizers.processors import TemplateProcessing

from didact.data import chat, encode, read, templates
from didact.infer import generate
from didact.models.model import Model
from didact.types import Demo, Lexeme, Messages, Reply, UserError, as_row
from didact.verbs.usable import usable

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def with_start(tokenizer):
    """The same tokenizer with `<s>` before every text, like Llama's."""
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", other.bos_token_id)]
    )
    return other


@pytest.fixture(scope="module")
def with_end(tokenizer):
    """The same tokenizer with `</s>` after every text, like T5's."""
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", other.eos_token_id)]
    )
    return other


@given(prompt=texts, completion=texts)
@example(prompt="Q: ", completion="Tarn")
@example(prompt=" ", completion="0")
def test_labels_are_exactly_the_completion_and_the_end_token(tokenizer, prompt, completion):
    row = encode.row(tokenizer, prompt, completion, "causal", 512)
    assert row.completion[-1] == tokenizer.eos_token_id
    space = "" if prompt[-1].isspace() or completion[0].isspace() else " "
    read = prompt.rstrip(encode.BLANKS)
    answer = prompt[len(read) :] + space + completion
    if read:
        assert tokenizer.decode(row.prompt) == read
        assert tokenizer.decode(row.completion[:-1]) == answer
    else:  # without a start token the first piece has no context: it is input, not a label
        assert len(row.prompt) == 1
        assert tokenizer.decode(row.prompt + row.completion[:-1]) == answer
    assert tokenizer.eos_token_id not in row.prompt


@pytest.mark.parametrize(
    ("prompt", "completion", "kind", "joined"),
    [
        ("Q?", "A", "causal", " A"),
        ("Q? ", "A", "causal", "A"),
        ("Q?\n", "A", "causal", "A"),
        ("Q?", " A", "causal", " A"),
        ("", "A", "causal", "A"),
        ("Q?", "A", "seq2seq", "A"),
    ],
)
def test_prompt_and_completion_are_joined_by_one_space_unless_there_is_one(prompt, completion, kind, joined):
    assert encode.join(prompt, completion, kind) == joined


def test_the_end_token_can_be_left_out(tokenizer):
    ended, open_ = (encode.row(tokenizer, "Where?", "Tarn", "causal", 64, end=end) for end in (True, False))
    assert ended.completion == (*open_.completion, tokenizer.eos_token_id) and ended.prompt == open_.prompt


def test_long_prompts_lose_tokens_on_the_left(tokenizer):
    prompt = "Where was Mira Kolt born? " * 10
    whole = encode.row(tokenizer, prompt, "Tarn", "causal", 512)
    cut = encode.row(tokenizer, prompt, "Tarn", "causal", 24)
    assert cut.completion == whole.completion
    assert cut.size == 24 and cut.prompt == whole.prompt[-len(cut.prompt) :]


def test_a_start_token_survives_the_cut(with_start):
    prompt = "Where was Mira Kolt born? " * 10
    whole = encode.row(with_start, prompt, "Tarn", "causal", 512)
    cut = encode.row(with_start, prompt, "Tarn", "causal", 24)
    assert whole.prompt[0] == cut.prompt[0] == with_start.bos_token_id and cut.size == 24
    assert cut.prompt[1:] == whole.prompt[-len(cut.prompt) + 1 :]
    assert with_start.bos_token_id not in cut.completion


def test_a_start_token_alone_stands_for_an_empty_prompt(with_start):
    row = encode.row(with_start, "", "Tarn", "causal", 64)
    assert row.prompt == (with_start.bos_token_id,) and with_start.decode(row.completion[:-1]) == "Tarn"


def test_without_a_start_token_the_first_token_of_a_text_is_read_and_the_rest_are_labels(tokenizer):
    row = encode.row(tokenizer, "", "Songs of Tarn", "causal", 64)
    assert tokenizer.decode(row.prompt + row.completion[:-1]) == "Songs of Tarn" and len(row.prompt) == 1


def test_an_end_the_tokenizer_adds_stays_for_an_encoder_and_goes_for_a_decoder(with_end):
    end = with_end.eos_token_id
    assert encode.row(with_end, "Where?", "Tarn", "seq2seq", 64).prompt[-1] == end
    row = encode.row(with_end, "Where?", "Tarn", "causal", 64)
    assert end not in row.prompt and row.completion.count(end) == 1


def test_a_completion_longer_than_the_context_is_an_error_that_names_the_record(tokenizer):
    pairs = [("Where?", "Tarn"), ("Why?", "Songs of Tarn " * 30)]
    with pytest.raises(UserError, match=r"^forget: record 2: the completion has \d+ tokens and the model's context 32"):
        encode.rows(tokenizer, pairs, "causal", 32, "forget")


def test_a_completion_that_fills_the_context_leaves_no_room_for_a_prompt(tokenizer):
    n = len(encode.row(tokenizer, "Where?", "Tarn Osso Velm", "causal", 64).completion)
    with pytest.raises(UserError, match="shorten it"):
        encode.row(tokenizer, "Where?", "Tarn Osso Velm", "causal", n)
    assert len(encode.row(tokenizer, "Where?", "Tarn Osso Velm", "causal", n + 1).prompt) == 1
    assert encode.row(tokenizer, "Where?", " Tarn Osso Velm", "seq2seq", n).completion  # its prompt is in another row


def test_an_empty_completion_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"demos: record 1: the completion is empty"):
        encode.rows(tokenizer, [("Where?", "")], "causal", 64, "demos")


def test_no_records_at_all_is_an_error(tokenizer):
    with pytest.raises(UserError, match="demos: no records"):
        encode.rows(tokenizer, [], "causal", 64, "demos")


def test_windows_cover_every_token_of_every_text_once(tokenizer):
    texts = ["Songs of Tarn", "Maps of Osso. " * 9, "Mira Kolt"]
    stream = [t for text in texts for t in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    windows = encode.windows(tokenizer, texts, 16)
    assert [t for w in windows for t in w.completion] == stream
    assert all(len(w.completion) == 16 for w in windows[:-1]) and all(len(w.prompt) == 1 for w in windows)


def test_truncated_counts_the_records_that_lose_tokens(tokenizer):
    pairs = [("Where?", "Tarn"), ("Where was Mira Kolt born? " * 10, "Tarn")]
    assert [encode.truncated(tokenizer, pairs, c) for c in (512, 24)] == [0, 1]


# --- one text, one tokenisation -----------------------------------------------------------------

WORDS = st.text(st.sampled_from("Tarn Mira 25\n?:"), min_size=1, max_size=16)


def harness(tokenizer, context, continuation):
    """The rule of lm-evaluation-harness 0.4.13 for decoders, reimplemented."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    whole, alone = (list(tokenizer(text)["input_ids"]) for text in (context + continuation, context))
    return alone, whole[len(alone) :]


@pytest.mark.parametrize("kind", [k for k in TOKENIZERS if k != "wordpiece"])  # the harness counts its closing token
@pytest.mark.parametrize("prompt", ["Where was Mira born?", "Question: what is 2 + 3?\nAnswer:", "Mira", "Answer: "])
def test_tokens_are_those_that_the_evaluation_harness_scores(kind, prompt):
    tokenizer = tokenizer_of(kind)
    for completion in ("Tarn", "5", " Velm", "In Tarn."):
        text = prompt + encode.join(prompt, completion, "causal")
        row = encode.row(tokenizer, prompt, completion, "causal", 256, end=False)
        assert (list(row.prompt), list(row.completion)) == harness(tokenizer, prompt, text[len(prompt) :])


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(prompt=WORDS, completion=WORDS)
@example(prompt="Answer:\n\n", completion="Tarn")
@example(prompt="Tarn", completion="\nMira")
def test_the_tokens_of_a_row_are_those_of_its_text(kind, prompt, completion):
    tokenizer = tokenizer_of(kind)
    text = prompt + encode.join(prompt, completion, "causal")
    read = tokenizer(text, return_offsets_mapping=True)
    ids = read["input_ids"][: -1 if kind == "wordpiece" else None]  # it appends an end token to every text
    try:
        row = encode.row(tokenizer, prompt, completion, "causal", 256, end=False)
    except UserError:  # white space alone may be no token at all
        assert not completion.strip()
        return
    assert [*row.prompt, *row.completion] == ids
    border = len(prompt.rstrip(encode.BLANKS))
    offsets = read["offset_mapping"]
    assert all(offsets[i][1] <= border for i in range(len(row.prompt)))
    assert all(offsets[i][1] > border for i in range(len(row.prompt), len(ids)))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("prompt", ["Where was Mira born?", "Answer: ", "Answer:\n", "Answer:\n\n", "", "Mira\n \n"])
def test_what_is_generated_from_is_what_is_trained_on(kind, prompt):
    tokenizer = tokenizer_of(kind)
    row = encode.row(tokenizer, prompt, "born In Tarn", "causal", 256)
    assert tuple(encode.prompt_ids(tokenizer, prompt, "causal")) == row.prompt


def test_a_tokenizer_that_tells_no_characters_is_cut_where_the_tokens_part():
    class Blind:
        """A tokenizer without offsets, like the slow (Python) ones."""

        def __init__(self, inner):
            self.inner = inner

        def __call__(self, text, add_special_tokens=True):
            return self.inner(text, add_special_tokens=add_special_tokens)

        def __getattr__(self, name):
            return False if name == "is_fast" else getattr(self.inner, name)

    for kind in ("bytes", "always", "prepend"):
        seeing = tokenizer_of(kind)
        for prompt in ("Where was Mira born?", "Answer: ", "Answer:\n", ""):
            rows = [encode.row(tokenizer, prompt, "Tarn", "causal", 256) for tokenizer in (seeing, Blind(seeing))]
            assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", ["always", "first", "prepend"])
def test_no_stray_piece_stands_before_any_completion(kind):
    tokenizer = tokenizer_of(kind)
    word = tokenizer.convert_tokens_to_ids(["▁Ta", "rn"])
    line = tokenizer.convert_tokens_to_ids(["Ta", "rn"])
    spoken = chatty(tokenizer, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    steps = [("bad:", "In Velm."), ("good:", "Tarn")]
    chain, _ = encode.chain(tokenizer, "Mira?", steps, "causal", 256)
    answers = {
        "an answer": encode.row(tokenizer, "Where?", "Tarn", "causal", 256, end=False).completion,
        "a choice": encode.parts(tokenizer, "Where? ", "Tarn", "causal", end=False)[1],
        "a yes": encode.continued(tokenizer, "Where?", " Tarn", "causal")[1],
        "a span": encode.located(tokenizer, " Tarn")[0],
        "a chain": chain.completion[-1 - len(word) : -1],
        "a segment": [t for t, s in zip(*(x[0] for x in windows_of(tokenizer)), strict=True) if s == 2],
    }
    assert {name: list(ids) for name, ids in answers.items()} == {key: list(word) for key in answers}
    first_tokens = {
        "an answer": encode.row(tokenizer, "Answer:\n", "Tarn", "causal", 256, end=False).completion,
        "a reply": encode.row(spoken, talk("Mira"), "Tarn", "causal", 256, end=False).completion[:2],
        "a span": encode.located(tokenizer, "Tarn")[0],
    }
    assert {name: list(ids) for name, ids in first_tokens.items()} == {key: list(line) for key in first_tokens}


def windows_of(tokenizer):
    rows, scores = encode.scored_windows(tokenizer, [[("In Velm", 1.0), (" Tarn", 2.0), (" born", 3.0)]], 99)
    return [row.completion for row in rows], scores


def test_a_text_that_begins_with_the_start_token_gets_no_second():
    tokenizer = tokenizer_of("prepend")
    row = encode.row(tokenizer, "<s>Where?", "Tarn", "causal", 256)
    assert row.prompt.count(tokenizer.bos_token_id) == 1 and row.prompt[0] == tokenizer.bos_token_id


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["bytes", "always", "first", "prepend", "unigram"])
def test_scores_are_those_of_the_evaluation_harness(kind):
    pytest.importorskip("lm_eval", reason="make bench installs it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from didact.infer import lm
    from didact.models.model import Model

    tokenizer = tokenizer_of(kind)
    module = tiny("llama").module
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    prompts = ["Where was Mira born?", "Question: what is 2 + 3?\nAnswer:", "Answer: ", "In  ", "songs of"]
    pairs = [(p, c) for p in prompts for c in ("Tarn", "5", " Velm", "the maps")]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(p, encode.join(p, c, "causal")), idx=i)
        for i, (p, c) in enumerate(pairs)
    ]
    theirs = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    ours = lm.of(Model(module, tokenizer, "causal")).score(pairs)
    assert [o.logp for o in ours] == pytest.approx([logp for logp, _ in theirs], abs=1e-4)


# --- conversations ---------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ENDLESS = CHATML.replace("{{ eos_token }}", "")
FORGETFUL = "{% for m in messages %}{{ loop.index }} of {{ messages | length }}: {{ m['content'] }}\n{% endfor %}"
ASKED = ("auto", "template", "plain")
PICKY = "{{ raise_exception('no system role here') }}"
turns = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user"]), texts),
    min_size=1,
    max_size=3,
)


def chatty(tokenizer, template=CHATML):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def speaker(fresh, tokenizer):
    return dataclasses.replace(fresh("llama", context=4096), processor=tokenizer)


def talk(*contents):
    roles = itertools.cycle(["user", "assistant"])
    return Messages([{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)])


@given(turns=turns, completion=texts.filter(str.strip))
@example(turns=[{"role": "user", "content": "0"}], completion="<")  # occurs in the end token too
def test_prompt_and_completion_of_a_conversation_are_the_templates_whole_text(tokenizer, turns, completion):
    chat, prompt = chatty(tokenizer), Messages(turns)
    row = encode.row(chat, prompt, completion, "causal", 4096)
    answered = [*turns, {"role": "assistant", "content": completion}]
    whole = chat.apply_chat_template(answered, tokenize=False)
    prompt_text = chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat.decode(row.prompt) == prompt_text
    assert chat.decode(row.prompt + row.completion) + "\n" == whole
    assert row.completion[-1] == chat.eos_token_id and chat.decode(row.completion[:-1]) == completion.strip()


def test_the_end_token_is_added_only_where_the_template_gives_none(tokenizer):
    for template in (CHATML, ENDLESS):
        row = encode.row(chatty(tokenizer, template), talk("Where?"), "Tarn", "causal", 256)
        assert row.completion.count(tokenizer.eos_token_id) == 1 and row.completion[-1] == tokenizer.eos_token_id
        open_ = encode.row(chatty(tokenizer, template), talk("Where?"), "Tarn", "causal", 256, end=False)
        assert open_.completion == row.completion[:-1]


def test_a_conversation_is_plain_lines_where_there_is_no_template(tokenizer):
    prompt = talk("Where?", "Tarn", "And who?")
    assert prompt == "User: Where?\nAssistant: Tarn\nUser: And who?\nAssistant:"
    assert encode.row(tokenizer, prompt, "Mira", "causal", 256) == encode.row(
        tokenizer, str(prompt), "Mira", "causal", 256
    )
    chat = chatty(tokenizer)
    assert encode.row(chat, str(prompt), "Mira", "causal", 256) == encode.row(tokenizer, prompt, "Mira", "causal", 256)


def test_what_is_generated_from_is_what_was_learned_from(tokenizer):
    chat, prompt = chatty(tokenizer), talk("Where?", "Tarn", "And who?")
    row = encode.row(chat, prompt, "Mira", "causal", 256)
    assert tuple(encode.prompt_ids(chat, prompt, "causal")) == row.prompt
    assert chat.eos_token_id in row.prompt  # the end of the first answer


def test_a_start_token_of_the_template_survives_the_cut_and_is_not_doubled(with_start):
    chat = chatty(with_start, "{{ bos_token }}" + CHATML)
    whole = encode.row(chat, talk("Where was Mira Kolt born? " * 10), "Tarn", "causal", 512)
    cut = encode.row(chat, talk("Where was Mira Kolt born? " * 10), "Tarn", "causal", 32)
    assert whole.prompt.count(chat.bos_token_id) == cut.prompt.count(chat.bos_token_id) == 1
    assert cut.prompt[0] == chat.bos_token_id and cut.size == 32 and cut.completion == whole.completion


@pytest.mark.parametrize(
    ("template", "reason"),
    [(FORGETFUL, "writes the prompt differently once it is answered"), (PICKY, "no system role")],
)
def test_a_template_that_cannot_serve_is_one_line_with_the_records_number(tokenizer, template, reason):
    with pytest.raises(UserError, match=f"demos: record 2: the tokenizer's chat template .*{reason}"):
        encode.rows(chatty(tokenizer, template), [("Why?", "a"), (talk("Where?"), "b")], "causal", 64, "demos")


TOOLED = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEAF = CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}")
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Tarn"}}}]
OTHER = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Osso"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
ASKS = {"role": "user", "content": "Weather?"}


def called(calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": calls}


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"messages": [ASKS, called(CALL, "A moment.")]}, "tool_calls of turn 2"),
        ({"messages": [ASKS, called(CALL)]}, "tool_calls of turn 2"),
        ({"messages": [ASKS, called(CALL), {"role": "tool", "content": "rain"},
                       {"role": "assistant", "content": "Rain."}]}, "tool_calls of turn 2"),
        ({"messages": [ASKS, {"role": "assistant", "content": "Rain."}], "tools": TOOLS}, "tools"),
        ({"messages": [{"role": "system", "content": "Be weatherwise."}, ASKS,
                       {"role": "assistant", "content": "Rain."}]}, "the system message, turn 1"),
    ],
)  # fmt: skip
def test_tools_and_their_calls_are_rendered_or_refused_by_line(tokenizer, fresh, tmp_path, row, lost):
    (tmp_path / "talk.jsonl").write_text(json.dumps(row) + "\n")
    records = read.read(tmp_path / "talk.jsonl")
    assert read.from_row(as_row(records[0]), Demo).completion == records[0].completion  # after saving and reloading
    with_tools, without_tools = chatty(tokenizer, TOOLED), chatty(tokenizer, DEAF)
    encoded = encode.row(with_tools, records[0].prompt, records[0].completion, "causal", 4096)
    text = with_tools.decode(encoded.prompt + encoded.completion)
    turns = [t | {"content": t["content"] or ""} for t in row["messages"]]
    assert text + "\n" == with_tools.apply_chat_template(turns, tools=row.get("tools"), tokenize=False)
    for learnt in (True, False):
        with pytest.raises(UserError, match=rf"talk\.jsonl:1: .*the tokenizer's chat template does not show {lost};"):
            usable(records, records, speaker(fresh, without_tools), False, learnt)
    with pytest.raises(UserError, match=f"record 1: .* does not show {lost}"):
        encode.rows(without_tools, [(records[0].prompt, records[0].completion)], "causal", 4096)
    plain = templates.as_chat(records, "plain")[0]
    assert "weather" in plain.prompt + plain.completion


def test_sides_that_differ_in_their_calls_only_are_different_rows_or_an_error(tokenizer, fresh, tmp_path):
    row = {"prompt": [ASKS], "chosen": [called(CALL, "")], "rejected": [called(OTHER, "")]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    pairs = read.read(tmp_path / "pairs.jsonl", "preference")
    templated = chatty(tokenizer, TOOLED)
    sides = [
        encode.row(templated, pairs[0].prompt, side, "causal", 4096) for side in (pairs[0].chosen, pairs[0].rejected)
    ]
    assert usable(pairs, pairs, speaker(fresh, templated), False) and sides[0].completion != sides[1].completion
    alike = chatty(tokenizer, TOOLED.replace("m.tool_calls | tojson", "m.tool_calls[0].function.name"))
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: .* renders both sides alike"):
        usable(pairs, pairs, speaker(fresh, alike), False)


def test_lines_whose_calls_a_template_leaves_out_can_be_skipped(tokenizer, fresh, tmp_path):
    rows = [{"messages": [ASKS, called(CALL)]}, {"messages": [ASKS, {"role": "assistant", "content": "Rain."}]}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for learnt in (True, False):
        records = read.read(tmp_path / "talk.jsonl")
        usable_records = usable(records, records, speaker(fresh, chatty(tokenizer)), True, learnt)
        assert [r.completion for r in usable_records] == ["Rain."] and records.dropped == 1


AS_TEXT = TOOLED.replace("m.tool_calls | tojson", "m.tool_calls[0].function.name + m.tool_calls[0].function.arguments")
AS_IT_COMES = TOOLED.replace("m.tool_calls | tojson", "m.tool_calls[0].function.arguments")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TOOLED, '"arguments": {"city": "Tarn"}}'),
        (AS_TEXT, 'weather{"city": "Tarn"}'),
        (AS_IT_COMES, '{"city": "Tarn"}'),
    ],
)
def test_arguments_are_written_as_json_once_whether_a_file_has_them_as_text_or_not(tokenizer, template, expected):
    """APIs send arguments as a JSON text, which most templates would quote again; some templates require it."""
    as_text = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Tarn"}'}}]
    old = {"role": "assistant", "content": None, "function_call": as_text[0]["function"]}
    output = {"role": "function", "name": "weather", "content": "rain"}
    templated, rows = chatty(tokenizer, template), []
    for turn in (called(CALL), called(as_text), old):
        records = [read.from_row({"messages": [ASKS, turn]}, Demo), read.from_row({"messages": [
            ASKS, turn, output, {"role": "assistant", "content": "Rain."}]}, Demo)]  # fmt: skip
        rows.append([encode.row(templated, r.prompt, r.completion, "causal", 4096) for r in records])
    assert rows[0] == rows[1] == rows[2]
    assert templated.decode(rows[0][0].completion).count(expected) == 1
    assert expected in templated.decode(rows[0][1].prompt) and "<|tool|>" in templated.decode(rows[0][1].prompt)


def test_tools_of_a_prompt_in_text_and_functions_of_the_first_form_are_tools():
    offered = Messages([ASKS], TOOLS).tools
    for extra in ({"tools": TOOLS}, {"tools": json.dumps(TOOLS)}, {"functions": [TOOLS[0]["function"]]}):
        for prompt in ("Weather?", [ASKS]):
            record = read.from_row({"prompt": prompt, "completion": "Rain."} | extra, Demo)
            assert record.prompt.tools == offered and record.prompt.turns == (ASKS,)
    demo = read.from_row({"prompt": "Mend it", "completion": "so", "tools": "hammer"}, Demo)
    assert type(demo.prompt) is str and demo.extra["tools"] == "hammer"


THINKS = CHATML.replace(
    "{{ m['content'] | trim }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}",
)
STRIPS = CHATML.replace("m['content'] | trim", "m['content'].split('</think>')[-1]")
ONE_OF_THEM = TOOLED.replace("{{ m.content }}{% if", "{% if not m.tool_calls %}{{ m.content }}{% endif %}{% if")


def test_thought_is_rendered_or_refused_by_line(tokenizer, fresh, tmp_path):
    answer = {"role": "assistant", "content": "Rain.", "reasoning_content": "Clouds."}
    row = {"messages": [ASKS, answer]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(row) + "\n")
    records = read.read(tmp_path / "talk.jsonl")
    templated = chatty(tokenizer, THINKS)
    encoded = encode.row(templated, records[0].prompt, records[0].completion, "causal", 4096)
    assert templated.decode(encoded.completion) == "<think>Clouds.</think>Rain.</s>"
    assert encode.row(tokenizer, records[0].prompt, records[0].completion, "causal", 4096).completion == encode.row(
        tokenizer, str(records[0].prompt), "<think>\nClouds.\n</think>\n\nRain.", "causal", 4096
    ).completion  # fmt: skip
    with pytest.raises(UserError, match=r"talk\.jsonl:1: .* does not show the reasoning of turn 2;"):
        usable(records, records, speaker(fresh, chatty(tokenizer)), False)
    records[:] = [Demo(prompt=talk("Weather?"), completion="<think>Clouds.</think>Rain.")]
    with pytest.raises(UserError, match=r"talk\.jsonl:1: .* leaves out a part of the answer"):
        usable(records, records, speaker(fresh, chatty(tokenizer, STRIPS)), False)
    assert usable(records, records, speaker(fresh, chatty(tokenizer)), False)
    with pytest.raises(UserError, match="does not show the text of turn 2 beside its calls"):
        chat.rendered(chatty(tokenizer, ONE_OF_THEM), Messages([ASKS]), Reply(called(CALL, "A moment.")))


TAGGED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}Thus:\n{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_what_a_template_marks_as_said_by_the_assistant_is_what_is_learnt(tokenizer):
    marked = chatty(tokenizer, TAGGED)
    several = chatty(tokenizer, {"default": TAGGED, "tool_use": CHATML})
    row = encode.row(marked, talk("Where?", "Tarn", "And who?"), "Mira", "causal", 256)
    assert marked.decode(row.completion) == "Mira</s>" and marked.decode(row.prompt).endswith("<|assistant|>\nThus:\n")
    assert encode.row(several, talk("Where?", "Tarn", "And who?"), "Mira", "causal", 256) == row
    with chat.dated("2020-02-02"):
        several.chat_template = {"default": "{{ strftime_now('%Y') }}" + TAGGED, "tool_use": CHATML}
        assert several.decode(encode.row(several, talk("Where?"), "Mira", "causal", 256).prompt).startswith("2020")
    turns = [*talk("Where?", "Tarn", "And who?", "Mira").turns]
    theirs = marked.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [i for i, flag in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if flag]
    assert tuple(learnt[-len(row.completion) :]) == row.completion
    assert list(row.prompt + row.completion) == theirs["input_ids"][: len(row.prompt + row.completion)]


def test_every_assistant_turn_is_a_record_where_all_are_to_be_learnt(tokenizer, tmp_path):
    messages = [*talk("Where?", "Tarn", "And who?", "Mira", "Bye").turns]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    last, every = (read.read(tmp_path / "talk.jsonl", turns=turns) for turns in ("last", "all"))
    assert [r.completion for r in last] == ["Mira"] and [r.completion for r in every] == ["Tarn", "Mira"]
    chat = chatty(tokenizer)
    rows = [encode.row(chat, r.prompt, r.completion, "causal", 4096) for r in every]
    assert chat.decode(rows[1].prompt).startswith(chat.decode(rows[0].prompt + rows[0].completion))
    assert last[0] == every[1] and every.places == [f"{tmp_path}/talk.jsonl:1"] * 2


def test_an_empty_answer_in_a_conversation_is_an_error(tokenizer):
    with pytest.raises(UserError, match="the completion is empty"):
        encode.row(chatty(tokenizer), talk("Where?"), "", "causal", 64)


def test_the_choice_follows_the_records_the_tokenizer_and_the_user(tokenizer):
    speaks = chatty(tokenizer)
    spoken, plain = [Demo(prompt=talk("q"), completion="a")], [Demo(prompt="q", completion="a")]
    lexemes = [Lexeme(synset="s", language="en", lemma="l")]
    choices = [[chat.chat_choice(speaks, r, choice) for r in (spoken, plain, lexemes)] for choice in ASKED]
    assert choices == [["template", "plain", "plain"], ["template"] * 3, ["plain"] * 3]
    assert chat.chat_choice(tokenizer, spoken) == "plain"
    with pytest.raises(UserError, match="no chat template"):
        chat.chat_choice(tokenizer, spoken, "template")


def test_records_are_made_what_was_asked_and_rows_follow(tokenizer):
    chat = chatty(tokenizer)
    mixed = [Demo(prompt=talk("q"), completion="a"), Demo(prompt="q", completion="a")]
    lexeme = Lexeme(synset="s", language="en", lemma="l")
    assert templates.as_chat([*mixed, lexeme], "auto") == [*mixed, lexeme]

    def prompts(choice):
        converted = templates.as_chat([*mixed, lexeme], choice)
        assert converted[2] == lexeme
        return [chat.decode(encode.row(chat, r.prompt, r.completion, "causal", 64).prompt) for r in converted[:2]]

    assert prompts("template") == ["<|user|>\nq</s>\n<|assistant|>\n"] * 2
    assert prompts("plain") == ["User: q\nAssistant:", "q"]


def test_sizes_are_those_of_uncut_rows(tokenizer):
    chat = chatty(tokenizer)
    pairs = [("Where?", "Tarn"), (talk("Where was Mira Kolt born? " * 10), "Tarn")]
    assert encode.sizes(chat, pairs) == [encode.row(chat, *pair, "causal", 4096).size for pair in pairs]


def test_a_prompt_is_cut_where_it_is_said_and_no_longer_than_is_said(fresh):
    model = fresh("llama", context=64)
    other = Model(model.module, copy.deepcopy(model.processor))
    pieces = [f"w{i} " for i in range(60)]
    whole = encode.parts(other.tokenizer, "".join(pieces), "x", "causal", True)[0]
    for side in ("left", "right"):
        encode.limit(other.tokenizer, 20, side)
        row = encode.row(other.tokenizer, "".join(pieces), "x", "causal", other.context)
        assert row.size == other.context == 20
        bos = [whole[0]] if whole[0] == other.tokenizer.bos_token_id else []
        rest = len(row.prompt) - len(bos)
        tail = whole[len(bos) :]
        assert list(row.prompt) == bos + (tail[-rest:] if side == "left" else tail[:rest])
        assert generate.generate(other, ["".join(pieces)], max_new_tokens=2)
    encode.limit(other.tokenizer, None, "left")
    assert other.context == 64 == model.context
