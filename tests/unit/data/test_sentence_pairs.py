import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data.objectives import DataCollatorForLanguageModeling
from glassformer.data.sentence_pairs import next_sentence_pairs
from tests.unit.data.test_objectives import CLS, SEP, StandIn, assert_share


class WithSegments(StandIn):
    cls_token_id, sep_token_id = CLS, SEP


def numbered(shape, seed=0):
    """Documents of so many sentences each, all tokens different: 10000 to a document, in order."""
    rng = np.random.default_rng(seed)
    documents = []
    for index, sentences in enumerate(shape):
        lengths = rng.integers(1, 12, sentences)
        tokens = np.arange(lengths.sum()) + 10_000 * (index + 1)
        documents.append([part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])])
    return documents


def segments(item):
    """A and B of an item, after checking what is around them."""
    ids, types = item["input_ids"].tolist(), item["token_type_ids"].tolist()
    assert ids[0] == CLS and ids[-1] == SEP and ids.count(SEP) == 2 and ids.count(CLS) == 1
    middle = ids.index(SEP) + 1
    assert types == [0] * middle + [1] * (len(ids) - middle)
    return ids[1 : middle - 1], ids[middle:-1]


@given(
    st.lists(st.integers(1, 15), min_size=2, max_size=6), st.integers(5, 60), st.integers(0, 2**32)
)
def test_pairs_are_what_their_labels_say(shape, max_length, seed):
    documents = numbered(shape, seed)
    starts = {sentence[0] for document in documents for sentence in document}
    for item in next_sentence_pairs(documents, WithSegments(), max_length, seed):
        first, second = segments(item)
        assert first and second and len(item["input_ids"]) <= max_length
        # Numbers in a row: whatever is taken is one piece of one document.
        for part in (first, second):
            assert part == list(range(part[0], part[0] + len(part)))
        same_document = first[0] // 10_000 == second[0] // 10_000
        assert item["next_sentence_label"] == (0 if same_document else 1)
        if same_document:
            assert first[-1] < second[0]
            if len(item["input_ids"]) < max_length:  # nothing was cut off
                assert second[0] == first[-1] + 1 and second[0] in starts


def test_half_of_the_pairs_are_random_and_from_any_other_document():
    pairs = next_sentence_pairs(numbered([40] * 70), WithSegments(), 48)
    labels = np.array([pair["next_sentence_label"] for pair in pairs])
    assert len(pairs) > 400
    assert_share(labels.sum(), len(labels), 0.5)
    from_document = [segments(p)[1][0] // 10_000 for p in pairs if p["next_sentence_label"]]
    assert len(set(from_document)) > 60
    lengths = np.array([len(pair["input_ids"]) for pair in pairs])
    assert np.median(lengths) == 48  # items are filled


def test_every_sentence_but_for_a_last_one_is_used():
    documents = numbered([30] * 4)
    pairs = next_sentence_pairs(documents, WithSegments(), 10_000, seed=1)
    for index, document in enumerate(documents):
        used = set()
        for pair in pairs:
            first, second = segments(pair)
            if first[0] // 10_000 == index + 1:
                used.update(first, second if pair["next_sentence_label"] == 0 else [])
        left = [sentence for sentence in document if not used.issuperset(sentence)]
        assert left in ([], document[-1:])


def test_pairs_repeat_with_the_seed():
    documents = numbered([20] * 5)
    first, again, other = (
        [p["input_ids"].tolist() for p in next_sentence_pairs(documents, WithSegments(), 32, seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_pairs_go_through_the_masking_collator():
    documents = [[[7, 8, 9], [10, 11]], [[12, 13], [14]], [[15]]]
    pairs = next_sentence_pairs(documents, WithSegments(), 16)
    batch = DataCollatorForLanguageModeling(WithSegments(), seed=0)(pairs)
    length = max(len(pair["input_ids"]) for pair in pairs)
    for name in ("input_ids", "token_type_ids", "attention_mask", "labels"):
        assert batch[name].shape == (len(pairs), length)
    assert batch["next_sentence_label"].tolist() == [p["next_sentence_label"] for p in pairs]


def test_what_makes_no_pairs_is_explained():
    with pytest.raises(ValueError, match="two documents with text or more, got 1"):
        next_sentence_pairs([[[5], [6]], [], [[]]], WithSegments(), 16)
    with pytest.raises(ValueError, match="max_length must be 5 or more.*got 4"):
        next_sentence_pairs(numbered([2, 2]), WithSegments(), 4)

    class NoSeparator(WithSegments):
        sep_token_id = None

    with pytest.raises(ValueError, match="sep_token_id None"):
        next_sentence_pairs(numbered([2, 2]), NoSeparator(), 16)
