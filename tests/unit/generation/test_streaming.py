import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.data import AutoTokenizer
from glassformer.data.tokenizer import Tokenizer
from glassformer.data.tokenizer_families import TokenizerSettings
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.generation import TextStreamer, generate
from glassformer.models.gpt2 import GPT2Config, GPT2LMHeadModel
from glassformer.models.t5 import T5Config, T5ForConditionalGeneration

tokenizers = pytest.importorskip("tokenizers")

WORDS = "it ' s a cat , n ' t we ' ve . do n't ! the cat sat on a mat"


def metaspace(folder):
    """As Llama's: a space before each word is part of it, and no text begins with one."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>"], show_progress=False
    )
    backend.train_from_iterator([WORDS] * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "metaspace"])
def tokenizer(request, tmp_path_factory):
    if request.param == "metaspace":
        return metaspace(tmp_path_factory.mktemp("tokenizer"))
    made = train_tokenizer([WORDS] * 3, request.param, vocab_size=300)
    made.settings.clean_up_tokenization_spaces = True
    return made


class Pieces(TextStreamer):
    """Keeps what would be printed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pieces, self.ends = [], []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)
        self.ends.append(stream_end)


def streamed(streamer, prompt, tokens):
    streamer.put(np.array([prompt]))
    for token in tokens:
        streamer.put(np.array([token]))
    streamer.end()
    return streamer.pieces


@given(st.data())
@pytest.mark.parametrize("options", [{}, {"skip_special_tokens": True}])
def test_the_pieces_are_the_text_of_all_tokens(tokenizer, options, data):
    ids = st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=20)
    prompt, tokens = data.draw(ids), data.draw(ids)
    whole = tokenizer.decode([*prompt, *tokens], **options)
    assert "".join(streamed(Pieces(tokenizer, **options), prompt, tokens)) == whole
    streamer = Pieces(tokenizer, skip_prompt=True, **options)
    for _ in range(2):  # the next text begins anew
        streamer.pieces, streamer.ends = [], []
        assert "".join(streamed(streamer, prompt, tokens)) == tokenizer.decode(tokens, **options)
        assert streamer.ends == [False] * (len(streamer.ends) - 1) + [True]


@given(st.text())
def test_no_character_is_printed_in_part(text):
    """Every byte is a token of its own here."""
    tokenizer = train_tokenizer(["a"], "bpe", vocab_size=257)
    text = text.replace("\ufffd", "")
    pieces = streamed(Pieces(tokenizer), tokenizer.encode("ab"), tokenizer.encode(text))
    assert "".join(pieces) == "ab" + text and not any("\ufffd" in piece for piece in pieces)
    if text.isascii():
        assert pieces == ["ab", *text, ""]


@given(st.text())
def test_nor_of_bytes_that_are_decoded_together(text):
    """As SentencePiece's are: of a run that is no text yet, each is a replacement character."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({f"<0x{i:02X}>": i for i in range(256)}, [], byte_fallback=True)
    )
    backend.decoder = tokenizers.decoders.ByteFallback()
    tokenizer = Tokenizer(backend, TokenizerSettings())
    pieces = streamed(Pieces(tokenizer), [97], list(text.encode()))
    assert "".join(pieces) == "a" + text


def test_words_come_before_the_end_where_spaces_are_cleaned_up(tokenizer):
    text = "the cat sat on a mat the cat sat"
    pieces = streamed(Pieces(tokenizer), [0], tokenizer.encode(text, add_special_tokens=False))
    assert len([piece for piece in pieces if piece.strip()]) > 5


def models():
    gf.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=300, decoder_start_token_id=0, **shape))
    return {"gpt2": gpt2, "t5": t5}


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_generate_tells_the_prompt_and_each_token(name):
    told = []

    class Streamer:
        def put(self, value):
            told.append(value.tolist())

        def end(self):
            told.append("end")

    model = models()[name]
    ids = generate(model, [[5, 6, 7]], 4, streamer=Streamer(), eos_token_id=None)
    start = [[0]] if name == "t5" else [[5, 6, 7]]
    new = ids.numpy()[0, len(start[0]) :].tolist()
    assert told == [start, *([token] for token in new), "end"] and len(new) == 4
    assert (
        ids.numpy().tolist() == generate(model, [[5, 6, 7]], 4, eos_token_id=None).numpy().tolist()
    )


def test_what_is_not_one_text_as_it_comes_is_refused():
    tokenizer = train_tokenizer([WORDS], "bpe", vocab_size=300)
    model = models()["gpt2"]
    with pytest.raises(ValueError, match="num_beams=2 can't be streamed"):
        generate(model, [[5, 6]], 2, num_beams=2, streamer=TextStreamer(tokenizer))
    with pytest.raises(ValueError, match=r"prints one text, got the tokens of 2, \(2, 1\)"):
        generate(model, [[5], [6]], 2, streamer=TextStreamer(tokenizer))


def test_it_prints_at_once_and_ends_the_line(capsys):
    tokenizer = train_tokenizer([WORDS], "bpe", vocab_size=300)
    streamer = TextStreamer(tokenizer)
    for text in ("the", " cat"):
        streamer.put(np.array(tokenizer.encode(text)))
        assert capsys.readouterr().out == text
    streamer.end()
    assert capsys.readouterr().out == "\n"
