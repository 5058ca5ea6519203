"""Chat templates against Hugging Face's: text, ids, files in both directions, the pipeline."""

import enum
import json

import numpy as np
import pytest

import glassformer as gf
from glassformer.data import AutoTokenizer
from glassformer.data.tokenizer_training import train_tokenizer
from tests.parity.hub import build, torch, transformers

pytest.importorskip("jinja2")

MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
TEMPLATES = {
    "turns": """\
{% if messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{% endif %}
{% for message in messages %}
    {% set text = message['content'] %}
{{ '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "stripped": """\
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}{%- set system, turns = '', messages %}{%- endif %}
{%- for turn in turns %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate.') }}
    {%- endif %}
    {%- if loop.first %}{{ bos_token + system | trim }}{% endif %}
    {%- if turn.role == 'user' %}{{ '[Q] ' + turn.content | trim + ' [A]' }}
    {%- else %}{{ ' ' + turn['content'] | trim + ' ' + eos_token }}{%- endif %}
{%- endfor %}
""",
    "thorough": """\
{%- set ns = namespace(last=-1, count=0) %}
{%- for message in messages %}
    {%- if message is not defined %}{%- break %}{%- endif %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- continue %}{%- endif %}
    {%- set ns.count = ns.count + 1 %}
{%- endfor %}
{{- 'last ' ~ ns.last ~ ' others ' ~ ns.count ~ ' in ' ~ strftime_now('%Y') }}
{%- for tool in tools or [] %}{{ '\\n' + tool | tojson(indent=2) }}{% endfor %}
{%- for one in documents or [] %}{{ '\\n' + one.title + ': ' + one.text }}{% endfor %}
{%- for message in messages %}
    {{- '\\n' + message.role + (' ' + mood if mood is defined else '') + '> ' }}
    {%- if message.content is string %}{{ message.content }}
    {%- elif message.content is defined %}
        {%- for block in message.content %}
            {{- block.text if block.type == 'text' else '<image>' }}
        {%- endfor %}
    {%- endif %}
    {%- if message.reasoning_content %}{{ '(' + message.reasoning_content + ')' }}{% endif %}
    {%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
    {%- set extra = dict(a=1) %}{{ extra | length }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\nassistant> ' }}{% endif %}
""",
    "marked": MARKED,
}


class Role(str, enum.Enum):
    USER = "user"


ASKED = [{"role": "user", "content": "The cat sat?"}]
ANSWERED = [
    {"role": "system", "content": " Say little. "},
    {"role": "user", "content": 'naïve 漢字 🎉 <b>"it\'s"</b> & <|im_end|>'},
    {"role": "assistant", "content": "  Yes, the old cat.\n"},
    {"role": "user", "content": "On a mat?\n\n"},
    {"role": "assistant", "content": "On a mat, in Paris. "},
]
ARGUMENTS = {"at": "naïve <mat>", "n": np.int64(3)}
RICH = [
    {
        "role": Role.USER,
        "content": [{"type": "image", "image": np.zeros(2)}, {"type": "text", "text": "cat"}],
    },
    {
        "role": "assistant",
        "content": None,
        "thinking": "a mat",
        "tool_calls": [{"function": {"name": "look", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "content": "no mat", "name": None},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Löök at <it>."}}]
DOCUMENTS = [{"title": "Cats", "text": "sit"}, {"title": "Mats", "text": "lie"}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a byte-level tokenizer that has no template."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = train_tokenizer(
        ["The old cat sat on a mat in Paris, on a mat."] * 3,
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def both(plain):
    """A function that gives our tokenizer and theirs with a template of `TEMPLATES`."""
    ours = AutoTokenizer.from_pretrained(plain)
    theirs = transformers.AutoTokenizer.from_pretrained(plain)

    def make(name):
        ours.chat_template = theirs.chat_template = TEMPLATES.get(name, name)
        return ours, theirs

    return make


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("conversation", [ASKED, ANSWERED, [ASKED, ANSWERED, ASKED], [ASKED]])
def test_text_and_ids(name, prompts, conversation, both):
    ours, theirs = both(name)
    for options in (
        {"tokenize": False},
        {},
        {"return_dict": False},
        {"padding": True},
        {"truncation": True, "max_length": 9},
        {"padding": "max_length", "max_length": 150},
        {"padding": True, "return_tensors": "np"},
        {"padding": True, "return_tensors": "np", "return_dict": False},
    ):
        wanted = theirs.apply_chat_template(conversation, add_generation_prompt=prompts, **options)
        found = ours.apply_chat_template(conversation, add_generation_prompt=prompts, **options)
        same(found, wanted)


def same(found, wanted):
    if hasattr(wanted, "keys"):
        assert list(found) == list(wanted)
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    else:
        assert type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": TOOLS},
        {"tools": TOOLS, "documents": DOCUMENTS, "mood": "glad"},
        {"mood": np.str_("sad"), "bos_token": "<mine>", "add_generation_prompt": True},
    ],
)
@pytest.mark.parametrize("conversation", [RICH, ANSWERED])
def test_tools_documents_blocks_thoughts_and_variables(options, conversation, both):
    ours, theirs = both("thorough")
    wanted = theirs.apply_chat_template(conversation, tokenize=False, **options)
    assert ours.apply_chat_template(conversation, tokenize=False, **options) == wanted
    name = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ messages | tojson }}"
    ours, theirs = both(name)
    wanted = theirs.apply_chat_template(conversation, tokenize=False, **options)
    assert ours.apply_chat_template(conversation, tokenize=False, **options) == wanted


@pytest.mark.parametrize("name", ["turns", "stripped", "thorough"])
def test_a_last_message_left_open(name, both):
    ours, theirs = both(name)
    for conversation in (ANSWERED, [ASKED, ANSWERED], ANSWERED[:3]):
        options = {"continue_final_message": True, "tokenize": False}
        wanted = theirs.apply_chat_template(conversation, **options)
        assert ours.apply_chat_template(conversation, **options) == wanted
    if name == "thorough":
        for field, last in (
            ("reasoning_content", {"content": "", "thinking": "on a mat "}),
            (True, {"content": [{"type": "text", "text": "on "}, {"type": "image"}]}),
        ):
            conversation = [*ASKED, {"role": "assistant", **last}]
            options = {"continue_final_message": field, "tokenize": False}
            wanted = theirs.apply_chat_template(conversation, **options)
            assert ours.apply_chat_template(conversation, **options) == wanted


@pytest.mark.parametrize("tensors", [None, "np"])
@pytest.mark.parametrize("conversation", [ANSWERED, [ANSWERED, ASKED]])
def test_what_the_assistant_said(tensors, conversation, both):
    ours, theirs = both("marked")
    options = {"return_assistant_tokens_mask": True, "padding": True, "return_tensors": tensors}
    found, wanted = (one.apply_chat_template(conversation, **options) for one in (ours, theirs))
    same(found, wanted)
    ids, mask = (np.array(found[name]) for name in ("input_ids", "assistant_masks"))
    said = ours.decode(ids[mask == 1])
    assert said == "  Yes, the old cat.\n<|im_end|>On a mat, in Paris. <|im_end|>"


def place(folder, plain, form):
    """A folder that has its templates in one of the forms that the hub serves."""
    for path in plain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if form == "string":
        config["chat_template"] = TEMPLATES["turns"]
    elif form == "list":
        named = {"default": "turns", "tool_use": "thorough", "rag": "stripped"}
        config["chat_template"] = [
            {"name": name, "template": TEMPLATES[one]} for name, one in named.items()
        ]
    else:
        config["chat_template"] = "not this one"
        (folder / "chat_template.jinja").write_text(TEMPLATES["turns"])
    if form == "files":
        (folder / "additional_chat_templates").mkdir()
        for name, one in (("tool_use", "thorough"), ("rag", "stripped")):
            path = folder / "additional_chat_templates" / f"{name}.jinja"
            path.write_text(TEMPLATES[one])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", ["string", "list", "file", "files"])
def test_the_places_of_templates_and_the_way_back(form, plain, tmp_path):
    (tmp_path / "hub").mkdir()
    place(tmp_path / "hub", plain, form)
    ours = AutoTokenizer.from_pretrained(tmp_path / "hub")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    assert ours.chat_template == theirs.chat_template
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    files = [
        {path.relative_to(side): path.read_text() for path in side.rglob("*.jinja")}
        for side in (tmp_path / "ours", tmp_path / "theirs")
    ]
    assert files[0] == files[1] and files[0]
    assert "chat_template" not in json.loads(
        (tmp_path / "ours" / "tokenizer_config.json").read_text()
    )
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert back.chat_template == ours.chat_template
    choices = [{}, {"tools": TOOLS}]
    if form in ("list", "files"):
        choices += [{"chat_template": "rag"}, {"chat_template": "rag", "tools": TOOLS}]
    for options in choices:
        wanted = theirs.apply_chat_template(ANSWERED, tokenize=False, **options)
        for tokenizer in (ours, back):
            assert tokenizer.apply_chat_template(ANSWERED, tokenize=False, **options) == wanted


MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, plain, tmp_path_factory):
    """The folder of a small model for chats."""
    model_class, config_class = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    config = config_class(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=[0, 2],
        pad_token_id=0,
    )
    build(model_class, config, seed=3).save_pretrained(folder)
    place(folder, plain, "files")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"return_full_text": False},
        {"num_beams": 2, "num_return_sequences": 2},
        {"tools": TOOLS},
        {"continue_final_message": False},
        {"tokenizer_encode_kwargs": {"chat_template": TEMPLATES["thorough"], "mood": "glad"}},
    ],
)
def test_pipeline(settings, folder):
    settings = {"max_new_tokens": 6, "do_sample": False, **settings}
    ours = gf.pipeline("text-generation", folder)
    theirs = transformers.pipeline("text-generation", model=str(folder))
    chats = [ASKED, ANSWERED, ANSWERED[:4]]
    before = json.dumps(chats)
    with torch.no_grad():
        wanted = [theirs(chat, **settings) for chat in chats]
    assert [ours(chat, **settings) for chat in chats] == wanted
    assert ours(chats, **settings) == wanted
    assert ours(tuple(chats), **settings) == wanted
    assert list(ours(iter(chats), **settings)) == wanted
    assert json.dumps(chats) == before
    replies = [answer[0]["generated_text"] for answer in wanted]
    assert any(one if isinstance(one, str) else one[-1]["content"] for one in replies)


def test_texts_and_chats_together(folder):
    ours = gf.pipeline("text-generation", folder, max_new_tokens=4, do_sample=False)
    given = ["The cat", ASKED, "On a mat", ANSWERED]
    assert ours(given) == [ours(one) for one in given]
