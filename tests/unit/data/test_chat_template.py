import importlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import AutoTokenizer
from glassformer.data.chat_sandbox import ChatTemplateError, _compiled, render_template
from glassformer.data.tokenizer_files import TokenizerError
from glassformer.data.tokenizer_training import train_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
CHAT = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "b cat"}]


@pytest.fixture
def tokenizer():
    made = train_tokenizer(["a cat and b cats"] * 3, vocab_size=280)
    made.chat_template = PLAIN
    return made


def test_the_ids_are_those_of_the_text_alone(tokenizer):
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == "<user>a cat</user><assistant>b cat</assistant>"
    found = tokenizer.apply_chat_template(CHAT)
    assert found == tokenizer(text, add_special_tokens=False)
    assert tokenizer.decode(found["input_ids"]) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ ('{0.__class__}'|attr('format'))('') }}",
        "{{ ['{0.__class__}']|map('format', '')|first }}{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ dict.mro() }}",
        "{{ namespace.mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ open('/etc/passwd') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_hostile_template_reaches_nothing(template, tokenizer):
    try:
        found = tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False)
    except ChatTemplateError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert found == ""  # an attribute that isn't given is undefined, and that is written as ""
    assert CHAT[0] == {"role": "user", "content": "a cat"}


class Loaded:
    """An object with a method that a template must not call."""

    fired = False

    def fire(self):
        Loaded.fired = True


def test_a_template_sees_plain_values_only(tokenizer):
    chat = [{"role": "user", "content": Loaded()}]
    with pytest.raises(ChatTemplateError, match="fire"):
        tokenizer.apply_chat_template(chat, chat_template="{{ messages[0].content.fire() }}")
    assert not Loaded.fired
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<user><Loaded></user>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Only\n one!') }}", "refuses this conversation: Only one!"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ missing.name }}", "'missing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_says_so(template, message, tokenizer):
    with pytest.raises(ChatTemplateError, match=re.escape(message)):
        tokenizer.apply_chat_template(CHAT, chat_template=template)


@pytest.mark.parametrize(
    ("conversation", "options", "error", "message"),
    [
        ([], {}, ValueError, "the conversation is empty"),
        ([CHAT, []], {}, ValueError, "the conversation is empty"),
        ("hi", {}, TypeError, "a list of messages .* got str 'hi'"),
        (CHAT[0], {}, TypeError, "a list of messages .* got dict"),
        (["hi"], {}, TypeError, "a message must be a dict.*'hi'"),
        ([CHAT, "hi"], {}, TypeError, "several conversations .*'hi'"),
        (CHAT, {"chat_template": 3}, TypeError, "got int"),
        (CHAT, {"tools": [len]}, TypeError, "tools must be .*JSON schemas.*get_json_schema"),
        (CHAT, {"documents": ["text"]}, TypeError, "documents must be .*'text'"),
        (CHAT, {"messages": []}, TypeError, "messages is an argument"),
        (CHAT, {"sanitize_control_tokens": True}, ValueError, "isn't supported"),
        (
            CHAT,
            {"continue_final_message": True, "add_generation_prompt": True},
            ValueError,
            "choose one",
        ),
        (CHAT, {"continue_final_message": "thoughts"}, ValueError, "no 'thoughts', only role, con"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            {"continue_final_message": True},
            ValueError,
            "has no text",
        ),
        (
            CHAT,
            {"continue_final_message": True, "chat_template": "{{ messages[0].role }}"},
            ChatTemplateError,
            "never reads 'content'",
        ),
        (
            CHAT,
            {"continue_final_message": True, "chat_template": "{{ messages[0].content }}"},
            ChatTemplateError,
            "doesn't write the whole last message",
        ),
        (
            CHAT,
            {"return_assistant_tokens_mask": True, "return_dict": False},
            ValueError,
            "needs tokenize=True and return_dict=True",
        ),
        (
            CHAT,
            {
                "return_assistant_tokens_mask": True,
                "chat_template": "{% generation %}a{% endgeneration %}",
                "tokenizer_kwargs": {"return_overflowing_tokens": True},
            },
            ValueError,
            "choose one",
        ),
    ],
)
def test_arguments_that_do_not_fit(conversation, options, error, message, tokenizer):
    with pytest.raises(error, match=message):
        tokenizer.apply_chat_template(conversation, **options)


