"""Small models and data for the tests of training."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import glassformer as gf
from glassformer.data import NextTokenWindows
from glassformer.models import GPT, GPTConfig
from glassformer.nn import Dropout, Embedding, Linear, Module
from glassformer.nn import functional as F

VOCABULARY = 11


@dataclass
class Output:
    loss: Any
    logits: Any


class Bigram(Module):
    """Predicts a token from the one before it; takes `num_items_in_batch`, as `GPT` does."""

    def __init__(self, channels=6, dropout=0.0, dtype="float64"):
        generator = gf.Generator(3)
        self.embedding = Embedding(VOCABULARY, channels)
        self.dropout = Dropout(dropout)
        self.head = Linear(channels, VOCABULARY)
        for parameter in self.parameters():
            values = generator.numpy.standard_normal(parameter.shape) * 0.3
            with gf.no_grad():
                parameter.copy_(gf.from_numpy(values.astype("float32")))
        self.to(dtype)

    def forward(self, input_ids, shift_labels=None, num_items_in_batch=None):
        logits = self.head(self.dropout(self.embedding(input_ids)))
        if shift_labels is None:
            return Output(None, logits)
        flat, targets = logits.reshape(-1, VOCABULARY), shift_labels.reshape(-1)
        if num_items_in_batch is None:
            return Output(F.cross_entropy(flat, targets), logits)
        summed = F.cross_entropy(flat, targets, reduction="sum")
        return Output(summed / num_items_in_batch, logits)


class MeanBigram(Bigram):
    """The same without `num_items_in_batch`: its loss is the mean over its batch."""

    def forward(self, input_ids, shift_labels=None):
        return super().forward(input_ids, shift_labels)


def small_gpt(dropout=0.2):
    return GPT(GPTConfig(VOCABULARY, n_positions=6, n_embd=8, n_layer=2, n_head=2, dropout=dropout))


def windows(length=42, block_size=5, seed=0):
    """Windows over a stream with something to learn: each token is the one before plus 1 or 2."""
    steps = np.random.default_rng(seed).integers(1, 3, length)
    return NextTokenWindows(np.cumsum(steps) % VOCABULARY, block_size)


def parameters_of(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def bits(arrays):
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
