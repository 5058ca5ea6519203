"""Comparing a family with transformers: same weights, same inputs; outputs, gradients, files.

Weights go through files in both directions: transformers saves and we load, we save and
transformers loads. Gradients are compared under the hub's names, by letting each side save them as
if they were weights.
"""

import copy
import warnings

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.loading import hub_arrays
from glassformer.models.safetensors_file import open_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ATOL = {"float32": 1e-5, "float64": 1e-10}  # of outputs about 1 in size
GRADIENT = {"float32": 1e-4, "float64": 1e-9}  # relative to a tensor's largest gradient


def build(hf_class, config, dtype="float32", seed=0):
    """Return a model of transformers with random weights, biases and norms included."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = hf_class(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def as_torch(inputs):
    """The inputs as transformers takes them."""
    return {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }


def as_ours(inputs):
    """The inputs as we take them."""
    return {
        name: gf.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }


def compare(theirs, our_class, inputs, outputs, folder, real=None):
    """Check outputs, every gradient, and the way back.

    Args:
        theirs: a model of transformers.
        our_class: what loads it.
        inputs: arguments of both by name, arrays as NumPy's.
        outputs: names of the outputs to compare; `ours: theirs` where they differ. A loss among
            them is compared too, and gradients are those of the sum of all, each weighed at random.
        folder: an empty one.
        real: a mask (B, T) of tokens that count; what comes out at padding is nobody's business.
    """
    dtype = str(theirs.dtype).removeprefix("torch.")
    theirs.save_pretrained(folder / "theirs")
    ours = our_class.from_pretrained(folder / "theirs")
    assert {p.dtype.name for p in ours.parameters()} == {dtype}
    names = outputs if isinstance(outputs, dict) else {name: name for name in outputs}
    expected = theirs(**as_torch(inputs))
    found = ours(**as_ours(inputs))
    rng = np.random.default_rng(7)
    torch_sum, our_sum = 0.0, 0.0
    for our_name, their_name in names.items():
        wanted, got = getattr(expected, their_name), getattr(found, our_name)
        wanted_all = wanted if isinstance(wanted, tuple) else (wanted,)
        got_all = got if isinstance(got, tuple) else (got,)
        assert len(wanted_all) == len(got_all), our_name
        for w, g in zip(wanted_all, got_all, strict=True):
            assert g.shape == tuple(w.shape), our_name
            weight = rng.normal(size=w.shape).astype(dtype)
            if real is not None and w.shape[:2] == real.shape:
                weight = weight * real.reshape(real.shape + (1,) * (w.ndim - 2))
            counts = weight != 0
            size = max(1.0, float(w.detach().abs().max()))
            np.testing.assert_allclose(
                np.where(counts, g.detach().numpy(), 0),
                np.where(counts, w.detach().numpy(), 0),
                atol=ATOL[dtype] * size,
                rtol=0,
                err_msg=our_name,
            )
            mask = torch.tensor(counts)
            torch_sum = torch_sum + torch.where(mask, w * torch.tensor(weight), 0).sum()
            our_sum = our_sum + gf.where(gf.tensor(counts), g * gf.tensor(weight), 0.0).sum()
    compare_gradients(theirs, ours, torch_sum, our_sum, folder)
    compare_way_back(theirs, ours, inputs, names, folder)
    return ours


def compare_gradients(theirs, ours, torch_sum, our_sum, folder):
    """Check the gradient of every parameter, under the hub's names."""
    dtype = str(theirs.dtype).removeprefix("torch.")
    torch_sum.backward()
    our_sum.backward()
    gradients = copy.deepcopy(theirs)
    with torch.no_grad():
        for parameter, source in zip(gradients.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    gradients.save_pretrained(folder / "gradients")
    mine = {
        name: gf.zeros(*p.shape, dtype=p.dtype) if p.grad is None else p.grad
        for name, p in ours.named_parameters()
    }
    mine = hub_arrays(ours, mine)
    with open_weights(folder / "gradients") as wanted:
        missed = [name for name in wanted.keys() if name not in mine]  # noqa: SIM118
        buffers = [n for n in missed if n.endswith((*ours.ignored_keys, *BUFFERS))]
        assert missed == buffers
        largest = max(float(np.abs(wanted.array(name)).max(initial=0)) for name in mine)
        for name, got in mine.items():
            want = wanted.array(name)
            # Some are 0 but for rounding, such as those of keys' biases, which softmax doesn't see.
            size = max(float(np.abs(want).max()), largest / 100)
            np.testing.assert_allclose(
                got, want, atol=GRADIENT[dtype] * size, rtol=0, err_msg=f"gradient of {name}"
            )


BUFFERS = ("final_logits_bias", "inv_freq")


def compare_way_back(theirs, ours, inputs, names, folder):
    """Check that transformers loads what we save, without a word, to the same outputs."""
    ours.save_pretrained(folder / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back, info = type(theirs).from_pretrained(
            folder / "ours", output_loading_info=True, attn_implementation="eager"
        )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert back.dtype == theirs.dtype
    kept = back.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in theirs.state_dict().items())
    again, before = back.eval()(**as_torch(inputs)), theirs(**as_torch(inputs))
    for name in names.values():
        first, second = getattr(again, name), getattr(before, name)
        if isinstance(first, tuple):
            first, second = first[-1], second[-1]
        # Equal weights at other addresses: a vectorised sum may be grouped in another way.
        torch.testing.assert_close(first, second, rtol=1e-5, atol=ATOL[str(back.dtype)[6:]])
