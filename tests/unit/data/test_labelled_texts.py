from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from glassformer.data.labelled_texts import LabelledTexts, read_labelled, split_held_out
from glassformer.data.tables import TableError


def labelled(labels, pairs=None):
    texts = [f"text {i}" for i in range(len(labels))]
    return LabelledTexts(Path("t.csv"), texts, pairs, list(labels), list(range(2, len(texts) + 2)))


def test_a_stratified_tenth_is_a_tenth_of_each_label():
    data = labelled("a" * 100 + "b" * 40 + "c")
    learnt, held = split_held_out(data, seed=3, stratified=True)
    assert Counter(held.labels) == {"a": 10, "b": 4}
    assert sorted(learnt.texts + held.texts) == sorted(data.texts)
    assert learnt.texts == [text for text in data.texts if text not in held.texts]
    again = split_held_out(data, seed=3, stratified=True)[1]
    other = split_held_out(data, seed=4, stratified=True)[1]
    assert again.texts == held.texts != other.texts


def test_numbers_are_held_out_without_regard_to_their_values():
    learnt, held = split_held_out(labelled([str(i) for i in range(50)]), seed=0, stratified=False)
    assert (len(learnt), len(held)) == (45, 5)


def test_of_few_texts_one_is_held_out():
    learnt, held = split_held_out(labelled("aab"), seed=0, stratified=True)
    assert (len(learnt), held.labels) == (2, ["a"])
    with pytest.raises(TableError, match="too few"):
        split_held_out(labelled("ab"), seed=0, stratified=True)


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["b", "a", "b"], ["a", "b"]), (["10", "9", "9"], ["9", "10"]), (["1", "x", "1"], ["1", "x"])],
)
def test_labels_are_sorted(labels, names):
    data = labelled(labels)
    assert data.label_names() == names
    assert [names[i] for i in data.classes(names)] == labels


def test_labels_that_cannot_be_learnt():
    with pytest.raises(TableError, match="every text has the label 'a'"):
        labelled("aaa").label_names()
    with pytest.raises(TableError, match="3 texts has a label of its own"):
        labelled("abc").label_names()
    with pytest.raises(TableError, match=r"lack: 'x', 'y' \(the first in line 3\).* 'a', 'b'"):
        labelled("axy").classes(["a", "b"])
    np.testing.assert_array_equal(labelled(["1", "-2.5"]).numbers(), [1, -2.5])
    for wrong in ("one", "nan", "inf"):
        with pytest.raises(TableError, match=f"line 3: the label '{wrong}' is no finite number"):
            labelled(["1", wrong]).numbers()


def test_reading_pairs_and_refusing_empty_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("q,p,y\nwhy,because, yes \nwho,,no\n")
    data = read_labelled(path, "q", "y", "p")
    assert (data.texts, data.pairs, data.labels) == (["why", "who"], ["because", ""], ["yes", "no"])
    with pytest.raises(TableError, match="line 3: p is empty, as in 1 of 2 rows"):
        read_labelled(path, "p", "y")
