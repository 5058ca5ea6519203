import numpy as np
import pytest

import glassformer as gf
from glassformer.nn import (
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    Module,
    MultiheadAttention,
    TransformerBlock,
)
from glassformer.nn import functional as F
from glassformer.optim import AdamW, get_parameter_groups
from glassformer.rematerialisation import checkpoint
from glassformer.training import Trainer, TrainingArguments
from glassformer.training.checkpoint import load_checkpoint
from glassformer.training.freezing import freeze_backbone
from tests.unit.training.models import VOCABULARY, Output, bits, parameters_of, windows

LAYERS, CHANNELS = 3, 8


class Backbone(Module):
    def __init__(self):
        self.embedding = Embedding(VOCABULARY, CHANNELS)
        self.embedding_norm = LayerNorm(CHANNELS)
        self.blocks = [
            TransformerBlock(MultiheadAttention(CHANNELS, 2), FeedForward(CHANNELS, 16))
            for _ in range(LAYERS)
        ]
        self.norm = LayerNorm(CHANNELS)
        self.pooler = Linear(CHANNELS, CHANNELS)
        self.checkpointed = False

    def forward(self, input_ids):
        x = self.embedding_norm(self.embedding(input_ids))
        for block in self.blocks:
            x = checkpoint(block, x) if self.checkpointed else block(x)
        return self.pooler(self.norm(x)).tanh()


class WithHead(Module):
    def __init__(self, tied=False):
        gf.manual_seed(0)
        self.backbone = Backbone()
        self.head = Linear(CHANNELS, VOCABULARY, bias=not tied)
        if tied:
            self.head.weight = self.backbone.embedding.weight

    @property
    def base_model(self):
        return self.backbone

    def forward(self, input_ids, shift_labels=None):
        logits = self.head(self.backbone(input_ids))
        if shift_labels is None:
            return Output(None, logits)
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), shift_labels.reshape(-1))
        return Output(loss, logits)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def expected_trained(model, unfrozen):
    late = [f"backbone.blocks.{i}." for i in range(LAYERS - unfrozen, LAYERS)]
    late += ["backbone.norm.", "backbone.pooler."] if unfrozen else []
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if name.startswith(("head.", *late))}


def recorded(tensor):
    """The nodes that a backward pass from `tensor` would visit."""
    nodes, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack.extend(edge[0] for edge in node.edges if isinstance(edge, tuple))
    return nodes


def batch():
    item = windows()[0]
    return {name: gf.from_numpy(array[None]) for name, array in item.items()}


def test_the_head_and_the_last_layers_are_trained():
    model = WithHead()
    for unfrozen in (0, 2, LAYERS, 1, 0):  # in any order: each call is all that counts
        freeze_backbone(model, unfrozen)
        assert trained(model) == expected_trained(model, unfrozen)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_backward_pass_ends_at_the_first_trained_layer(checkpointed):
    model = WithHead()
    model.backbone.checkpointed = checkpointed
    inputs = batch()
    whole = len(recorded(model(**inputs).loss))

    features = model.backbone(inputs["input_ids"]).detach()
    logits = model.head(features).reshape(-1, VOCABULARY)
    of_head = recorded(F.cross_entropy(logits, inputs["shift_labels"].reshape(-1)))
    differentiable = []
    for part in (model.backbone.embedding, *model.backbone.blocks, model.backbone):
        part.register_forward_hook(
            lambda _module, _args, out: differentiable.append(out.requires_grad)
        )
    sizes = []
    for unfrozen in range(LAYERS + 1):
        freeze_backbone(model, unfrozen)
        differentiable.clear()
        loss = model(**inputs).loss
        early = LAYERS - unfrozen  # frozen blocks, with the embedding before them
        assert differentiable == [False] * (1 + early) + [True] * unfrozen + [unfrozen > 0]
        sizes.append(len(recorded(loss)))
        loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == trained(
            model
        )
        model.zero_grad()
    assert sizes[0] == len(of_head)
    steps = np.diff(sizes)
    assert (steps[1:] == steps[-1]).all() and (steps > 0).all()  # a block's nodes at a time
    assert sizes[-1] < whole


def trainer_in(folder, unfrozen, **settings):
    model = WithHead()
    freeze_backbone(model, unfrozen)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=0.01,
        warmup_steps=2,
        weight_decay=0.1,
        save_steps=3,
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=windows(), **settings)


@pytest.mark.parametrize("unfrozen", [0, 1])
def test_training_leaves_frozen_parameters_alone_and_resumes(tmp_path, unfrozen):
    trainer = trainer_in(tmp_path / "a", unfrozen)
    before = bits(parameters_of(trainer.model))
    trainer.train()
    after = bits(parameters_of(trainer.model))
    assert {name for name in before if before[name] != after[name]} == trained(trainer.model)
    held = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert held == len(trainer.optimizer.state) == len(trained(trainer.model))

    resumed = trainer_in(tmp_path / "b", unfrozen)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert bits(parameters_of(resumed.model)) == after
    saved = (load_checkpoint(tmp_path / run / "checkpoint-6").optimizer for run in "ab")
    assert bits(next(saved)) == bits(next(saved))


def test_parts_learn_at_rates_of_their_own_under_one_schedule(tmp_path):
    model = WithHead()
    freeze_backbone(model, 1)
    groups = [
        {**group, "lr": rate}
        for part, rate in ((model.backbone, 0.001), (model.head, 0.01))
        for group in get_parameter_groups(part, 0.1)
    ]
    optimizer = AdamW(groups, lr=0.01)
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=4, warmup_steps=2, disable_tqdm=True),
        train_dataset=windows(),
        optimizers=(optimizer, None),
    )
    rates = []
    optimizer_step = optimizer.step

    def noting_step():
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer_step()

    optimizer.step = noting_step
    trainer.train()
    # Linear: 0, 1/2, 1, 1/2 of each group's own rate.
    factors = np.array([0, 0.5, 1, 0.5])
    np.testing.assert_allclose(rates, np.outer(factors, [0.001, 0.001, 0.01, 0.01]), rtol=1e-12)


def test_what_cannot_be_frozen_is_explained_and_left_as_it_was():
    model = WithHead()
    for wrong in (-1, LAYERS + 1):
        with pytest.raises(ValueError, match=f"between 0 and the model's 3 layers, got {wrong}"):
            freeze_backbone(model, wrong)
    with pytest.raises(ValueError, match="Linear has no base_model with blocks"):
        freeze_backbone(Linear(2, 2))
    model = WithHead(tied=True)
    model.backbone.embedding_norm.requires_grad_(False)
    before = trained(model)
    with pytest.raises(ValueError, match="nothing of WithHead is left to train"):
        freeze_backbone(model)
    assert trained(model) == before
    freeze_backbone(model, 1)
    assert "backbone.embedding.weight" not in trained(model)  # shared with the head
