import json
import random
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import glassformer as gf
from glassformer.cli.callbacks import Report
from glassformer.data import AutoTokenizer
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.auto import AutoModelForSequenceClassification
from glassformer.models.bert import BertConfig, BertModel
from glassformer.models.gpt2 import GPT2Config, GPT2Model
from glassformer.models.lora import load_lora
from glassformer.training.checkpoint import list_checkpoints
from glassformer.training.metrics import read_log
from tests.cli.commands import assert_refused, interrupt_after_evaluation, snapshot

WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry"],
    "metal": ["iron", "copper", "zinc", "gold"],
    "sport": ["chess", "rugby", "golf", "judo"],
}
RNG = random.Random(0)
ROWS = [
    (f"I like {RNG.choice(WORDS[label])} and {RNG.choice(WORDS[label])}", label)
    for label in sorted(WORDS)
    for _ in range(20)
]
QUICK = ["--epochs", "4", "--learning-rate", "0.01", "--batch-size", "8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny BERT and a tiny GPT-2, as the hub would have them."""
    folder = tmp_path_factory.mktemp("models")
    texts = [text for text, _ in ROWS]
    gf.manual_seed(1)
    tokenizer = train_tokenizer(texts, "wordpiece", vocab_size=200, model_max_length=32)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    limits = {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape, **limits)).save_pretrained(
        folder / "bert"
    )
    tokenizer.save_pretrained(folder / "bert")
    tokenizer = train_tokenizer(texts, "bpe", vocab_size=300, model_max_length=32)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2Model(
        GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)
    ).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write(folder / "train.csv", ROWS)
    write(folder / "test.csv", [("I like plum and apple", "fruit"), ("I like golf", "sport")])
    lines = [{"text": text, "label": len(text) / 10} for text, _ in ROWS]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write(path, rows, header="text,label"):
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def logits(model, texts):
    folder_model = AutoModelForSequenceClassification.from_pretrained(model)
    batch = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="gf")
    with gf.no_grad():
        return folder_model(**batch).logits.numpy()


def test_a_model_learns_and_its_folder_is_one_of_the_hubs(run, models, tables, tmp_path):
    data = ["--data", tables / "train.csv", "--eval", tables / "test.csv"]
    quick = ["--epochs", "8", "--learning-rate", "0.01"]
    result = run("finetune", "--model", models / "bert", *data, "--output", tmp_path, *quick)
    assert (result.status, result.err) == (0, "")
    names = {p.name for p in tmp_path.iterdir()}
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    files |= {"special_tokens_map.json", "metrics.json", "run.json", "log.jsonl", "loss.svg"}
    assert names == files
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["labels"] == ["fruit", "metal", "sport"]
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["matthews_correlation"]) == (1, 1, 1)
    assert metrics["texts"] == 2 and metrics["steps"] == 32
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "fruit", "1": "metal", "2": "sport"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    found = logits(tmp_path, ["I like zinc", "I like judo and chess"])
    assert found.argmax(-1).tolist() == [1, 2]
    assert "accuracy 1.0000, macro F1 1.0000" in result.out and str(tmp_path) in result.out
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if "eval_accuracy" in row] == list(range(4, 33, 4))
    shown = run("info", tmp_path).out
    assert shown.startswith("BertForSequenceClassification")
    assert "labels          fruit, metal, sport\n" in shown and "accuracy 1, macro_f1 1" in shown


def test_transformers_reads_the_result_alike(run, models, tables, tmp_path):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    data = ["--data", tables / "train.csv", "--output", tmp_path]
    assert run("finetune", "--model", models / "bert", *data, *QUICK).status == 0
    texts = [text for text, _ in ROWS[::7]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        wanted = model(**batch).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path, texts), wanted, atol=1e-5)
    assert model.config.id2label == {0: "fruit", 1: "metal", 2: "sport"}


def frozen_parts(before, after):
    """The first parts of the names of a BERT's tensors that training left alone."""
    from glassformer.models.safetensors_file import open_weights

    with open_weights(before) as old, open_weights(after) as new:
        same = {name for name in old if np.array_equal(old.array(name), new.array(f"bert.{name}"))}
        changed = {name for name in old if name not in same}
    return {part(name) for name in same} - {part(name) for name in changed}


def part(name):
    pieces = name.split(".")
    return ".".join(pieces[1:3]) if pieces[0] == "encoder" else pieces[0]


