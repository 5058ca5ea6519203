import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import NextTokenWindows, ScoringWindows


@given(st.data())
def test_a_label_is_the_token_that_follows(data):
    block = data.draw(st.integers(1, 9))
    tokens = np.arange(data.draw(st.integers(block + 1, 60))) * 3
    windows = NextTokenWindows(tokens, block)
    indices = np.array(data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1)))
    batch = windows.batch(indices)
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (len(indices), block)
    assert (batch["shift_labels"] == batch["input_ids"] + 3).all()
    assert (batch["input_ids"][:, 0] == tokens[indices]).all()
    for row, index in enumerate(indices):
        item = windows[int(index)]
        assert (item["input_ids"] == batch["input_ids"][row]).all()
        assert (item["shift_labels"] == batch["shift_labels"][row]).all()


@given(st.integers(1, 9), st.integers(0, 40))
def test_every_offset_is_a_window(block, extra):
    tokens = np.arange(block + 1 + extra)
    windows = NextTokenWindows(tokens, block)
    starts = [int(windows[i]["input_ids"][0]) for i in range(len(windows))]
    assert starts == list(range(extra + 1))
    assert windows[-1]["shift_labels"][-1] == tokens[-1]
    with pytest.raises(IndexError):
        windows[len(windows)]


@given(st.data())
def test_scoring_windows_predict_every_token_but_the_first_once(data):
    block = data.draw(st.integers(1, 8))
    stride = data.draw(st.integers(1, block))
    tokens = np.arange(data.draw(st.integers(block + 1, 70)))
    windows = ScoringWindows(tokens, block, stride)
    batch = windows.batch(np.arange(len(windows)))
    scored = batch["shift_labels"][batch["shift_labels"] != -100]
    assert sorted(scored.tolist()) == tokens[1:].tolist()
    unmasked = batch["shift_labels"] != -100
    assert (batch["shift_labels"] == batch["input_ids"] + 1)[unmasked].all()
    context = np.argmax(unmasked[1:], axis=1)  # places before the first scored one
    assert (context >= block - stride).all()


def test_a_single_window_marks_its_labels_alone():
    tokens = np.arange(12)
    windows = ScoringWindows(tokens, 5)
    for index, start in enumerate((0, 5, 6)):
        np.testing.assert_array_equal(windows[index]["input_ids"], tokens[start : start + 5])
    assert windows[2]["shift_labels"].tolist() == [-100] * 4 + [11]


def test_tokens_keep_their_compact_type_but_batches_are_int64():
    windows = NextTokenWindows(np.arange(9, dtype=np.uint8), 4)
    assert windows.tokens.dtype == np.uint8
    assert windows[0]["input_ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("tokens", "block", "message"),
    [
        (np.arange(5), 5, "5 tokens are too few for a window of 5"),
        (np.arange(5), 0, "at least 1"),
        (np.zeros((2, 5), dtype=int), 2, r"integers \(N,\), got int64 \(2, 5\)"),
        (np.zeros(5), 2, "got float64"),
    ],
)
def test_impossible_windows_are_refused(tokens, block, message):
    with pytest.raises(ValueError, match=message):
        NextTokenWindows(tokens, block)


@pytest.mark.parametrize("stride", [0, 5])
def test_stride_must_leave_no_gap(stride):
    with pytest.raises(ValueError, match="stride"):
        ScoringWindows(np.arange(9), 4, stride)
