"""`generate --model FOLDER --chat`, as typed."""

import json

import pytest

import glassformer as gf
from glassformer.data.chat_sandbox import _compiled
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.gpt2 import GPT2Config, GPT2LMHeadModel
from glassformer.models.t5 import T5Config, T5ForConditionalGeneration
from tests.cli.commands import assert_refused, runner

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

TEMPLATE = """\
{%- if messages[0].content == 'no' %}{{ raise_exception('Not that.') }}{% endif %}
{%- for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture
def call(capsys):
    return runner(capsys)


@pytest.fixture
def folder(tmp_path):
    gf.manual_seed(0)
    tokenizer = train_tokenizer(["a cat and b cats"] * 3, vocab_size=280)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_text_is_a_users_message(call, folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\nb\n")
    argv = ["generate", "--model", folder, "--max-new-tokens", 4]
    chat = gf.pipeline("text-generation", folder, max_new_tokens=4, do_sample=False)
    for options, before in (
        ([], []),
        (["--system", "cats"], [{"role": "system", "content": "cats"}]),
    ):
        result = call(*argv, "--chat", *options, "--input", texts)
        assert (result.status, result.err) == (0, "")
        rows = [json.loads(line) for line in result.out.splitlines()]
        wanted = [
            {
                "text": text,
                "generated_text": chat(prompt, return_full_text=False)[0]["generated_text"],
            }
            for text in ("a cat", "b")
            for prompt in [[*before, {"role": "user", "content": text}]]
        ]
        assert rows == wanted
    assert json.loads(call(*argv, "--chat", "--prompt", "b").out) != json.loads(
        call(*argv, "--prompt", "b").out
    )


def test_what_does_not_fit_is_refused(call, folder, tmp_path):
    argv = ["generate", "--model", folder, "--prompt"]
    assert_refused(call(*argv, "a", "--system", "b"), "--system", "--chat")
    assert_refused(call(*argv, "no", "--chat"), "refuses this conversation: Not that.")
    assert_refused(call("generate", tmp_path, "--chat"), "--chat goes with --model")
    assert_refused(call("generate", tmp_path, "--system", "a"), "--system goes with --model")
    (folder / "chat_template.jinja").unlink()
    assert_refused(call(*argv, "a", "--chat"), "no chat template")
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=280, decoder_start_token_id=0, **settings)
    ).save_pretrained(folder)
    assert_refused(call(*argv, "a", "--chat"), "--chat needs a model that continues")


def test_without_jinja_it_says_what_to_install(call, folder, monkeypatch):
    def missing(name):
        raise ImportError(name)

    _compiled.cache_clear()
    monkeypatch.setattr("glassformer.data.chat_sandbox.import_module", missing)
    result = call("generate", "--model", folder, "--prompt", "a", "--chat")
    assert_refused(result, "jinja2", "pip install glassformer[hub]")
