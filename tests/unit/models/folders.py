"""Tiny models of BERT in folders, and what is in them."""

import numpy as np

import glassformer as gf
from glassformer.models.bert import (
    BertConfig,
    BertModel,
)
from glassformer.models.safetensors_file import open_weights, write_weights

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
IDS = gf.tensor(np.arange(14).reshape(2, 7) * 3 % 50)


def config(**settings):
    return BertConfig(**{**SHAPE, **settings})


def saved(folder, model_class=BertModel, **settings):
    """A fresh model, its biases and gains random too, and its folder."""
    model = model_class(config(**settings)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def randomise(model):
    with gf.no_grad():
        for parameter in model.parameters():
            parameter.add_(gf.randn(*parameter.shape) * 0.1)


def rewrite(folder, change):
    """Replace the tensors of a folder by what `change` makes of them, a dict of arrays by key."""
    with open_weights(folder) as weights:
        arrays = {name: np.array(weights.array(name)) for name in weights}
    write_weights(folder, change(arrays), {"format": "pt"})


def keys(folder):
    with open_weights(folder) as weights:
        return set(weights)


def values(model):
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def assert_same(found, wanted, names=None):
    for name in wanted if names is None else names:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def bytes_held(model):
    return sum(parameter.array.nbytes for parameter in model.parameters())
