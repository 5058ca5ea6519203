"""Folders of sentence-transformers: every pooling, dense layers, and what is refused."""

import json

import numpy as np
import pytest

import glassformer as gf
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models import WeightsError
from glassformer.models.bert import BertConfig, BertModel
from glassformer.models.llama import LlamaConfig, LlamaModel
from glassformer.models.safetensors_file import write_safetensors
from glassformer.pipelines.sentence_dense import ACTIVATIONS

pytest.importorskip("tokenizers")

WORDS = "the cat sat on a mat in old paris while ann lee and bob smith went home to rome again"
TEXTS = ["the cat sat", "ann lee and bob smith went home to rome", "", "paris"]
WIDTH = 16
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(5, WIDTH)), RNG.normal(size=5)

# The formulas of the papers and of sentence-transformers, of states (T, C), each a line.
POOLED = {
    "cls": lambda x: x[0],
    "max": lambda x: np.max(x, axis=0),
    "mean": lambda x: sum(x) / len(x),
    "mean_sqrt_len_tokens": lambda x: sum(x) / len(x) ** 0.5,
    "weightedmean": lambda x: (
        sum((t + 1) * row for t, row in enumerate(x)) / sum(t + 1 for t in range(len(x)))
    ),
    "lasttoken": lambda x: x[len(x) - 1],
}
FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
SEVERAL = ("lasttoken", "cls", "weightedmean")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's folder, and the states of each text's tokens, computed one text at a time."""
    gf.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([WORDS] * 3, "wordpiece", vocab_size=120)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    extract = gf.pipeline("feature-extraction", folder)
    return folder, [np.array(extract(text)[0]) for text in TEXTS]


def write_modules(folder, *kinds):
    modules = [{"path": f"{i}_{kind}" if i else "", "type": kind} for i, kind in enumerate(kinds)]
    for module in modules[1:]:
        (folder / module["path"]).mkdir(exist_ok=True)
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type']}"
    (folder / "modules.json").write_text(json.dumps(modules))


def write_pooling(folder, settings):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def write_dense(folder, weight, vector=None, **settings):
    usual = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    usual |= {"bias": vector is not None}
    (folder / "config.json").write_text(json.dumps({**usual, **settings}))
    arrays = {"linear.weight": weight} | ({} if vector is None else {"linear.bias": vector})
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    write_safetensors(folder / "model.safetensors", arrays)


@pytest.fixture
def folder(base, tmp_path):
    for path in base[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_modules(tmp_path, "Transformer", "Pooling", "Dense", "Normalize")
    write_pooling(tmp_path, {"pooling_mode": "mean"})
    write_dense(tmp_path / "2_Dense", WEIGHT, BIAS)
    return tmp_path


@pytest.mark.parametrize("ways", [*((way,) for way in POOLED), SEVERAL])
def test_poolings_are_their_formulas(ways, folder, base):
    write_modules(folder, "Transformer", "Pooling")
    wanted = [np.concatenate([POOLED[way](x) for way in ways]) for x in base[1]]
    write_pooling(folder, {"pooling_mode": ways[0] if len(ways) == 1 else list(ways)})
    found = gf.pipeline("sentence-embedding", folder)(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # Older files have a flag for each, whose order is always the same.
    flags = {f"pooling_mode_{name}": way in ways for way, name in FLAGS.items()}
    write_pooling(folder, {"word_embedding_dimension": WIDTH, **flags})
    in_order = [way for way in POOLED if way in ways]
    wanted = [np.concatenate([POOLED[way](x) for way in in_order]) for x in base[1]]
    found = gf.pipeline("sentence-embedding", folder)(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", POOLED)
def test_a_decoders_padding_counts_nowhere(way, side, base):
    tokenizer = gf.data.AutoTokenizer.from_pretrained(base[0])
    tokenizer.padding_side = side
    shape = {"hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 1}
    model = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **shape))
    embed = gf.pipeline("sentence-embedding", model, tokenizer, pooling=way)
    np.testing.assert_allclose(embed(TEXTS), [embed(text) for text in TEXTS], atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_dense_layer_is_pytorchs(activation, folder, base):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(WIDTH, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHT))
        layer.bias.copy_(torch.tensor(BIAS))
        pooled = torch.tensor(np.array([x.mean(0) for x in base[1]]), dtype=torch.float32)
        act = getattr(torch.nn, activation.rpartition(".")[2])()
        assert f"{type(act).__module__}.{type(act).__name__}" == activation
        wanted = torch.nn.functional.normalize(act(layer(pooled))).numpy()
    write_dense(folder / "2_Dense", WEIGHT, BIAS, activation_function=activation)
    embed = gf.pipeline("sentence-embedding", folder)
    np.testing.assert_allclose(embed(TEXTS), wanted, atol=1e-5)
    assert embed([]).shape == (0, 5)


def test_layers_follow_each_other_and_tanh_is_usual(folder, base):
    second = RNG.normal(size=(3, 5))
    write_modules(folder, "Transformer", "Pooling", "Dense", "Dense")
    (folder / "3_Dense").mkdir(exist_ok=True)
    identity = "torch.nn.modules.linear.Identity"
    write_dense(folder / "3_Dense", second, activation_function=identity)
    pooled = np.array([x.mean(0) for x in base[1]])
    wanted = np.tanh(pooled @ WEIGHT.T + BIAS) @ second.T
    found = gf.pipeline("sentence-embedding", folder)
    np.testing.assert_allclose(found(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(found(TEXTS[0]), wanted[0], atol=1e-5)
    np.testing.assert_allclose(found(TEXTS, dense=()), pooled, atol=1e-5)


def dense(**settings):
    return lambda folder: write_dense(folder / "2_Dense", WEIGHT, BIAS, **settings)


def pooling(**settings):
    return lambda folder: write_pooling(folder, settings)


def modules(*kinds):
    return lambda folder: write_modules(folder, *kinds)


def without(path):
    return lambda folder: (folder / path).unlink()


def config_without_width(folder):
    (folder / "2_Dense" / "config.json").write_text('{"out_features": 5}')


REFUSED = {
    "another module": (modules("Transformer", "LSTM"), "a module 'LSTM'; supported are Transf"),
    "a layer before the pooling": (
        modules("Transformer", "Dense", "Pooling"),
        "a Dense that is not between Pooling and Normalize",
    ),
    "a pooling of later days": (
        pooling(pooling_mode="attention"),
        "has pooling_mode 'attention'; supported are cls, max, mean, mean_sqrt_len_tokens, weigh",
    ),
    "none of several": (pooling(pooling_mode=[]), r"has pooling_mode \[\]; supported are"),
    "a flag of later days": (
        pooling(pooling_mode_attention=True),
        "asks for pooling_mode_attention; supported are pooling_mode_cls_token,",
    ),
    "a flag that is none": (
        pooling(pooling_mode_cls_token="yes"),
        "pooling_mode_cls_token must be bool, got 'yes'",
    ),
    "code of the folder's": (
        dense(activation_function="os.system"),
        r"activation_function 'os.system' is none of torch\.nn\.modules\.activation\.GELU, ",
    ),
    "an activation of another place": (
        dense(activation_function="my.Tanh"),
        "activation_function 'my.Tanh' is none of",
    ),
    "a layer of tokens": (
        dense(module_input_name="token_embeddings"),
        "module_input_name='token_embeddings' is not supported, only 'sentence_embedding' is",
    ),
    "a residual": (dense(use_residual=True), "use_residual=True is not supported"),
    "a width of another type": (dense(in_features="16"), "in_features must be int, got '16'"),
    "no width": (config_without_width, "it says no in_features"),
    "weights of another width": (
        dense(in_features=7),
        r"holds 'linear.bias' \(5,\), 'linear.weight' \(5, 16\), but .*'linear.weight' \(5, 7\)",
    ),
    "a bias too many": (dense(bias=False), r"asks for 'linear.weight' \(5, 16\); get both again"),
    "no weights": (
        without("2_Dense/model.safetensors"),
        "2_Dense has no model.safetensors, and pickles are never read; .* writes it",
    ),
    "no config": (without("2_Dense/config.json"), "2_Dense/config.json: the file is missing"),
}


@pytest.mark.parametrize("change, said", REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_told_in_a_line(change, said, folder):
    change(folder)
    with pytest.raises(WeightsError, match=said) as caught:
        gf.pipeline("sentence-embedding", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}x", "[1]", '[{"type": 3, "path": ""}]', '[{"path": ""}]'])
def test_modules_that_are_no_list_are_told(text, folder):
    (folder / "modules.json").write_text(text)
    with pytest.raises(WeightsError, match=r"modules.json: not a list of modules"):
        gf.pipeline("sentence-embedding", folder)


def test_a_layer_that_does_not_fit_the_pooling_is_told(folder):
    embed = gf.pipeline("sentence-embedding", folder, pooling=("cls", "mean"))
    with pytest.raises(ValueError, match="takes vectors of 16 channels, but pooling .* makes 32"):
        embed("the cat")


def test_a_vector_of_zeros_has_no_direction(base):
    """And stays zero, rather than NaN."""
    folder, _ = base
    embed = gf.pipeline("sentence-embedding", folder, normalize=True)
    with gf.no_grad():
        for parameter in embed.model.parameters():
            parameter.zero_()
    assert not embed(TEXTS[0]).any()
