"""Carrying weights and gradients between torch.nn and glassformer, and comparing them."""

import re
from collections.abc import Callable

import numpy as np
import torch

import glassformer as gf

# Tensors here are tiny: handing them to a second thread takes longer than the work.
torch.set_num_threads(1)

FLOAT64_TOLERANCE = 1e-10  # forward and gradients of layers, as the project promises

# torch.nn's names in encoder and decoder layers, and ours. The first rule that fits is applied,
# after those of attention, whose parameters are named alike.
ENCODER_NAMES = {
    r"(^|\.)layers\.": r"\1blocks.",
    r"(^|\.)linear([12])\.": r"\1feed_forward.linear\2.",
    r"(^|\.)norm1\.": r"\1self_attn_norm.",
    r"(^|\.)norm2\.": r"\1feed_forward_norm.",
}
DECODER_NAMES = {
    r"(^|\.)multihead_attn\.": r"\1cross_attn.",
    r"(^|\.)norm2\.": r"\1cross_attn_norm.",
    r"(^|\.)norm3\.": r"\1feed_forward_norm.",
}


def same_name(name: str) -> str:
    return name


def encoder_name(name: str) -> str:
    return _renamed(name, ENCODER_NAMES)


def decoder_name(name: str) -> str:
    return _renamed(name, {**ENCODER_NAMES, **DECODER_NAMES})


def _renamed(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def ours(tensor: torch.Tensor, requires_grad: bool = False) -> gf.Tensor:
    """A copy of a torch tensor."""
    return gf.tensor(tensor.detach().numpy(), requires_grad=requires_grad)


def copy_weights(
    model: gf.nn.Module, torch_model: torch.nn.Module, rename: Callable[[str], str] = same_name
) -> None:
    """Give `model` the weights (and the dtype) of `torch_model`, every one of them."""
    model.to("float64")
    state = torch_model.state_dict()
    model.load_state_dict({rename(name): ours(value) for name, value in state.items()})


def assert_close(actual: gf.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == tuple(expected.shape), what
    np.testing.assert_allclose(
        actual.detach().numpy(),
        expected.detach().numpy(),
        rtol=tolerance,
        atol=tolerance,
        err_msg=what,
    )


def assert_same_gradients(
    model: gf.nn.Module,
    torch_model: torch.nn.Module,
    rename: Callable[[str], str] = same_name,
    tolerance: float = FLOAT64_TOLERANCE,
) -> None:
    """Compare the gradient of every parameter of either model."""
    parameters = dict(model.named_parameters())
    expected = {rename(name): p.grad for name, p in torch_model.named_parameters()}
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and expected[name] is not None, name
        assert_close(parameter.grad, expected[name], tolerance, f"gradient of {name}")


def randomize_(torch_model: torch.nn.Module) -> torch.nn.Module:
    """Draw every parameter anew: zero biases and unit gains would hide what is done with them."""
    with torch.no_grad():
        for parameter in torch_model.parameters():
            parameter.normal_(0, 0.5)
    return torch_model.double()
