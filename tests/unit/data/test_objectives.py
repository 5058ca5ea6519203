import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.data.objectives import DataCollatorForLanguageModeling, group_texts

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
VOCABULARY = 50
FIRST_PIECE = 40  # from here on tokens are "##" pieces


class StandIn:
    """A tokenizer as far as masking goes."""

    pad_token_id = PAD
    mask_token_id = MASK
    all_special_ids = (PAD, UNKNOWN, CLS, SEP, MASK)

    def __len__(self):
        return VOCABULARY

    def convert_ids_to_tokens(self, ids):
        return [f"##{i}" if i >= FIRST_PIECE else f"t{i}" for i in ids]


def rows(count, length, seed=0, low=5, high=VOCABULARY):
    """Items [CLS] tokens [SEP], of `length` tokens and fewer."""
    rng = np.random.default_rng(seed)
    inner = [rng.integers(low, high, rng.integers(1, length - 1)) for _ in range(count)]
    return [{"input_ids": np.array([CLS, *tokens, SEP])} for tokens in inner]


def collate(items, **settings):
    settings = {"generator": gf.Generator(0), **settings}
    batch = DataCollatorForLanguageModeling(StandIn(), **settings)(items)
    return {name: tensor.numpy() for name, tensor in batch.items()}


def originals(items):
    """The ids of the items, padded, and which of them are no special tokens."""
    length = max(len(item["input_ids"]) for item in items)
    ids = np.stack([np.pad(i["input_ids"], (0, length - len(i["input_ids"]))) for i in items])
    return ids, ids >= 5


def assert_share(hits, trials, probability):
    """Hits of a fair trial: within 4.5 standard deviations of the mean, 7 in a million miss."""
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(hits - trials * probability) <= 4.5 * spread, (hits, trials, probability)


@pytest.mark.parametrize("whole_word_mask", [False, True])
@pytest.mark.parametrize(
    ("mlm", "mask", "other"), [(0.15, 0.8, 0.1), (0.5, 0.3, 0.6), (0.3, 0.0, 0.0), (0.2, 1.0, 0.0)]
)
def test_tokens_are_chosen_and_replaced_at_the_given_rates(mlm, mask, other, whole_word_mask):
    # In whole words only these: single tokens are then words, and the trials independent.
    items = rows(400, 60, high=FIRST_PIECE)
    batch = collate(
        items,
        mlm_probability=mlm,
        mask_replace_prob=mask,
        random_replace_prob=other,
        whole_word_mask=whole_word_mask,
    )
    ids, candidates = originals(items)
    chosen = batch["labels"] != -100
    assert_share(chosen.sum(), candidates.sum(), mlm)
    replaced = batch["input_ids"][chosen]
    masked, kept = replaced == MASK, replaced == ids[chosen]
    # One in VOCABULARY random tokens is the mask, and one the token that was there.
    assert_share(masked.sum(), chosen.sum(), mask + other / VOCABULARY)
    assert_share(kept.sum(), chosen.sum(), (1 - mask - other) + other / VOCABULARY)
    others = replaced[~masked & ~kept]
    assert_share((others < VOCABULARY / 2).sum(), len(others), (25 - 1) / (50 - 1 - 1))