@pytest.mark.parametrize(
    ("option", "frozen"),
    [
        (["--freeze", "all"], {"embeddings", "layer.0", "layer.1", "pooler"}),
        (["--freeze", "1"], {"embeddings", "layer.0"}),
        (["--freeze", "0"], {"embeddings"}),
        (["--freeze", "none"], set()),
        (["--freeze", "none", "--head-learning-rate", "0.1"], set()),
    ],
)
def test_what_is_frozen(run, models, tables, tmp_path, option, frozen):
    data = ["--data", tables / "train.csv", "--output", tmp_path, "--epochs", "1"]
    assert run("finetune", "--model", models / "bert", *data, *option).status == 0
    assert frozen_parts(models / "bert", tmp_path) == frozen


@pytest.mark.parametrize("option", [["--freeze", "all"], ["--freeze", "1"], ["--lora", "2"], []])
def test_decoders_learn_too(run, models, tables, tmp_path, option):
    data = ["--data", tables / "train.csv", "--output", tmp_path]
    result = run("finetune", "--model", models / "gpt2", *data, *QUICK, *option)
    assert result.status == 0, result.err
    assert logits(tmp_path, ["I like iron", "I like a golf"]).shape == (2, 3)


def test_lora_keeps_the_updates_and_merges_them(run, models, tables, tmp_path):
    data = ["--data", tables / "train.csv", "--output", tmp_path]
    assert run("finetune", "--model", models / "bert", *data, *QUICK, "--lora", "2").status == 0
    with pytest.warns(UserWarning, match="fresh"):
        model = AutoModelForSequenceClassification.from_pretrained(models / "bert", num_labels=3)
    config = load_lora(model, tmp_path / "adapter")
    assert (config.r, config.lora_alpha, config.modules_to_save) == (2, 4, ("classifier",))
    texts = [text for text, _ in ROWS[::9]]
    batch = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="gf")
    with gf.no_grad():
        apart = model(**batch).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path, texts), apart, atol=1e-5)


def test_regression(run, models, tables, tmp_path):
    data = ["--data", tables / "scores.jsonl", "--task", "regression", "--output", tmp_path]
    result = run("finetune", "--model", models / "bert", *data, "--epochs", "2")
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["root_mean_squared_error"] ** 2 == pytest.approx(metrics["loss"], rel=1e-4)
    assert -1 <= metrics["pearson_correlation"] <= 1 and metrics["texts"] == 6
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert logits(tmp_path, ["I like iron"]).shape == (1, 1)


@pytest.mark.parametrize(
    ("task", "unit"), [("classification", "nats per text"), ("regression", "squared error")]
)
def test_the_curve_names_the_unit_of_the_tasks_loss(run, models, tmp_path, task, unit):
    table = write(tmp_path / "table.csv", [(text, str(i % 3)) for i, (text, _) in enumerate(ROWS)])
    argv = ["--model", models / "bert", "--data", table, "--task", task, "--epochs", "1"]
    assert run("finetune", *argv, "--output", tmp_path / "run").status == 0
    assert f"loss ({unit})" in (tmp_path / "run" / "loss.svg").read_text()


@pytest.mark.parametrize(("different", "hinted"), [(30, True), (3, False)])
def test_amounts_as_classes_raise_doubt(run, models, tmp_path, different, hinted):
    rows = [(text, str(i % different / 10)) for i, (text, _) in enumerate(ROWS)]
    table = write(tmp_path / "table.csv", rows)
    argv = ["--model", models / "bert", "--data", table, "--epochs", "1"]
    result = run("finetune", *argv, "--output", tmp_path / "run")
    assert result.status == 0
    assert ("--task regression" in result.out) == hinted
    others = write(tmp_path / "others.csv", [(text, str(i)) for i, (text, _) in enumerate(ROWS)])
    result = run("finetune", *argv, "--eval", others, "--output", tmp_path / "other")
    assert_refused(result, "labels that the training texts lack", "--task regression")


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 8), (60.0, 0)])
def test_without_a_terminal_there_are_lines_between_evaluations(
    run, models, tables, tmp_path, monkeypatch, seconds, lines
):
    monkeypatch.setattr(Report, "seconds_between", seconds)
    argv = ["--model", models / "bert", "--data", tables / "train.csv", "--epochs", "1"]
    result = run("finetune", *argv, "--batch-size", "7", "--output", tmp_path)
    shown = [line for line in result.out.splitlines() if "training loss" in line]
    assert len(shown) == lines
    assert all(line.startswith(f"step {i}/8  ") for i, line in enumerate(shown, 1))
    assert result.out.count("validation loss") == 1


def test_pairs_of_texts(run, models, tmp_path):
    rows = [(f"I like {a}", f"I like {b}", str(a == b)) for a in "abcd" for b in "abcd"]
    data = write(tmp_path / "pairs.csv", rows, "one,two,same")
    columns = ["--text-column", "one", "--text-pair-column", "two", "--label-column", "same"]
    output = tmp_path / "run"
    result = run(
        "finetune", "--model", models / "bert", "--data", data, *columns, "--output", output
    )
    assert result.status == 0, result.err
    assert json.loads((output / "metrics.json").read_text())["labels"] == ["False", "True"]


