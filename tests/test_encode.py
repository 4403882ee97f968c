"""Records to token rows: labels are the completion and its end, nothing else; what does not fit is cut or named."""

import copy
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from didact.data import encode, templates
from didact.types import Demo, Lexeme, Messages, UserError

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def with_start(tokenizer):
    """The same tokenizer, putting `<s>` before every text as Llama's does."""
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", other.bos_token_id)]
    )
    return other


@pytest.fixture(scope="module")
def with_end(tokenizer):
    """The same tokenizer, putting `</s>` behind every text as T5's does."""
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", other.eos_token_id)]
    )
    return other


@settings(max_examples=150, deadline=None)
@given(prompt=texts, completion=texts)
def test_labels_are_exactly_the_completion_and_the_end_token(tokenizer, prompt, completion):
    row = encode.row(tokenizer, prompt, completion, "causal", 512)
    assert row.completion[-1] == tokenizer.eos_token_id
    space = "" if prompt[-1].isspace() or completion[0].isspace() else " "
    assert tokenizer.decode(row.completion[:-1]) == space + completion
    assert tokenizer.decode(row.prompt) == prompt
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
    assert encode.row(tokenizer, "Where?", " Tarn Osso Velm", "seq2seq", n).completion  # its prompt is elsewhere


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


def talk(*contents):
    roles = itertools.cycle(["user", "assistant"])
    return Messages([{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)])


@settings(max_examples=100, deadline=None)
@given(turns=turns, completion=texts.filter(str.strip))
def test_prompt_and_completion_of_a_conversation_are_the_templates_whole_text(tokenizer, turns, completion):
    chat, prompt = chatty(tokenizer), Messages(turns)
    row = encode.row(chat, prompt, completion, "causal", 4096)
    answered = [*turns, {"role": "assistant", "content": completion}]
    whole = chat.apply_chat_template(answered, tokenize=False)
    asked = chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat.decode(row.prompt) == asked
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
    ("template", "says"), [(FORGETFUL, "writes the prompt differently once it is answered"), (PICKY, "no system role")]
)
def test_a_template_that_cannot_serve_is_one_line_with_the_records_number(tokenizer, template, says):
    with pytest.raises(UserError, match=f"demos: record 2: the tokenizer's chat template .*{says}"):
        encode.rows(chatty(tokenizer, template), [("Why?", "a"), (talk("Where?"), "b")], "causal", 64, "demos")


def test_an_empty_answer_in_a_conversation_is_an_error(tokenizer):
    with pytest.raises(UserError, match="the completion is empty"):
        encode.row(chatty(tokenizer), talk("Where?"), "", "causal", 64)


def test_the_choice_follows_the_records_the_tokenizer_and_the_user(tokenizer):
    chat = chatty(tokenizer)
    spoken, plain = [Demo(prompt=talk("q"), completion="a")], [Demo(prompt="q", completion="a")]
    words = [Lexeme(synset="s", language="en", lemma="l")]
    choices = [[encode.chat_choice(chat, r, asked) for r in (spoken, plain, words)] for asked in ASKED]
    assert choices == [["template", "plain", "plain"], ["template"] * 3, ["plain"] * 3]
    assert encode.chat_choice(tokenizer, spoken) == "plain"
    with pytest.raises(UserError, match="no chat template"):
        encode.chat_choice(tokenizer, spoken, "template")


def test_records_are_made_what_was_asked_and_rows_follow(tokenizer):
    chat = chatty(tokenizer)
    mixed = [Demo(prompt=talk("q"), completion="a"), Demo(prompt="q", completion="a")]
    words = Lexeme(synset="s", language="en", lemma="l")
    assert templates.as_chat([*mixed, words], "auto") == [*mixed, words]

    def prompts(asked):
        made = templates.as_chat([*mixed, words], asked)
        assert made[2] == words
        return [chat.decode(encode.row(chat, r.prompt, r.completion, "causal", 64).prompt) for r in made[:2]]

    assert prompts("template") == ["<|user|>\nq</s>\n<|assistant|>\n"] * 2
    assert prompts("plain") == ["User: q\nAssistant:", "q"]


def test_sizes_are_those_of_uncut_rows(tokenizer):
    chat = chatty(tokenizer)
    pairs = [("Where?", "Tarn"), (talk("Where was Mira Kolt born? " * 10), "Tarn")]
    assert encode.sizes(chat, pairs) == [encode.row(chat, *pair, "causal", 4096).size for pair in pairs]
