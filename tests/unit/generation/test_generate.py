from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.data import PaddingCollator
from glassformer.generation import GenerationConfig, KVCache, generate, stream_generate
from glassformer.models import GPT, GPTConfig
from glassformer.models.outputs import BaseModelOutput

LIMIT = 24
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # cached against uncached, on logits of size 1


def gpt(dtype="float64", seed=0, **changes):
    config = GPTConfig(vocab_size=17, n_positions=LIMIT, n_embd=16, n_layer=2, n_head=2, **changes)
    model = GPT(config, gf.Generator(seed)).to(dtype)
    with gf.no_grad():  # weights so small that everything is equally likely would show little
        for parameter in model.parameters():
            parameter.mul_(6)
    return model.eval()


class Counter:
    """A "language model" in which token t is followed by t + 1; remembers what it was given."""

    def __init__(self, vocabulary=10):
        self.vocabulary, self.training, self.lengths = vocabulary, True, []

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.training = False

    def __call__(self, input_ids, attention_mask=None, cache=None):
        assert not self.training and not gf.is_grad_enabled()
        self.lengths.append(input_ids.shape[1])
        logits = np.eye(self.vocabulary)[(input_ids.numpy() + 1) % self.vocabulary]
        return SimpleNamespace(logits=gf.from_numpy(logits))


def test_greedy_takes_the_likeliest():
    out = generate(Counter(), [[3], [7]], 5)
    assert out.tolist() == [[3, 4, 5, 6, 7, 8], [7, 8, 9, 0, 1, 2]]
    assert out.dtype.name == "int64"


def test_finished_sequences_end_in_padding():
    out = generate(Counter(), [[3], [7]], 10, eos_token_id=[9, 6], pad_token_id=0)
    assert out.tolist() == [[3, 4, 5, 6], [7, 8, 9, 0]]
    out = generate(Counter(), [[3], [7]], 10, eos_token_id=9)
    assert out.tolist() == [[3, 4, 5, 6, 7, 8, 9], [7, 8, 9, 9, 9, 9, 9]]
    assert generate(Counter(), [[8]], 10, eos_token_id=9).tolist() == [[8, 9]]


def test_no_new_tokens_and_a_single_prompt():
    assert generate(Counter(), [1, 2, 3], 0).tolist() == [[1, 2, 3]]
    assert generate(Counter(), gf.tensor([1, 2]), 2).tolist() == [[1, 2, 3, 4]]


def test_stream_gives_each_token_before_computing_the_next():
    model = Counter()
    stream = stream_generate(model, [[3]], 4, use_cache=False)
    assert model.lengths == []
    for number, tokens in enumerate(stream, 1):
        assert tokens.tolist() == [3 + number]
        assert model.lengths == list(range(1, number + 1))
        assert model.training and gf.is_grad_enabled()  # between the steps the caller's state


def test_training_mode_comes_back_after_an_error():
    class Broken(Counter):
        def __call__(self, *args, **kwargs):
            raise OSError

    model = Broken()
    with pytest.raises(OSError):
        generate(model, [[1]], 1)
    assert model.training and gf.is_grad_enabled()


def test_a_penalty_on_repetition_leaves_the_circle():
    class Stuck(Counter):
        def __call__(self, input_ids, attention_mask=None, cache=None):
            logits = np.tile([0.0, 0.0, 1.9, 1.0, 2.0], (*input_ids.shape, 1))
            return SimpleNamespace(logits=gf.from_numpy(logits))

    assert generate(Stuck(), [[0]], 3).tolist() == [[0, 4, 4, 4]]
    assert generate(Stuck(), [[0]], 3, repetition_penalty=1.1).tolist() == [[0, 4, 2, 4]]
    # A padding token has not occurred: 4 is padding in the first row, and in the second it is real.
    prompts, mask = [[4, 0], [4, 0]], [[0, 1], [1, 1]]
    out = generate(Stuck(), prompts, 1, attention_mask=mask, repetition_penalty=1.1)
    assert out[:, 2].tolist() == [4, 2]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(st.data())