@pytest.mark.parametrize(
    "option", [["--freeze", "all"], ["--freeze", "1"], ["--lora", "2"], []], ids=str
)
def test_interrupted_and_resumed_it_ends_in_the_same_bits(
    run, models, tables, tmp_path, monkeypatch, option
):
    begin = ["--model", models / "bert", "--data", tables / "train.csv", *QUICK, *option]
    assert run("finetune", *begin, "--output", tmp_path / "whole").status == 0
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=14)
        result = run("finetune", *begin, "--output", tmp_path / "cut")
    assert result.status == 130
    assert f"glassformer finetune --output {tmp_path / 'cut'} --resume" in result.err
    (checkpoint,) = list_checkpoints(tmp_path / "cut")
    assert checkpoint.name == "checkpoint-15"  # in the midst of an epoch
    classified = run("classify", "--model", checkpoint, "I like iron")
    if {"all", "--lora"} & set(option):
        advice = f"finish that with glassformer finetune --output {tmp_path / 'cut'} --resume"
        for asked in (classified, run("info", checkpoint)):
            assert_refused(asked, "holds only what resuming needs", advice)
    else:
        assert json.loads(classified.out)["label"] in WORDS
    result = run("finetune", "--output", tmp_path / "cut", "--resume")
    assert result.status == 0, result.err
    for name in ("model.safetensors", "metrics.json", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    before = snapshot(tmp_path / "cut")
    again = run("finetune", "--output", tmp_path / "cut", "--resume")
    assert (again.status, snapshot(tmp_path / "cut")) == (0, before)
    assert "is finished: nothing is left to train" in again.err


@pytest.mark.parametrize("option", [["--freeze", "all"], ["--lora", "2"]], ids=str)
def test_a_full_disk_in_the_end_costs_no_training(
    run, models, tables, tmp_path, monkeypatch, option
):
    begin = ["--model", models / "bert", "--data", tables / "train.csv", *QUICK, *option]
    assert run("finetune", *begin, "--output", tmp_path / "whole").status == 0

    def full(value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("glassformer.cli.finetune.json_bytes", full)
        result = run("finetune", *begin, "--output", tmp_path / "cut")
    assert_refused(result, "No space left on device")
    result = run("finetune", "--output", tmp_path / "cut", "--resume")
    assert result.status == 0, result.err
    for name in ("model.safetensors", "metrics.json", "run.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_refuses_what_changed(run, models, tmp_path, monkeypatch):
    data = write(tmp_path / "train.csv", ROWS)
    output = tmp_path / "run"
    begin = ["--model", models / "bert", "--data", data, "--output", output, *QUICK]
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=7)
        run("finetune", *begin)
    before = snapshot(output)
    assert_refused(
        run("finetune", "--output", output, "--resume", "--seed", "3"),
        f"{output} was begun with --seed 42, not 3",
    )
    assert_refused(run("pretrain", "--output", output, "--resume"), "a run of glassformer finetune")
    write(data, [*ROWS, ("more", "fruit")])
    assert_refused(run("finetune", "--output", output, "--resume"), f"{data} changed since")
    assert snapshot(output) == before


def test_nothing_is_written_over(run, models, tables, tmp_path):
    data = ["--data", tables / "train.csv", "--epochs", "1"]
    other = shutil.copytree(models / "bert", tmp_path / "other")
    before = snapshot(other)
    for option in ([], ["--overwrite"]):
        command = ["finetune", "--model", models / "bert", *data, "--output", other, *option]
        assert_refused(run(*command), "that no run of ours wrote")
        command[2] = other
        assert_refused(run(*command))
    assert snapshot(other) == before
    output = tmp_path / "run"
    command = ["finetune", "--model", models / "bert", *data, "--output", output]
    assert run(*command).status == 0
    before = snapshot(output)
    assert_refused(run(*command), "--overwrite")
    bad = [*command[:4], tables / "no.csv", *command[5:], "--overwrite"]
    assert_refused(run(*bad), "no.csv")
    assert_refused(run("finetune", "--model", output, *data, "--output", output, "--overwrite"))
    assert snapshot(output) == before
    assert run(*command, "--overwrite", "--seed", "1").status == 0
    assert snapshot(output).keys() == before.keys() and snapshot(output) != before


def test_help_names_every_default(run):
    shown = " ".join(run("finetune", "--help").out.split()).partition("options:")[2]
    assert shown.count("default") >= 18
