"""`output_attentions=True`: the weights of every layer are transformers'."""

import numpy as np
import pytest

import glassformer as gf
from glassformer import models
from tests.parity.hub import as_ours, as_torch, build

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 3}
SEQ2SEQ = {
    "vocab_size": 40,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 24,
}
T5 = {"vocab_size": 40, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_layers": 2, "num_heads": 3}

CASES = {
    "BertForPreTraining": transformers.BertConfig(**SMALL, **LAYERS),
    "RobertaForMaskedLM": transformers.RobertaConfig(**SMALL, **LAYERS),
    "DistilBertForSequenceClassification": transformers.DistilBertConfig(
        vocab_size=40, dim=12, hidden_dim=20, n_layers=2, n_heads=3
    ),
    "AlbertForTokenClassification": transformers.AlbertConfig(
        **SMALL, **LAYERS, embedding_size=8, num_hidden_groups=1
    ),
    "BertForQuestionAnswering": transformers.BertConfig(**SMALL, **LAYERS),
    "GPT2LMHeadModel": transformers.GPT2Config(vocab_size=40, n_embd=12, n_layer=2, n_head=3),
    "LlamaForCausalLM": transformers.LlamaConfig(
        **SMALL, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2
    ),
    "MistralModel": transformers.MistralConfig(
        **SMALL,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        sliding_window=3,
    ),
    "BartForConditionalGeneration": transformers.BartConfig(**SEQ2SEQ),
    "MarianModel": transformers.MarianConfig(**SEQ2SEQ, pad_token_id=1, decoder_start_token_id=1),
    "T5ForConditionalGeneration": transformers.T5Config(**T5, num_decoder_layers=3),
    "T5EncoderModel": transformers.T5Config(**T5),
    "ViTForImageClassification": transformers.ViTConfig(
        hidden_size=12, intermediate_size=16, image_size=8, patch_size=4, **LAYERS
    ),
}


def inputs_of(name, config):
    """A batch for a model, with padding at the end of its second row."""
    rng = np.random.default_rng(0)
    if name.startswith("ViT"):
        return {"pixel_values": rng.standard_normal((2, 3, 8, 8), dtype=np.float32)}
    mask = np.ones((2, 7), np.int64)
    mask[1, 5:] = 0
    batch = {"input_ids": rng.integers(3, 40, (2, 7)), "attention_mask": mask}
    if config.is_encoder_decoder and name != "T5EncoderModel":
        batch["decoder_input_ids"] = rng.integers(3, 40, (2, 4))
    return batch


@pytest.mark.parametrize("name", CASES)
def test_every_layer_s_weights(name, tmp_path):
    """Of rows that are real; a padded query's are nobody's business."""
    theirs = build(getattr(transformers, name), CASES[name])
    if name.startswith("Marian"):  # whose positions are fixed, and were shaken
        for stack in (theirs.get_encoder(), theirs.get_decoder()):
            stack.embed_positions.weight.data.copy_(stack.embed_positions.create_weight())
    theirs.save_pretrained(tmp_path)
    ours = getattr(models, name).from_pretrained(tmp_path)
    inputs = inputs_of(name, theirs.config)
    with torch.no_grad(), gf.no_grad():
        expected = theirs(**as_torch(inputs), output_attentions=True)
        found = ours(**as_ours(inputs), output_attentions=True)
        plain = ours(**as_ours(inputs))
    fields = [field for field in found.__slots__ if field.endswith("attentions")]
    assert len(fields) == (3 if "decoder_input_ids" in inputs else 1)
    for field in fields:
        assert getattr(plain, field) is None
        got, wanted = getattr(found, field), getattr(expected, field)
        assert len(got) == len(wanted) > 1, field
        for mine, yours in zip(got, wanted, strict=True):
            assert mine.shape == tuple(yours.shape), field
            rows = slice(None) if field == "cross_attentions" else slice(0, 5)
            np.testing.assert_allclose(mine.numpy()[:, :, rows], yours[:, :, rows], atol=1e-5)


def test_with_a_cache_they_cover_all_keys(tmp_path):
    theirs = build(transformers.GPT2LMHeadModel, CASES["GPT2LMHeadModel"])
    theirs.save_pretrained(tmp_path)
    ours = models.GPT2LMHeadModel.from_pretrained(tmp_path)
    from glassformer.generation import KVCache

    ids, cache = gf.tensor([[5, 6, 7, 8]]), KVCache()
    with gf.no_grad():
        ours(ids[:, :3], cache=cache)
        step = ours(ids[:, 3:], cache=cache, output_attentions=True).attentions
        whole = ours(ids, output_attentions=True).attentions
    for one, all_rows in zip(step, whole, strict=True):
        assert one.shape == (1, 3, 1, 4)
        np.testing.assert_allclose(one.numpy(), all_rows.numpy()[:, :, 3:], atol=1e-6)


def test_a_bart_classifier_gives_the_decoder_s(tmp_path):
    config = transformers.BartConfig(**SEQ2SEQ, eos_token_id=2)
    theirs = build(transformers.BartForSequenceClassification, config)
    theirs.save_pretrained(tmp_path)
    ours = models.BartForSequenceClassification.from_pretrained(tmp_path)
    ids = np.array([[5, 6, 7, 2]])
    with torch.no_grad(), gf.no_grad():
        expected = theirs(torch.tensor(ids), output_attentions=True).decoder_attentions
        found = ours(gf.tensor(ids), output_attentions=True).attentions
    for mine, yours in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), yours, atol=1e-5)