def test_no_template_and_no_default(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match=r"no chat template.*set tokenizer\.chat_template"):
        tokenizer.apply_chat_template(CHAT)
    tokenizer.chat_template = {"rag": PLAIN, "tools": PLAIN}
    with pytest.raises(ChatTemplateError, match="no default.*: rag, tools"):
        tokenizer.apply_chat_template(CHAT)
    assert tokenizer.apply_chat_template(CHAT, chat_template="rag", tokenize=False)


def test_without_jinja_it_says_what_to_install(tokenizer, monkeypatch):
    _compiled.cache_clear()
    real = importlib.import_module

    def missing(name, *rest):
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("glassformer.data.chat_sandbox.import_module", missing)
    with pytest.raises(ImportError, match=r"jinja2.*pip install glassformer\[hub\]"):
        tokenizer.apply_chat_template(CHAT)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.1.5")
    with pytest.raises(ImportError, match=r"3\.1\.5 has known ways out.*3\.1\.6"):
        tokenizer.apply_chat_template(CHAT)


def test_a_mask_that_the_template_does_not_mark_is_told_of(tokenizer):
    with pytest.warns(UserWarning, match="mask is all 0"):
        found = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True)
    assert set(found["assistant_masks"]) == {0}


def test_the_mask_ends_where_the_row_is_cut_or_padded(tokenizer):
    marked = "{{ messages[0].content }}{% generation %}🎉🎉{% endgeneration %}"
    options = {"chat_template": marked, "return_assistant_tokens_mask": True}
    whole = tokenizer.apply_chat_template(CHAT, **options)["assistant_masks"]
    tokenizer.pad_token = tokenizer.eos_token
    cut = tokenizer.apply_chat_template(CHAT, truncation=True, max_length=5, **options)
    assert cut["assistant_masks"] == whole[:5]
    padded = tokenizer.apply_chat_template(CHAT, padding="max_length", max_length=20, **options)
    assert padded["assistant_masks"] == whole + [0] * (20 - len(whole))
    assert sum(whole) == 8 and whole[-8:] == [1] * 8  # four bytes each, none of them merged


@given(texts=st.lists(st.text(), max_size=4), kept=st.text())
def test_generation_marks_leave_the_text_as_it_is(texts, kept):
    template = (
        "{{ kept }}{% for t in texts %}{% generation %}{{ t }}{% endgeneration %}|{% endfor %}"
    )
    values = {"kept": kept, "texts": texts}
    text, spans = render_template(template, values, find_generation=True)
    assert text == render_template(template, values)[0] == kept + "".join(f"{t}|" for t in texts)
    assert [text[start:end] for start, end in spans] == texts


@pytest.mark.parametrize(
    "value", [3, ["x"], [{"name": "a"}], [{"name": "a", "template": 1}], {"a": 1}, {"a": None}]
)
def test_templates_that_are_none_are_refused(value, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": value}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: chat_template must be"):
        AutoTokenizer.from_pretrained(tmp_path)
    given = AutoTokenizer.from_pretrained(tmp_path, chat_template=PLAIN)
    assert given.chat_template == PLAIN


def test_what_is_saved_replaces_what_was_there(tokenizer, tmp_path):
    for templates in (
        {"default": PLAIN, "rag": "{{ 1 }}"},
        PLAIN,
        {"tool_use": PLAIN, "é": ""},
        None,
    ):
        tokenizer.chat_template = templates
        paths = tokenizer.save_pretrained(tmp_path)
        assert sorted(paths) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
        assert AutoTokenizer.from_pretrained(tmp_path).chat_template == templates


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "a\\b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(
    name, tokenizer, tmp_path
):
    tokenizer.chat_template = {name: PLAIN}
    with pytest.raises(ValueError, match="another name"):
        tokenizer.save_pretrained(tmp_path / "folder")
    assert not list(tmp_path.rglob("*.jinja"))


def test_templates_keep_their_line_ends(tokenizer, tmp_path):
    tokenizer.chat_template = "a\r\nb\n\n"
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "a\r\nb\n\n"
