import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.data import (
    BatchEncoding,
    DataCollatorWithPadding,
    PaddingCollator,
    default_collate,
)
from glassformer.data.tokenizer_training import train_tokenizer

sequences = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6)


@given(sequences, st.sampled_from(["left", "right"]), st.sampled_from([None, 1, 4, 8]))
def test_padding_adds_only_padding(rows, side, multiple):
    items = [{"input_ids": row, "labels": [i + 1 for i in row], "extra": row} for row in rows]
    batch = PaddingCollator(0, side, multiple)(items)
    mask = batch["attention_mask"].numpy()
    length = mask.shape[1]
    assert length >= max(map(len, rows)) and length % (multiple or 1) == 0
    assert length < max(map(len, rows)) + (multiple or 1)
    for row, tokens in enumerate(rows):
        real = mask[row] == 1
        assert batch["input_ids"].numpy()[row][real].tolist() == tokens
        assert batch["labels"].numpy()[row][real].tolist() == [i + 1 for i in tokens]
        assert (batch["labels"].numpy()[row][~real] == -100).all()
        assert (batch["input_ids"].numpy()[row][~real] == 0).all()
        assert real.sum() == len(tokens)
        assert real[-len(tokens) :].all() if side == "left" else real[: len(tokens)].all()


def test_class_labels_are_stacked_and_a_given_mask_is_kept():
    items = [
        {"input_ids": [1, 2, 3], "labels": 4, "attention_mask": [1, 1, 0]},
        {"input_ids": [7], "labels": 5, "attention_mask": [1]},
    ]
    batch = PaddingCollator(pad_token_id=9)(items)
    assert batch["labels"].tolist() == [4, 5]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [7, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]


def test_default_collate_stacks_nested_items():
    items = [
        {"x": np.float32([1, 2]), "pair": (1, "a")},
        {"x": np.float32([3, 4]), "pair": (2, "b")},
    ]
    batch = default_collate(items)
    assert batch["x"].tolist() == [[1, 2], [3, 4]]
    assert batch["x"].dtype.name == "float32"
    assert batch["pair"][0].tolist() == [1, 2]
    assert batch["pair"][0].dtype.name == "int64"
    assert batch["pair"][1] == ["a", "b"]


def test_different_shapes_point_to_padding():
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\).*PaddingCollator"):
        default_collate([np.zeros(3), np.zeros(2)])


def test_padding_side_is_checked():
    with pytest.raises(ValueError, match="'middle'"):
        PaddingCollator(padding_side="middle")


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tokenizers")
    return train_tokenizer(["the cat sat on a mat"] * 3, "wordpiece", vocab_size=60)


def test_a_tokenizer_pads_its_items_and_labels_are_kept(tokenizer):
    texts = ["the cat", "a", "the cat sat on a mat"]
    items = [{**tokenizer(text), "label": 0.5 + i} for i, text in enumerate(texts)]
    batch = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=4)(items)
    wanted = tokenizer(texts, padding=True, pad_to_multiple_of=4, return_tensors="gf")
    assert batch.keys() == {*wanted, "labels"}
    for name in wanted:
        assert batch[name].tolist() == wanted[name].tolist()
    assert batch["labels"].tolist() == [0.5, 1.5, 2.5]


def test_padding_that_is_not_asked_for_rightly_is_told(tokenizer):
    with pytest.raises(TypeError, match=r"Tokenizer; .*DataCollatorWithPadding\(tokenizer\)"):
        PaddingCollator(tokenizer)
    with pytest.raises(TypeError, match="takes a tokenizer, got int"):
        DataCollatorWithPadding(0)
    with pytest.raises(ValueError, match=r"lengths \[2, 3\].*DataCollatorWithPadding"):
        default_collate([{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}])
    with pytest.raises(ValueError, match=r"keys \['x'\] and \['x', 'y'\].*DataCollatorWithPadding"):
        default_collate([{"x": 1}, {"x": 1, "y": 2}])


def test_an_encoding_moves_its_tensors(tokenizer):
    encoding = tokenizer(["the cat"], return_tensors="gf")
    assert encoding.to("cpu") is encoding
    assert encoding.tokens() == tokenizer(["the cat"]).tokens()
    with pytest.raises(TypeError, match="input_ids is a list, .*return_tensors='gf'"):
        tokenizer("the cat").to("cpu")


def test_an_encoding_moves_to_another_device():
    pytest.importorskip("torch")
    encoding = BatchEncoding({"input_ids": gf.tensor([[1, 2]])}).to("torch-cpu")
    assert str(encoding.input_ids.device) == "torch-cpu"
