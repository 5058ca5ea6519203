import pytest

import glassformer as gf
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.gpt2 import GPT2Config, GPT2LMHeadModel

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for b in m.content %}{{ b.text }}{% endfor %}{% endif %}"
    "</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "user", "content": "a cat"}]


@pytest.fixture(scope="module")
def write():
    """A pipeline of a small model with 64 positions."""
    gf.manual_seed(0)
    tokenizer = train_tokenizer(["a cat and b cats"] * 3, vocab_size=280)
    tokenizer.chat_template = TEMPLATE
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    return gf.pipeline(
        "text-generation", GPT2LMHeadModel(config), tokenizer, max_new_tokens=4, do_sample=False
    )


def text_of(write, prompt, **settings):
    return write(prompt, return_full_text=False, **settings)[0]["generated_text"]


def test_a_chat_is_its_text_with_the_beginning_of_an_answer(write):
    reply = text_of(write, "<user>a cat</user><assistant>")
    assert write(ASKED) == [{"generated_text": [*ASKED, {"role": "assistant", "content": reply}]}]
    assert text_of(write, ASKED) == reply
    assert len(ASKED) == 1


def test_the_assistants_message_is_gone_on_with_unless_told(write):
    begun = [*ASKED, {"role": "assistant", "content": "b "}]
    more = text_of(write, "<user>a cat</user><assistant>b ")
    assert write(begun)[0]["generated_text"] == [
        *ASKED,
        {"role": "assistant", "content": "b " + more},
    ]
    anew = text_of(write, "<user>a cat</user><assistant>b </assistant><assistant>")
    told = write(begun, continue_final_message=False)[0]["generated_text"]
    assert told == [*begun, {"role": "assistant", "content": anew}]
    user = write(ASKED, continue_final_message=True)[0]["generated_text"]
    assert user == [{"role": "user", "content": "a cat" + text_of(write, "<user>a cat")}]


def test_a_message_in_blocks_goes_on_in_the_last_text(write):
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}, {"type": "image"}]
    found = write([*ASKED, {"role": "assistant", "content": blocks}])[0]["generated_text"]
    more = text_of(write, "<user>a cat</user><assistant>a b")
    assert found[-1]["content"] == [blocks[0], {"type": "text", "text": "b" + more}, blocks[2]]
    assert blocks[1] == {"type": "text", "text": "b"}


def test_a_chat_too_long_is_not_cut_in_silence(write):
    long = [{"role": "user", "content": "a cat " * 40}]
    with pytest.raises(ValueError, match=r"chat has \d+ tokens, more than the 61 .*earliest"):
        write(long, max_new_tokens=4)
    ids = write.tokenizer("<user>" + "a cat " * 40)["input_ids"]
    for new in (1, 4):  # the last new token needs no position of the 64
        cut = text_of(write, long, truncation=True, max_new_tokens=new)
        kept = write.tokenizer.decode(ids[: 65 - new])
        assert cut == text_of(write, kept, max_new_tokens=new)


def test_a_prompt_too_long_leaves_room_for_what_is_asked(write):
    with pytest.warns(UserWarning, match="longer than the 55 tokens"):
        found = text_of(write, "a cat " * 40, max_new_tokens=10)
    ids = write.tokenizer("a cat " * 40)["input_ids"][:55]
    assert found == text_of(write, write.tokenizer.decode(ids), max_new_tokens=10)


@pytest.mark.parametrize(
    "prompt", [3, {"text": "a"}, [3], [[]], [["a"]], [ASKED, 3], [*ASKED, "b"]]
)
def test_other_prompts_are_refused(prompt, write):
    with pytest.raises(TypeError, match="text-generation|a str or a chat|a message must be a dict"):
        write(prompt)


def test_a_template_that_writes_nothing_says_so(write):
    with pytest.raises(ValueError, match="makes no text of this chat"):
        write(ASKED, tokenizer_encode_kwargs={"chat_template": "{# nothing #}"})


def test_a_tokenizer_without_a_template_says_so(write):
    plain = gf.pipeline(
        "text-generation", write.model, train_tokenizer(["a cat"] * 3, vocab_size=270)
    )
    with pytest.raises(ValueError, match="no chat template"):
        plain(ASKED)