def test_cached_logits_equal_a_full_forward(dtype, data):
    model = gpt(dtype)
    batch = data.draw(st.integers(1, 3))
    chunks = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    ids = np.random.default_rng(sum(chunks)).integers(0, 17, (batch, sum(chunks)))
    with gf.no_grad():
        whole = model(gf.from_numpy(ids)).logits.numpy()
        cache, parts, start = KVCache(2), [], 0
        for length in chunks:
            part = gf.from_numpy(ids[:, start : start + length].copy())
            parts.append(model(part, cache=cache).logits.numpy())
            start += length
    difference = abs(np.concatenate(parts, axis=1) - whole).max()
    assert difference <= TOLERANCE[dtype] * max(1, abs(whole).max())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 3, "temperature": 1.5}])
@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_cached_tokens_equal_uncached_ones(dtype, settings, overflow):
    model = gpt(dtype)
    prompt = np.random.default_rng(1).integers(0, 17, (2, 5))
    new = LIMIT - 4 if overflow == "error" else 3 * LIMIT
    settings = {**settings, "on_overflow": overflow}
    cached = generate(model, prompt, new, **settings)
    assert cached.shape == (2, 5 + new)
    assert (
        cached.numpy() == generate(model, prompt, new, use_cache=False, **settings).numpy()
    ).all()
    streamed = list(stream_generate(model, prompt, new, **settings))
    assert (np.stack(streamed, axis=1) == cached.numpy()[:, 5:]).all()


def test_greedy_tokens_are_the_argmax_of_full_forwards():
    model = gpt()
    tokens = np.array([[4, 8, 1]])
    with gf.no_grad():
        for _ in range(12):
            logits = model(gf.from_numpy(tokens)).logits.numpy()
            tokens = np.append(tokens, logits[:, -1].argmax(-1)[:, None], axis=1)
    assert generate(model, [[4, 8, 1]], 12).tolist() == tokens.tolist()


@pytest.mark.parametrize("settings", [{}, {"on_overflow": "slide"}, {"repetition_penalty": 1.5}])
def test_left_padding_changes_nothing(settings):
    model = gpt()
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 17, length) for length in (1, 4, 7)]
    batch = PaddingCollator(3, "left")([{"input_ids": prompt} for prompt in prompts])
    new = LIMIT - 7 if settings.get("on_overflow") != "slide" else LIMIT - 6
    together = generate(model, **batch, max_new_tokens=new, **settings).numpy()
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt, new, **settings).numpy()[0, len(prompt) :]
        if settings.get("on_overflow") == "slide":  # contexts move when the padded length is full
            alone, row_tokens = alone[: LIMIT - 7], together[row, 7 : 7 + LIMIT - 7]
        else:
            row_tokens = together[row, 7:]
        assert (row_tokens == alone).all()


def test_padding_may_hold_any_token():
    model, mask = gpt(), [[0, 0, 1, 1], [1, 1, 1, 1]]
    outs = [
        generate(model, [[pad, pad, 5, 6], [1, 2, 3, 4]], 8, attention_mask=mask).numpy()[:, 4:]
        for pad in (0, 16)
    ]
    assert (outs[0] == outs[1]).all()


def test_position_limit():
    model = gpt()
    assert generate(model, [[1] * 4], LIMIT - 3).shape == (1, LIMIT + 1)
    with pytest.raises(
        ValueError, match=f"prompt of 4 tokens and 22 new ones .* {LIMIT} positions"
    ):
        generate(model, [[1] * 4], LIMIT - 2)
    with pytest.raises(ValueError, match="ask for at most 0 new tokens"):
        generate(model, [[1] * 30], 1)
    assert generate(model, [[1] * 30], 40, on_overflow="slide").shape == (1, 70)


