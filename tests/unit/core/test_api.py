"""The names that users of PyTorch expect, as functions and as methods."""

import pytest

import glassformer as gf


def words(text):
    return text.split()


BOTH = words(
    """
    add sub mul div pow eq ne lt le gt ge exp log sqrt rsqrt tanh sigmoid erf relu abs clamp
    maximum minimum where masked_fill sum mean var max min argmax logsumexp cumsum any all
    reshape transpose permute squeeze unsqueeze split chunk flip roll tril triu broadcast_to
    gather scatter_add index_select take_along_dim topk sort matmul bmm outer isnan isfinite
    """
)
FUNCTIONS = ["cat", "stack", "pad", "embedding", "one_hot", "einsum", "conv1d", "conv2d"]
METHODS = ["view", "expand"]  # as in PyTorch, which has no such functions


@pytest.mark.parametrize("name", BOTH + FUNCTIONS)
def test_is_a_function(name):
    assert callable(getattr(gf, name)) and name in gf.__all__


@pytest.mark.parametrize("name", BOTH + METHODS)
def test_is_a_method(name):
    assert callable(getattr(gf.Tensor, name))


def test_method_and_function_are_one():
    for name in BOTH:
        if name != "where":  # the method's condition is its second argument
            assert getattr(gf.Tensor, name) is getattr(gf, name), name


def test_every_public_name_exists_and_is_documented():
    for name in gf.__all__:
        value = getattr(gf, name)
        if callable(value) and not isinstance(value, gf.DType):
            assert value.__doc__, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tenser'"):
        gf.tenser  # noqa: B018