@given(
    st.integers(0, 2**32), st.sampled_from([0.0, 0.15, 1.0]), st.booleans(), st.sampled_from([1, 8])
)
def test_labels_are_the_originals_and_specials_stay(seed, probability, whole, multiple):
    items = rows(5, 12, seed)
    batch = collate(
        items,
        mlm_probability=probability,
        whole_word_mask=whole,
        pad_to_multiple_of=multiple,
        generator=gf.Generator(seed),
    )
    ids, candidates = originals(items)
    length = ids.shape[1]
    assert batch["input_ids"].shape[1] == -(-length // multiple) * multiple
    assert (batch["labels"][:, length:] == -100).all()
    assert (batch["attention_mask"][:, :length] == (ids != PAD)).all()
    inputs, labels = batch["input_ids"][:, :length], batch["labels"][:, :length]
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all()
    assert (inputs[~chosen] == ids[~chosen]).all()
    assert not chosen[~candidates].any()
    assert chosen.any() == (probability > 0)  # a batch without labels would have no loss
    if probability == 1:
        assert chosen[candidates].all()


def test_a_batch_in_which_chance_chose_none_gets_one_chosen_token():
    generator = gf.Generator(0)
    counts = np.zeros(5, dtype=int)
    for _ in range(2000):
        labels = collate([[CLS, 5, 6, 7, SEP]], mlm_probability=0.001, generator=generator)[
            "labels"
        ]
        assert (labels != -100).any()
        counts += (labels != -100)[0]
    assert counts[[0, 4]].tolist() == [0, 0]
    for count in counts[1:4]:
        assert_share(count, 2000, 1 / 3)  # none is preferred


def word_numbers(item, by):
    """The word of each token; -1 for special ones."""
    if by == "word_ids":
        return [-1 if word is None else word for word in item["word_ids"]]
    ids, numbers, word = item["input_ids"], [], -1
    for position, token in enumerate(ids):
        if by == "pieces":
            goes_on = token >= FIRST_PIECE and ids[position - 1] >= 5
        else:
            begin, end = item["offset_mapping"][position], item["offset_mapping"][position - 1]
            goes_on = begin[0] == end[1] and ids[position - 1] >= 5
        word += not goes_on
        numbers.append(word if token >= 5 else -1)
    return numbers


@pytest.mark.parametrize("by", ["word_ids", "offset_mapping", "pieces"])
def test_whole_words_are_masked_together(by):
    rng = np.random.default_rng(1)
    items = rows(200, 40, seed=1)
    for item in items:
        count = len(item["input_ids"])
        breaks = rng.random(count) < 0.6
        if by == "word_ids":
            words = np.cumsum(breaks).tolist()
            item[by] = [None, *words[1:-1], None]
        elif by == "offset_mapping":
            ends = np.cumsum(3 + breaks)
            item[by] = [(end - 3, end) for end in ends]
    batch = collate(items, whole_word_mask=True, mlm_probability=0.3, mask_replace_prob=0.8)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    words = chosen_words = long_words = mixed = 0
    for row, item in enumerate(items):
        numbers = np.array(word_numbers(item, by))
        chosen = batch["labels"][row, : len(numbers)] != -100
        for word in set(numbers.tolist()) - {-1}:
            tokens = numbers == word
            assert chosen[tokens].all() or not chosen[tokens].any()
            words, chosen_words = words + 1, chosen_words + chosen[tokens].any()
            if chosen[tokens].all() and tokens.sum() > 1:
                long_words += 1
                hidden = batch["input_ids"][row, : len(numbers)][tokens] == MASK
                mixed += hidden.any() and not hidden.all()
    assert_share(chosen_words, words, 0.3)
    assert long_words > 50 and mixed > 10  # each token of a word is replaced, or not, by itself


@pytest.mark.parametrize(
    "words",
    [
        {"word_ids": [None, 0, None, 0, None]},
        {"offset_mapping": [(0, 0), (0, 2), (2, 4), (4, 6), (0, 0)]},
    ],
)
def test_two_sides_of_a_separator_are_two_words(words):
    item = {"input_ids": [CLS, 5, SEP, 6, SEP], **words}
    batch = collate([item] * 400, whole_word_mask=True, mlm_probability=0.5)
    chosen = batch["labels"][:, [1, 3]] != -100
    assert_share((chosen[:, 0] & chosen[:, 1]).sum(), 400, 0.25)


def test_a_given_special_tokens_mask_replaces_the_tokenizers():
    items = [{"input_ids": [CLS, 7, 8, SEP], "special_tokens_mask": [0, 1, 0, 1]}]
    batch = collate(items, mlm_probability=1.0)
    assert batch["labels"].tolist() == [[CLS, -100, 8, -100]]
    assert "special_tokens_mask" not in batch


def test_the_choices_repeat_with_the_generator_and_go_on_after_its_state():
    items = rows(8, 30)
    collator = DataCollatorForLanguageModeling(StandIn())  # draws from the default generator
    gf.manual_seed(3)
    first = collator(items)["input_ids"].tolist()
    state = gf.random.default_generator.get_state()
    second = collator(items)["input_ids"].tolist()
    assert first != second
    gf.random.default_generator.set_state(state)
    resumed = DataCollatorForLanguageModeling(StandIn())(items)
    assert resumed["input_ids"].tolist() == second
    assert (
        DataCollatorForLanguageModeling(StandIn(), generator=gf.Generator(3))(items)[
            "input_ids"
        ].tolist()
        == first
    )


def test_with_a_seed_a_batch_is_always_masked_alike_and_another_differently():
    items = rows(8, 30)
    collator = DataCollatorForLanguageModeling(StandIn(), seed=1)
    before = gf.random.default_generator.get_state()
    first = collator(items)["labels"].tolist()
    collator(rows(3, 9))
    assert collator(items)["labels"].tolist() == first
    others = [{"input_ids": np.where(i["input_ids"] < 5, i["input_ids"], 9)} for i in items]
    chosen = [[label != -100 for label in row] for row in first]
    assert (collator(others)["labels"].numpy() != -100).tolist() != chosen
    assert collate(items, seed=2, generator=None)["labels"].tolist() != first
    assert gf.random.default_generator.get_state() == before


def test_causal_labels_are_the_tokens_but_for_padding():
    batch = collate([{"input_ids": [5, PAD, 7]}, [8]], mlm=False)
    assert batch["input_ids"].tolist() == [[5, PAD, 7], [8, PAD, PAD]]
    # A padding token inside a text, such as an end-of-text token that pads too, is to be learnt.
    assert batch["labels"].tolist() == [[5, PAD, 7], [8, -100, -100]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlm_probability": 1.5}, "mlm_probability 1.5"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "the sum of the last two"),
        ({"mlm": False, "whole_word_mask": True}, "mlm=False masks nothing"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"seed": 1, "generator": gf.Generator(1)}, "or a generator"),
    ],
)
def test_settings_that_make_no_sense_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForLanguageModeling(StandIn(), **settings)


def test_a_tokenizer_without_mask_or_pieces_is_explained():
    class Plain(StandIn):
        mask_token_id = None
        convert_ids_to_tokens = None

    with pytest.raises(ValueError, match="no mask token; give mlm=False"):
        DataCollatorForLanguageModeling(Plain())
    Plain.mask_token_id = MASK
    with pytest.raises(ValueError, match="give every item its word_ids or offset_mapping"):
        DataCollatorForLanguageModeling(Plain(), whole_word_mask=True)([[5, 6]])


@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=9), st.integers(1, 9))
def test_grouped_texts_are_the_texts_up_to_a_part_of_a_block(texts, block_size):
    tokens = [token for text in texts for token in text]
    if len(tokens) < block_size:
        with pytest.raises(ValueError, match=f"{len(tokens)} tokens fill no block of {block_size}"):
            group_texts(texts, block_size)
        return
    items = group_texts(texts, block_size)
    assert all(item["input_ids"].shape == (block_size,) for item in items)
    joined = [token for item in items for token in item["input_ids"].tolist()]
    assert joined == tokens[: len(joined)] and len(tokens) - len(joined) < block_size