def test_sliding_keeps_the_newer_half():
    model = gpt()
    ids = np.random.default_rng(5).integers(0, 17, (1, LIMIT + 1))
    with gf.no_grad():
        newer = gf.from_numpy(ids[:, -(LIMIT // 2) :].copy())
        expected = model(newer).logits.numpy()[:, -1].argmax(-1)
    assert generate(model, ids, 1, on_overflow="slide").numpy()[:, -1] == expected


def test_seeds():
    model, settings = gpt(), {"do_sample": True, "temperature": 2.0}

    def drawn(**more):
        return generate(model, [[1]], 15, **settings, **more).tolist()

    assert drawn(seed=1) == drawn(seed=1) == drawn(generator=gf.Generator(1))
    assert drawn(seed=1) != drawn(seed=2)
    gf.manual_seed(7)
    first = drawn()
    assert drawn() != first
    gf.manual_seed(7)
    assert drawn() == first
    with pytest.raises(ValueError, match="not both"):
        drawn(seed=1, generator=gf.Generator(1))


def test_dropout_is_off_while_generating():
    model = gpt(dropout=0.9).train()
    assert generate(model, [[1]], 9).tolist() == generate(model, [[1]], 9).tolist()
    assert model.training


def test_spoilt_weights_are_reported():
    model = gpt()
    with gf.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="is nan.*check the model's weights"):
        generate(model, [[1]], 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": np.zeros((1, 0), int)}, ValueError, r"at least one token, got \(1, 0\)"),
        ({"input_ids": [[0.5]]}, TypeError, "integers"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens"),
        ({"attention_mask": [[1]]}, ValueError, r"attention_mask is \(1, 1\), input_ids \(1, 2\)"),
        ({"attention_mask": [[1, 0]]}, ValueError, "pad prompts on the left"),
        ({"on_overflow": "crop"}, ValueError, "'error' or 'slide'"),
        ({"top_q": 1}, TypeError, "top_q"),
        ({"input_ids": [[1, 17]]}, IndexError, "17"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        list(stream_generate(gpt(), **{"input_ids": [[1, 2]], **arguments}))


class Speller:
    """An "encoder-decoder" that repeats its source; counts how often it reads it."""

    training = False
    config = SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=9)

    def __init__(self):
        self.encoded = 0
        self.base_model = self

    def train(self, mode=True):
        pass

    def eval(self):
        pass

    def encode(self, input_ids, attention_mask):
        self.encoded += 1
        return BaseModelOutput(input_ids.unsqueeze(-1))

    def __call__(self, encoder_outputs, attention_mask, decoder_input_ids, cache):
        source = encoder_outputs.last_hidden_state.numpy()[:, :, 0]
        assert attention_mask is None or attention_mask.shape == source.shape
        assert len(decoder_input_ids) == len(source)
        place = decoder_input_ids.shape[1] - 1
        return SimpleNamespace(logits=gf.from_numpy(np.eye(10)[source[:, place : place + 1]] * 30))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_source_is_read_once_for_all_steps_and_beams(beams):
    model = Speller()
    out = generate(
        model, [[4, 5, 6], [7, 1, 2]], 3, attention_mask=[[1, 1, 1], [1, 1, 0]], num_beams=beams
    )
    assert out.tolist() == [[9, 4, 5, 6], [9, 7, 1, 2]]
    assert model.encoded == 1


def test_arguments_of_encoder_decoders_are_checked():
    model = Speller()
    with pytest.raises(ValueError, match="on_overflow='slide' drops a prompt's older half"):
        generate(model, [[1]], on_overflow="slide")
    with pytest.raises(ValueError, match=r"decoder_input_ids are \(2, 1\), but there are 3"):
        generate(model, [[1], [2], [3]], decoder_input_ids=[[9], [9]])
    with pytest.raises(ValueError, match="continues prompts"):
        generate(gpt(), [[1]], decoder_input_ids=[[9]])
    with pytest.raises(ValueError, match="leaves no room below max_length=2"):
        generate(gpt(), [[1, 2]], max_length=2)
    model.config = SimpleNamespace(is_encoder_decoder=True)
    with pytest.raises(ValueError, match="pass decoder_start_token_id="):
        generate(model, [[1]])
    assert generate(model, [[4, 5]], 2, bos_token_id=3).tolist() == [[3, 4, 5]]


def test_a_default_length_ends_where_positions_do():
    assert generate(gpt(), [[1] * (LIMIT - 2)]).shape == (1, LIMIT + 1)
    assert generate(gpt(), [[1] * 2]).shape == (1, 22)
    assert generate(gpt(), [[1] * 2], max_length=7).shape == (1, 7)
    config = GenerationConfig(max_new_tokens=3)
    assert generate(gpt(), [[1] * 2], generation_config=config).shape == (1, 5)


def test_several_sequences_are_drawn_for_each_prompt():
    settings = {"do_sample": True, "num_return_sequences": 3, "seed": 0}
    out = generate(gpt(), [[1, 2], [3, 4]], 9, **settings).tolist()
    assert [row[:2] for row in out] == [[1, 2]] * 3 + [[3, 4]] * 3
    assert len({tuple(row) for row in out}) > 2


@pytest.mark.parametrize("text", ["Hi", {"input_ids": [[1]]}])
def test_texts_and_batches_are_no_tokens(text):
    with pytest.raises(TypeError, match=r"got (str|dict); generate\(\*\*tokenizer\(text"):
        generate(None, text)
