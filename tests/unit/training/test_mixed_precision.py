"""Training on another device, and in bfloat16 with float32 masters."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.training import Trainer, TrainerCallback, TrainingArguments
from glassformer.training.checkpoint import list_checkpoints, load_checkpoint, load_weights
from glassformer.training.mixed_precision import computing_in
from tests.device_calls import DEVICE, references, values
from tests.unit.training.models import Bigram, bits, small_gpt, windows

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _references():
    with references():
        yield


def trainer_in(folder, model=None, callbacks=(), **settings):
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "save_steps": 2,
        "disable_tqdm": True,
        "device": DEVICE,
        **settings,
    }
    arguments = TrainingArguments(str(folder), **settings)
    if model is None:
        gf.manual_seed(0)
        model = small_gpt(dropout=0.1)
    return Trainer(model, arguments, None, windows(), windows(seed=1), callbacks=callbacks)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def arrays_of(trainer):
    return {name: values(p) for name, p in trainer.model.named_parameters()}


class Look(TrainerCallback):
    """Sees parameters, gradients and the optimizer's state before and after every step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for parameter in kwargs["model"].parameters():
            self.seen += [("parameter", parameter), ("gradient", parameter.grad)]

    def on_optimizer_step(self, args, state, control, **kwargs):
        for held in kwargs["optimizer"].state.values():
            self.seen += [("state", value) for value in held.values() if hasattr(value, "dtype")]


# another device


def test_the_trainer_moves_model_and_batches(tmp_path):
    found = []
    for device in ("cpu", DEVICE):
        gf.manual_seed(0)
        model = Bigram(dropout=0.2)
        trainer = trainer_in(tmp_path / device, model, device=device, gradient_accumulation_steps=3)
        trainer.train()
        assert trainer.device.type == device
        assert {p.device.type for p in model.parameters()} == {device}
        evaluated = trainer.evaluate()["eval_loss"]
        predicted = trainer.predict(windows(seed=2)).predictions
        assert isinstance(predicted, np.ndarray)
        found.append([losses(trainer), evaluated, predicted, *arrays_of(trainer).values()])
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-8, atol=1e-9)


def test_a_model_stays_where_it_is_unless_told(tmp_path):
    model = small_gpt().to(DEVICE)
    trainer = trainer_in(tmp_path, model, device=None, max_steps=1)
    trainer.train()
    assert trainer.device is next(model.parameters()).device
    assert trainer.device.type == DEVICE
    assert (
        trainer_in(tmp_path, small_gpt().to(DEVICE), device=None, use_cpu=True).device.type == "cpu"
    )


# bfloat16


def test_training_in_bfloat16_learns(tmp_path):
    for model in (small_gpt(dropout=0.0), Bigram(dtype="float32")):
        trainer = trainer_in(tmp_path / type(model).__name__, model, bf16=True, max_steps=30)
        trainer.train()
        found = losses(trainer)
        assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.2


def test_forward_and_backward_are_bfloat16_and_all_that_stays_is_float32(tmp_path):
    look, inside = Look(), []
    trainer = trainer_in(
        tmp_path, callbacks=[look], bf16=True, max_steps=3, gradient_accumulation_steps=2
    )
    block = trainer.model.blocks[0]
    block.register_forward_hook(
        lambda module, args, out: inside.append((args[0].dtype, out.dtype, out.requires_grad))
    )
    trainer.train()
    kinds = {kind for kind, _ in look.seen}
    assert kinds == {"parameter", "gradient", "state"}
    assert {tensor.dtype for _, tensor in look.seen} == {gf.float32}
    assert set(inside) == {(gf.bfloat16, gf.bfloat16, True)}
    trainer.evaluate()
    assert inside[-1] == (gf.bfloat16, gf.bfloat16, False)
    checkpoint = load_checkpoint(list_checkpoints(tmp_path)[-1])
    saved = [*checkpoint.weights.values(), *checkpoint.optimizer.values()]
    assert {array.dtype for array in saved} == {np.dtype("float32")}


def test_updates_too_small_for_bfloat16_add_up(tmp_path):
    """Near 1 neighbours in bfloat16 are 1/128 apart: steps of 1e-4 would all be lost."""
    model = small_gpt(dropout=0.0)
    trainer = trainer_in(tmp_path, model, bf16=True, max_steps=20, learning_rate=1e-4)
    before = values(model.norm.weight)
    trainer.train()
    change = np.abs(values(model.norm.weight) - before)
    assert 5e-4 < change.max() < 2.1e-3


