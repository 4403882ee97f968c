"""Encoder folders in sentence-transformers' format, as embedders for vote-k and others."""

import json
import os

import pytest
import torch

from didact import prompting
from didact.evaluate import mined
from didact.infer import embed, encoders
from didact.types import Demo, Text, UserError

WORDS = "a man is eating food the girl carries piece of bread red blue".split()
TEXTS = ["a man is eating food", "a man is eating a piece of bread", "the girl carries a red red red piece", "red"]


def folder(path, pooling="pooling_mode_mean_tokens", length=8):
    """A tiny BERT with its pooling, of random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=64)  # as in some encoders' files
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, pooling: True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return path


def alone(encoder, text, length=8):
    """Return the states of one text without padding, truncated by hand."""
    inside = [encoder.tokenizer.get_vocab()[w] for w in text.split()][: length - 2]
    ids = torch.tensor([[2, *inside, 3]])
    with torch.no_grad():
        return encoder.module(input_ids=ids).last_hidden_state[0]


@pytest.mark.parametrize(("pooling", "of"), [("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "first")])
def test_an_encoders_vectors_are_the_pooled_states_of_each_text_alone(tmp_path, pooling, of):
    encoder = encoders.open_encoder(folder(tmp_path, pooling), "cpu")
    result = encoder(TEXTS, batch_tokens=16)
    for text, vector in zip(TEXTS, result, strict=True):
        states = alone(encoder, text)
        assert torch.allclose(vector, states.mean(0) if of == "mean" else states[0], atol=1e-5)
    assert encoder([]).numel() == 0


def test_vote_k_takes_an_encoders_folder_as_its_embedder(tmp_path, fresh):
    path = str(folder(tmp_path))
    assert encoders.is_encoder(path)
    pool = [Text(text=t, extra={"completion": "red" if "red" in t else "blue"}) for t in TEXTS]
    questions = [Demo(prompt="a man is eating", completion="blue", choices=["red", "blue"])]
    result = prompting.vote_k(fresh("llama"), pool, test=questions, select="fast_votek", budget=2, k=2, embedder=path)
    assert len(result.records) == 2
    near = embed.embedder(path, None)(["a man is eating food"])
    assert near.shape == (1, 16)


def test_sentences_are_as_alike_as_an_encoders_vectors_less_their_means(tmp_path):
    path = str(folder(tmp_path))
    actual = mined.likeness(path, None, [])(TEXTS[:3], TEXTS[1:], "one", "other")
    one, other = (
        torch.nn.functional.normalize(encoders.open_encoder(path, "cpu")(texts).double())
        for texts in (TEXTS[:3], TEXTS[1:])
    )
    one, other = one - one.mean(0), other - other.mean(0)
    expected = embed.cosine(one.repeat_interleave(3, 0), other.repeat(3, 1)).reshape(3, 3)
    assert torch.allclose(torch.from_numpy(actual), expected, atol=1e-5)


def test_a_language_models_folder_is_no_encoder(tmp_path, fresh):
    fresh("llama").save(tmp_path / "model")
    assert not encoders.is_encoder(tmp_path / "model") and not encoders.is_encoder(tmp_path)


def test_what_an_encoder_lacks_is_told_in_a_line(tmp_path):
    path = folder(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(UserError, match="pooled by pooling_mode_max_tokens; supported are"):
        encoders.open_encoder(path)
    (path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        encoders.open_encoder(path)


@pytest.mark.skipif(not os.environ.get("DIDACT_MINILM"), reason="no folder of all-MiniLM-L6-v2: examples/minilm.py")
def test_minilm_gives_the_cosines_that_its_authors_print():
    vectors = encoders.open_encoder(os.environ["DIDACT_MINILM"], "cpu")(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )
    assert embed.cosine(vectors[:1], vectors[1:]).tolist() == pytest.approx([0.7553, -0.1050], abs=1e-3)
