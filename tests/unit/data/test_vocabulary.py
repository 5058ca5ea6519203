import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import ByteVocabulary, CharVocabulary, vocabulary_from_dict

any_text = st.text(min_size=1)


@given(any_text)
def test_characters_come_back(text):
    vocabulary = CharVocabulary(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.dtype == np.int64
    assert len(vocabulary) == len(set(text)) == len(set(ids.tolist()))
    assert [vocabulary.characters[i] for i in ids] == list(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_utf8(text):
    vocabulary = ByteVocabulary()
    assert vocabulary.encode(text).tolist() == list(text.encode())
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(any_text, st.randoms())
def test_ids_do_not_depend_on_the_order_of_the_text(text, random):
    shuffled = list(text * 2)
    random.shuffle(shuffled)
    assert CharVocabulary("".join(shuffled)) == CharVocabulary(text)


@given(any_text, st.booleans())
def test_description_survives_json(text, as_bytes):
    vocabulary = ByteVocabulary() if as_bytes else CharVocabulary(text)
    assert vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.booleans())
def test_stream_decoder_gives_the_same_text_piece_by_piece(text, as_bytes):
    vocabulary = ByteVocabulary() if as_bytes else CharVocabulary(text)
    decode = vocabulary.stream_decoder()
    assert "".join(decode(int(i)) for i in vocabulary.encode(text)) == text


def test_cut_character_is_held_back_then_whole():
    decode = ByteVocabulary().stream_decoder()
    assert [decode(b) for b in "é".encode()] == ["", "é"]


def test_unknown_characters_are_named_in_one_error():
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\), '☃' \(U\+2603\).*position 1$"):
        CharVocabulary("abc").encode("aé☃éb")


def test_character_beyond_the_largest_known_one():
    with pytest.raises(ValueError, match="U\\+10FFFF"):
        CharVocabulary("abc").encode("\U0010ffff")


@pytest.mark.parametrize("bad", [3, -1])
def test_id_out_of_range_names_value_and_limit(bad):
    with pytest.raises(IndexError, match=f"token id {bad} at position 1 .* vocabulary of 3"):
        CharVocabulary("abc").decode([0, bad])


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"type": "word"},
        {"type": "char"},
        {"type": "char", "characters": ""},
        {"type": "char", "characters": ["a"]},
        {"type": "char", "characters": "ba"},
        {"type": "char", "characters": "aab"},
    ],
)
def test_foreign_descriptions_are_refused(description):
    with pytest.raises(ValueError, match="vocabulary"):
        vocabulary_from_dict(description)


def test_no_characters():
    with pytest.raises(ValueError, match="at least one character"):
        CharVocabulary("")