def test_gradients_of_bfloat16_are_near_those_of_float32(tmp_path):
    found = []
    for bf16 in (False, True):
        gf.manual_seed(0)
        look = Look()
        model = small_gpt(dropout=0.0)
        trainer_in(tmp_path / str(bf16), model, [look], bf16=bf16, max_steps=1).train()
        found.append([values(t) for kind, t in look.seen if kind == "gradient"])
    for exact, rounded in zip(*found, strict=True):
        scale = np.abs(exact).max()
        np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.1 * scale + 1e-4)
        assert not np.array_equal(rounded, exact) or scale == 0


def test_accumulated_gradients_are_summed_in_float32():
    """In bfloat16 1 + 1/256 is 1: of a hundred more micro-batches nothing would arrive."""
    layer = gf.nn.Linear(1, 1, bias=False).to(DEVICE)
    for scale in [1.0] + [1 / 256] * 100:
        with computing_in(layer):
            layer(gf.full((1, 1), scale, dtype="bfloat16", device=DEVICE)).sum().backward()
    assert layer.weight.grad.dtype is gf.float32
    assert layer.weight.grad.item() == 1 + 100 / 256


def test_the_masters_come_back_after_an_error():
    layer = gf.nn.Linear(2, 2).to(DEVICE)
    array = layer.weight.array
    with pytest.raises(ZeroDivisionError), computing_in(layer):
        assert layer.weight.dtype is gf.bfloat16
        raise ZeroDivisionError
    assert layer.weight.array is array


@pytest.mark.parametrize("bf16", [False, True])
def test_resuming_is_bitwise_equal_to_not_stopping(tmp_path, bf16):
    whole = trainer_in(tmp_path / "whole", bf16=bf16)
    whole.train()
    half = trainer_in(tmp_path / "half", bf16=bf16)
    half.train()  # to the end; resumed below from its middle
    for checkpoint in list_checkpoints(tmp_path / "half")[1:2]:
        again = trainer_in(tmp_path / "half", bf16=bf16)
        again.train(resume_from_checkpoint=str(checkpoint))
        assert bits(arrays_of(again)) == bits(arrays_of(whole))
        assert losses(again)[-1] == losses(whole)[-1]


def test_a_checkpoint_of_one_device_is_one_of_the_other(tmp_path):
    there = trainer_in(tmp_path, max_steps=4)
    there.train()
    saved = load_weights(there.save_model())
    here = trainer_in(tmp_path, device="cpu", max_steps=4)
    with pytest.warns(UserWarning, match="nothing is left to train"):
        here.train(resume_from_checkpoint=True)
    for name, parameter in here.model.named_parameters():
        assert parameter.device.type == "cpu"
        np.testing.assert_array_equal(parameter.detach().numpy(), saved[name])


def test_a_loss_that_is_not_finite_is_skipped(tmp_path):
    model = small_gpt(dropout=0.0)
    with gf.no_grad():
        model.norm.weight.fill_(float("inf"))
    trainer = trainer_in(tmp_path, model, bf16=True, max_steps=2, save_strategy="no")
    before = arrays_of(trainer)
    trainer.train()
    assert trainer.state.skipped_steps == 2
    assert bits(arrays_of(trainer)) == bits(before)


# what is refused


def test_bfloat16_needs_a_device_that_has_it(tmp_path):
    for settings in ({"device": "cpu"}, {"device": None, "use_cpu": True}, {"device": None}):
        with pytest.raises(ValueError, match="'cuda' or 'torch-cpu'; 'cpu' is NumPy") as raised:
            trainer_in(tmp_path, bf16=True, **settings)
        assert "\n" not in str(raised.value)


def test_masters_must_be_wide(tmp_path):
    model = small_gpt().to(DEVICE).to("bfloat16")
    with pytest.raises(
        ValueError, match=r"some are glassformer.bfloat16; .*model\.to\('float32'\)"
    ):
        trainer_in(tmp_path, model, bf16=True)


def test_contradicting_devices(tmp_path):
    with pytest.raises(ValueError, match="use_cpu=True contradicts device='torch-cpu'"):
        TrainingArguments(str(tmp_path), device=DEVICE, use_cpu=True)
    with pytest.raises(ValueError, match="the devices are cpu, cuda, torch-cpu"):
        trainer_in(tmp_path, device="tpu")
