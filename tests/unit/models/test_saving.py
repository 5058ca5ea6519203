"""Saving a model over another: what is left when the process dies, at whatever moment."""

import copy
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import glassformer as gf
from glassformer import durable
from glassformer.models import AutoModelForCausalLM, WeightsError, safetensors_writer, saving
from tests.unit.models.families import config_of
from tests.unit.training.faulty_os import CALLS, FaultyOs


class Killed(BaseException):
    """The process is no more."""


class DyingOs:
    """The `os` module until the n-th call that touches the disk; that and later ones never come."""

    def __init__(self, last):
        self.last, self.count = last, 0

    def step(self):
        self.count += 1
        if self.count > self.last:
            raise Killed

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CALLS:
            return function

        def call(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return call


def save_until(last, monkeypatch, model, folder, shards):
    """Save, and die after so many calls; return whether death came."""
    disk, unlink = DyingOs(last), Path.unlink

    def counted_unlink(path, missing_ok=False):
        disk.step()
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        for module in (durable, saving, safetensors_writer):
            patch.setattr(module, "os", disk)
        patch.setattr(Path, "unlink", counted_unlink)
        try:
            model.save_pretrained(folder, shards)
        except Killed:
            return True
    return False


def make(value, generation=None, **settings):
    """A GPT-2 whose weights are all of one value."""
    model = AutoModelForCausalLM.from_config(config_of("gpt2", n_layer=1, **settings))
    with gf.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.generation_settings = generation
    return model


def found(folder):
    """What a folder says of itself, None where it is refused."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
    except WeightsError as error:
        assert "\n" not in str(error)
        return None
    values = {float(v) for p in model.parameters() for v in np.unique(p.detach().numpy())}
    return values, model.config.layer_norm_epsilon, model.generation_settings


OLD, SAME_CONFIG = make(1.0), make(2.0)
OTHER_CONFIG = make(2.0, layer_norm_epsilon=0.5)
OTHER_GENERATION = make(2.0, {"max_new_tokens": 3})
WHOLE, SHARDS = "5GB", "3KB"


@pytest.mark.parametrize(
    ("new", "old", "sizes", "may_be_refused"),
    [
        (SAME_CONFIG, OLD, (WHOLE, WHOLE), False),
        (SAME_CONFIG, OLD, (WHOLE, SHARDS), False),
        (SAME_CONFIG, OLD, (SHARDS, SHARDS), True),
        (OTHER_CONFIG, OLD, (WHOLE, WHOLE), True),
        (OTHER_CONFIG, OLD, (SHARDS, WHOLE), True),
        (OTHER_CONFIG, OLD, (WHOLE, SHARDS), True),
        (OTHER_GENERATION, OLD, (WHOLE, WHOLE), True),
        (OTHER_GENERATION, None, (WHOLE, WHOLE), True),
        (OTHER_GENERATION, None, (WHOLE, SHARDS), True),
    ],
)
def test_death_leaves_the_old_model_or_the_new_never_parts_of_both(
    new, old, sizes, may_be_refused, tmp_path, monkeypatch
):
    seen = []
    for last in range(200):
        folder = tmp_path / str(last)
        folder.mkdir()
        if old is not None:
            old.save_pretrained(folder, sizes[0])
        before = found(folder)
        died = save_until(last, monkeypatch, new, folder, sizes[1])
        seen.append(found(folder))
        new.save_pretrained(folder, sizes[1])
        after = found(folder)
        assert after == ({2.0}, new.config.layer_norm_epsilon, new.generation_settings)
        hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert not hidden
        if not died:
            break
    assert len(seen) > 8 and seen[0] == before and seen[-1] == after
    assert all(one in (before, after) or may_be_refused and one is None for one in seen)
    moments = [one for i, one in enumerate(seen) if i == 0 or one != seen[i - 1]]
    assert len(moments) <= 3  # the old, none perhaps, the new


def test_what_a_killed_save_left_is_told(tmp_path, monkeypatch):
    OLD.save_pretrained(tmp_path)
    last = 0
    while found(tmp_path) is not None:
        OLD.save_pretrained(tmp_path)
        assert save_until(last, monkeypatch, OTHER_CONFIG, tmp_path, WHOLE)
        last += 1
    said = "config.json: the file is missing: the model is being saved, or that was cut short; save"
    with pytest.raises(WeightsError, match=said):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_save_that_fails_puts_the_config_back_beside_the_old_weights(tmp_path, monkeypatch):
    weights, failures = tmp_path / "model.safetensors", 0
    for call in range(100):
        OLD.save_pretrained(tmp_path)
        before, inode = found(tmp_path), weights.stat().st_ino
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", FaultyOs(call))
            try:
                OTHER_CONFIG.save_pretrained(tmp_path)
            except OSError:
                failures += 1
            else:
                break
        if weights.stat().st_ino == inode:
            assert found(tmp_path) == before
        else:
            assert found(tmp_path) in (({2.0}, 0.5, None), None)
    assert found(tmp_path) == ({2.0}, 0.5, None) and failures > 5


def test_savers_wait_for_each_other(tmp_path):
    """Whoever comes last, weights and config are one model's."""
    wholes = []
    for model in (OLD, OTHER_CONFIG):
        model.save_pretrained(tmp_path)
        wholes.append(found(tmp_path))
    for _ in range(20):
        savers = [
            threading.Thread(target=model.save_pretrained, args=(tmp_path,))
            for model in (OLD, OTHER_CONFIG, OLD)
        ]
        for saver in savers:
            saver.start()
        for saver in savers:
            saver.join()
        assert found(tmp_path) in wholes


def test_settings_of_an_earlier_model_do_not_stay(tmp_path):
    model = copy.deepcopy(OLD)
    model.generation_settings = {"max_length": 3}
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_settings == {"max_length": 3}
    OLD.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_settings is None


def test_a_config_that_a_kill_left_aside_does_not_come_back(tmp_path, monkeypatch):
    """Nobody knows which weights it belongs to, also where the next save fails."""
    failures = 0
    for call in range(100):
        OLD.save_pretrained(tmp_path)
        durable.set_aside(tmp_path / "config.json")
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", FaultyOs(call))
            try:
                OLD.save_pretrained(tmp_path)
            except OSError:
                failures += 1
            else:
                break
        assert not durable.is_aside(tmp_path / "config.json")
        if call == 0:
            assert found(tmp_path) is None
    assert failures > 5
