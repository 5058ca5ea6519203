"""LoRA: what it adds, what it trains, what it writes, and that merging changes nothing."""

import json

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.bert import BertConfig, BertForSequenceClassification
from glassformer.models.lora import LoraConfig, add_lora, load_lora, merge_lora, save_lora
from glassformer.models.safetensors_file import SafetensorsFile, WeightsError, write_safetensors
from glassformer.nn import Linear, MultiheadAttention
from glassformer.nn.lora import LoraAdapter, LoraLayer

SHAPE = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}
IDS = gf.tensor(np.random.default_rng(0).integers(0, 30, (2, 5)))
LORA = LoraConfig(4, 8, ("query", "value", "output.dense"), modules_to_save=("classifier",))


def make_model(seed=0):
    return BertForSequenceClassification(BertConfig(**SHAPE), gf.Generator(seed)).eval()


def trained(model, steps=3):
    """The model after a few steps, by which no update is 0 any more."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = gf.optim.AdamW(chosen, lr=0.05)
    for _ in range(steps):
        model(IDS, labels=gf.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def logits(model):
    with gf.no_grad():
        return model(IDS).logits.numpy()


def test_an_update_is_the_product_of_its_matrices():
    layer = LoraLayer(5, 7, r=2, scaling=1.5)
    rng = np.random.default_rng(1)
    a, b, x = rng.normal(size=(2, 5)), rng.normal(size=(7, 2)), rng.normal(size=(3, 4, 5))
    layer.to("float64").load_state_dict({"lora_A": gf.tensor(a), "lora_B": gf.tensor(b)})
    found = layer(gf.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, 1.5 * (x @ a.T) @ b.T, rtol=1e-12)
    np.testing.assert_allclose(layer.delta().detach().numpy(), 1.5 * b @ a, rtol=1e-12)


@pytest.mark.parametrize("memory", ["itself", "one", "two"])
def test_stacked_projections_take_updates_one_by_one(memory):
    attention = MultiheadAttention(6, 3, num_key_value_heads=1).eval()
    parts = [LoraLayer(6, 6, 2, 0.5), None, LoraLayer(6, 2, 2, 0.5)]
    for part in (parts[0], parts[2]):
        gf.nn.init.normal_(part.lora_B)
    rows = (6, 2, 2)
    x, y, z = (gf.randn(2, 4, 6) for _ in range(3))
    inputs = {"itself": (x,), "one": (x, y), "two": (x, y, z)}[memory]
    attention.adapter = LoraAdapter(parts, rows)
    found = attention(*inputs)
    attention.adapter = None
    with gf.no_grad():
        attention.in_proj_weight[:6] = attention.in_proj_weight[:6] + parts[0].delta()
        attention.in_proj_weight[8:] = attention.in_proj_weight[8:] + parts[2].delta()
    merged = attention(*inputs)
    np.testing.assert_allclose(found.detach().numpy(), merged.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("present", [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("scalings", [(2.0, 2.0, 2.0), (2.0, 1.0, 0.5)])
def test_updates_of_stacked_matrices_are_those_of_each(present, scalings):
    generator = gf.Generator(0)
    rows, parts = (4, 3, 5), []
    for count, there, scaling, rank in zip(rows, present, scalings, (2, 3, 1), strict=True):
        layer = LoraLayer(6, count, rank, scaling, generator=generator).to("float64")
        with gf.no_grad():
            layer.lora_B.copy_(gf.randn(count, rank, generator=generator))
        parts.append(layer if there else None)
    adapter = LoraAdapter(parts, rows)
    x = gf.randn(2, 7, 6, generator=generator).to("float64").requires_grad_()
    for chosen in (slice(None), slice(0, 1), slice(1, 3)):
        found = adapter(x, chosen)
        wanted = [
            np.zeros((2, 7, count))
            if part is None
            else x.detach().numpy() @ part.delta().T.detach().numpy()
            for part, count in zip(parts[chosen], rows[chosen], strict=True)
        ]
        np.testing.assert_allclose(found.detach().numpy(), np.concatenate(wanted, -1), atol=1e-12)
        layers = [part for part in parts[chosen] if part is not None]
        if layers:
            inputs = [x, *(one for part in layers for one in (part.lora_A, part.lora_B))]
            weights = gf.randn(2, 7, sum(rows[chosen]), generator=generator).to("float64")
            apart = gf.cat(
                [
                    gf.zeros(2, 7, count, dtype="float64") if part is None else part(x)
                    for part, count in zip(parts[chosen], rows[chosen], strict=True)
                ],
                dim=-1,
            )
            pairs = zip(
                gf.grad((found * weights).sum(), inputs),
                gf.grad((apart * weights).sum(), inputs),
                strict=True,
            )
            for mine, theirs in pairs:
                np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-12)


def test_each_update_drops_inputs_of_its_own():
    layers = [LoraLayer(500, 2, 1, 1.0, dropout=0.5, generator=gf.Generator(0)) for _ in range(2)]
    for layer in layers:
        with gf.no_grad():
            layer.lora_B.copy_(gf.ones(2, 1))
    adapter = LoraAdapter(layers, (2, 2)).train()
    gf.manual_seed(0)
    first, second = np.split(adapter(gf.ones(1, 500)).detach().numpy()[0], 2)
    assert first[0] == first[1] and first[0] != second[0]  # the same matrices, other inputs
    assert len(set(adapter.eval()(gf.ones(1, 500)).detach().numpy()[0].tolist())) == 1


def test_a_fresh_update_changes_no_bit():
    before = logits(make_model())
    assert (logits(add_lora(make_model(), LORA)) == before).all()


def test_only_updates_and_modules_to_save_are_trained():
    model = add_lora(make_model(), LORA)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model)
    changed = {
        name for name, p in model.named_parameters() if (p.detach() != before[name]).any().item()
    }
    assert changed == {name for name in before if ".adapter." in name or "classifier" in name}
    # in each layer: query and value, and the two that are called output.dense
    assert len([name for name in changed if name.endswith("lora_A")]) == 2 * 4


def test_merging_keeps_the_function_and_leaves_a_plain_model():
    model = trained(add_lora(make_model(), LORA))
    before = logits(model)
    merge_lora(model)
    np.testing.assert_allclose(logits(model), before, atol=1e-6)
    assert list(model.state_dict()) == list(make_model().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_a_file_brings_updates_and_heads_back(tmp_path):
    model = trained(add_lora(make_model(), LORA))
    save_lora(model, tmp_path, LORA)
    again = make_model()
    assert load_lora(again, tmp_path) == LORA
    assert (logits(again) == logits(model)).all()
    with SafetensorsFile(tmp_path / "adapter_model.safetensors") as file:
        keys = set(file.keys())
    layer = "base_model.model.bert.encoder.layer.1"
    assert f"{layer}.attention.self.query.lora_A.weight" in keys
    assert f"{layer}.output.dense.lora_B.weight" in keys
    assert "base_model.model.classifier.weight" in keys
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)


def test_the_model_is_saved_without_its_updates(tmp_path):
    model = trained(add_lora(make_model(), LORA))
    model.save_pretrained(tmp_path / "base")
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    save_lora(model, tmp_path / "lora", LORA)
    load_lora(plain, tmp_path / "lora")
    assert (logits(plain) == logits(model)).all()


def test_all_linear_spares_the_head():
    model = add_lora(make_model(), LoraConfig(2, modules_to_save=("classifier",)))
    adapted = [n for n, m in model.named_modules() if getattr(m, "adapter", None) is not None]
    assert "classifier" not in adapted
    assert len(adapted) == 2 * 4 + 1  # projections in and out, two of the network; the pooler


def test_gradient_checkpointing_goes_with_frozen_inputs():
    one, other = (add_lora(make_model(), LoraConfig(2, lora_alpha=4)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    other.gradient_checkpointing_enable()
    for model in (one, other):
        model.train()
        for module in model.modules():
            if isinstance(module, gf.nn.Dropout):
                module.p = 0.0
            if isinstance(module, MultiheadAttention):
                module.dropout = 0.0
        model(IDS, labels=gf.tensor([0, 1])).loss.backward()
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    compared = [(p.grad.numpy(), q.grad.numpy()) for p, q in pairs if p.requires_grad]
    assert compared
    assert all((p == q).all() for p, q in compared)


# ---- errors -------------------------------------------------------------------------------------


def test_names_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="no linear layer is called 'q_proj'; there are .*query"):
        add_lora(make_model(), LoraConfig(target_modules=("q_proj",)))
    with pytest.raises(ValueError, match="no part of the model is called 'score'"):
        add_lora(make_model(), LoraConfig(modules_to_save=("score",)))
    with pytest.raises(ValueError, match="r must be 1 or more, got 0"):
        LoraConfig(r=0)


def test_a_second_set_of_updates_is_refused():
    with pytest.raises(ValueError, match="has updates already; merge_lora"):
        add_lora(add_lora(make_model(), LORA), LORA)
    with pytest.raises(ValueError, match="no updates to save"):
        save_lora(make_model(), "anywhere", LORA)


def test_a_file_that_does_not_fit_leaves_the_model_alone(tmp_path):
    save_lora(trained(add_lora(make_model(), LORA)), tmp_path, LORA)
    path = tmp_path / "adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        arrays = {name: np.array(file.array(name)) for name in file.keys()}  # noqa: SIM118
    first, second, third, *_ = sorted(arrays)
    arrays[first] = arrays[first][..., :-1].copy()
    arrays["strange"] = arrays.pop(second)
    write_safetensors(path, arrays, {})
    model = make_model()
    before = logits(model)
    with pytest.raises(WeightsError) as caught:
        load_lora(model, tmp_path)
    for problem in (f"shape of {first}", f"missing: {second}", "unexpected: strange"):
        assert problem in str(caught.value)
    assert third not in str(caught.value)
    assert (logits(model) == before).all()
    assert all(p.requires_grad for p in model.parameters())


def test_what_we_do_not_support_is_said(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "use_dora": True})
    )
    with pytest.raises(ValueError, match="not supported: {'use_dora': True}"):
        load_lora(make_model(), tmp_path)


def test_a_linear_layer_without_updates_is_as_it_was():
    layer = Linear(3, 4)
    assert set(layer.state_dict()) == {"weight", "bias"}
