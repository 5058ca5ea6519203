"""`embed`, `classify`, `fill-mask` and `generate --model`, as typed."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import glassformer as gf
from glassformer.cli import main, model_arguments
from glassformer.cli.parser import build_parser
from glassformer.cli.texts import answer_texts
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from glassformer.models.gpt2 import GPT2Config, GPT2LMHeadModel
from glassformer.models.t5 import T5Config, T5ForConditionalGeneration
from glassformer.pipelines import sentence_embedding
from tests.cli.test_process import COMMAND, ENVIRONMENT

pytest.importorskip("tokenizers")

WORDS = "the cat sat on a mat in old paris while ann lee and bob smith went home to rome again"
TEXTS = ["the cat sat", "", "bob", "while ann lee went home to rome"]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that gives the folder of a small model of some class."""
    made = {}

    def make(model_class):
        if model_class not in made:
            path = made[model_class] = tmp_path_factory.mktemp("model")
            gf.manual_seed(0)
            kind = "wordpiece" if model_class.__name__.startswith("Bert") else "bpe"
            tokenizer = train_tokenizer([WORDS] * 3, kind, vocab_size=300)
            tokenizer.save_pretrained(path)
            size = len(tokenizer)
            if kind == "wordpiece":
                config = BertConfig(vocab_size=size, **SHAPE)
            elif model_class is GPT2LMHeadModel:
                config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64)
            else:
                settings = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
                config = T5Config(vocab_size=size, decoder_start_token_id=0, **settings)
            model_class(config).save_pretrained(path)
        return str(made[model_class])

    return make


def run(capsys, *argv):
    """Exit status, rows of JSON on stdout, text on stderr."""
    status = main([str(one) for one in argv])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


def give_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_embed_gives_what_the_pipeline_does(folder, capsys):
    model = folder(BertModel)
    status, rows, err = run(capsys, "embed", "--model", model, *TEXTS)
    assert (status, err) == (0, "")
    assert [row["text"] for row in rows] == TEXTS
    wanted = gf.pipeline("sentence-embedding", model)(TEXTS)
    np.testing.assert_allclose([row["embedding"] for row in rows], wanted, atol=1e-6)
    _, rows, _ = run(capsys, "embed", "--model", model, "--normalize", "--pooling", "cls", *TEXTS)
    wanted = gf.pipeline("sentence-embedding", model)(TEXTS, normalize=True, pooling="cls")
    np.testing.assert_allclose([row["embedding"] for row in rows], wanted, atol=1e-6)


def test_lines_come_from_stdin_and_empty_ones_count(folder, capsys, monkeypatch):
    give_stdin(monkeypatch, "\ufeffthe cat\r\n\nbob\n".encode())
    _, rows, _ = run(capsys, "embed", "--model", folder(BertModel), "--batch-size", 2)
    assert [row["text"] for row in rows] == ["the cat", "", "bob"]


def test_no_line_gives_no_line(folder, capsys, monkeypatch):
    give_stdin(monkeypatch, b"")
    assert run(capsys, "embed", "--model", folder(BertModel)) == (0, [], "")


def test_classify_a_table_into_a_file(folder, capsys, tmp_path):
    model = folder(BertForSequenceClassification)
    table, out = tmp_path / "table.jsonl", tmp_path / "out.jsonl"
    table.write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in TEXTS))
    argv = ["classify", "--model", model, "--input", table, "--text-column", "body"]
    assert run(capsys, *argv, "--output", out) == (0, [], "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = gf.pipeline("text-classification", model)(TEXTS)
    for row, text, one in zip(rows, TEXTS, wanted, strict=True):
        assert (row["text"], row["label"]) == (text, one["label"])
        assert row["score"] == pytest.approx(one["score"], abs=1e-6)
    _, rows, _ = run(capsys, *argv, "--top-k", 2)
    assert [[one["label"] for one in row["labels"]] for row in rows] == [
        [one["label"] for one in some]
        for some in gf.pipeline("text-classification", model, top_k=2)(TEXTS)
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", 'label,body\na,"the cat, sat"\nb,bob\n'),
        ("table.TSV", "label\tbody\na\tthe cat, sat\nb\tbob\n"),
        ("table.ndjson", '{"label": "a", "body": "the cat, sat"}\n\n{"body": "bob"}\n'),
        ("table.txt", "the cat, sat\nbob"),
    ],
)
def test_tables_are_read_as_finetune_reads_them(folder, capsys, tmp_path, name, content):
    table = tmp_path / name
    table.write_text(content)
    column = [] if name.endswith(".txt") else ["--text-column", "body"]
    status, rows, _ = run(capsys, "embed", "--model", folder(BertModel), "--input", table, *column)
    assert (status, [row["text"] for row in rows]) == (0, ["the cat, sat", "bob"])


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, GPT2LMHeadModel])
def test_info_of_a_hub_folder(model_class, folder, capsys):
    assert main(["info", folder(model_class)]) == 0
    shown, err = capsys.readouterr()
    model = model_class.from_pretrained(folder(model_class))
    assert shown.startswith(f"{model!r}\n") and err == ""
    assert f"{model.num_parameters():,} parameters\n" in shown


def test_a_hub_folder_is_no_run_and_says_what_to_type(folder, capsys):
    model = folder(GPT2LMHeadModel)
    status, _, err = run(capsys, "generate", model, "--prompt", "the")
    assert status == 2 and err.endswith(f"train: glassformer generate --model {model}\n")


@pytest.mark.parametrize("command", ["generate", "embed", "classify", "fill-mask", "finetune"])
def test_a_run_of_train_is_no_hub_folder_and_says_what_to_type(command, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3, "n_layer": 1}))
    (tmp_path / "vocabulary.json").write_text("{}")
    text = {"generate": ["--prompt", "x"], "finetune": ["--data", "x.csv"]}.get(command, ["x"])
    if command == "finetune":
        text += ["--output", tmp_path / "out"]
    status, _, err = run(capsys, command, "--model", tmp_path, *text)
    assert status == 2 and err.endswith(f"glassformer generate {tmp_path}\n")


@pytest.mark.parametrize("command", ["generate", "info"])
@pytest.mark.parametrize("config", ['{"vocab_size": 3}', "[]", "{"])
def test_nobody_is_told_to_overwrite_a_folder_that_is_no_run(command, config, capsys, tmp_path):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"somebody's work")
    status, _, err = run(capsys, command, tmp_path)
    assert status == 2 and "--overwrite" not in err and err.count("\n") == 1


def test_more_new_tokens_than_positions_advises_options_that_there_are(folder, capsys):
    argv = ["--prompt", "the", "--max-new-tokens", "500"]
    status, _, err = run(capsys, "generate", "--model", folder(GPT2LMHeadModel), *argv)
    assert status == 2 and "new tokens with --max-new-tokens, or shorten the prompt" in err
    assert "on_overflow" not in err


def test_fill_mask(folder, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the [MASK] sat\n[MASK] and [MASK]\n")
    model = folder(BertForMaskedLM)
    status, rows, _ = run(capsys, "fill-mask", "--model", model, "--input", text, "--top-k", 2)
    assert status == 0
    wanted = gf.pipeline("fill-mask", model, top_k=2)("the [MASK] sat")
    assert [one["token_str"] for one in rows[0]["predictions"]] == [
        one["token_str"] for one in wanted
    ]
    assert np.shape(rows[1]["predictions"]) == (2, 2)


@pytest.mark.parametrize("model_class", [GPT2LMHeadModel, T5ForConditionalGeneration])
def test_generate(model_class, folder, capsys, monkeypatch):
    model = folder(model_class)
    argv = ["generate", "--model", model, "--max-new-tokens", 5]
    status, rows, err = run(capsys, *argv, "--prompt", "the cat")
    assert (status, err) == (0, "")
    assert [list(row) for row in rows] == [["text", "generated_text"]]
    give_stdin(monkeypatch, b"the cat\nbob smith went")
    _, several, _ = run(capsys, *argv)
    assert several[0] == rows[0] and several[1]["text"] == "bob smith went"
    beams = run(capsys, *argv, "--prompt", "the cat", "--num-beams", 3)[1]
    tokenizer = gf.data.AutoTokenizer.from_pretrained(model)
    ids = gf.generation.generate(
        model_class.from_pretrained(model),
        tokenizer("the cat", return_tensors="gf")["input_ids"],
        max_new_tokens=5,
        num_beams=3,
        do_sample=False,
    )
    start = 2 if model_class is GPT2LMHeadModel else 0
    assert tokenizer.decode(ids[0, start:], skip_special_tokens=True) == beams[0]["generated_text"]
    sampled = [run(capsys, *argv, "--prompt", "the", "--temperature", 2, "--seed", 1)[1]] * 2
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize("model_class", [GPT2LMHeadModel, T5ForConditionalGeneration])
def test_streaming_writes_the_same_as_plain_text(model_class, folder, capsys, monkeypatch):
    texts = ["the cat", "bob smith went"]
    argv = ["generate", "--model", folder(model_class), "--max-new-tokens", 12, "--num-beams", 1]
    for more in ([], ["--temperature", 3, "--seed", 4]):
        rows = [run(capsys, *argv, *more, "--prompt", text)[1][0] for text in texts]
        give_stdin(monkeypatch, "\n".join(texts).encode())
        assert main([str(one) for one in [*argv, *more, "--stream"]]) == 0
        shown, err = capsys.readouterr()
        before = [row["text"] if model_class is GPT2LMHeadModel else "" for row in rows]
        answers = [row["generated_text"] for row in rows]
        if not more:  # one seed draws for all texts of a call, one after the other
            lines = [f"{a}{b}\n" for a, b in zip(before, answers, strict=True)]
            assert shown == "\n".join(lines)
        assert shown.startswith(f"{before[0]}{answers[0]}\n") and err == ""


def test_a_failure_leaves_the_old_output(folder, capsys, tmp_path):
    out, text = tmp_path / "out.jsonl", tmp_path / "text.txt"
    out.write_text("old")
    text.write_bytes(b"the cat\n\xff\n")
    status, _, err = run(
        capsys, "embed", "--model", folder(BertModel), "--input", text, "--output", out
    )
    assert status == 2 and "line 2: byte 1, 0xff, is not valid UTF-8" in err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "text.txt"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["embed", "--model", "nowhere", "x"], "the folder does not exist"),
        (["embed", "--model", "MODEL", "--input", "nowhere"], "nowhere: No such file"),
        (["embed", "--model", "MODEL", "x", "--input", "y"], "not both"),
        (
            ["embed", "--model", "MODEL", "x", "--text-column", "y"],
            "column of a .csv, .tsv or .jsonl file",
        ),
        (
            ["embed", "--model", "MODEL", "--input", "TABLE"],
            "no column 'text'; its columns are body",
        ),
        (["embed", "--model", "MODEL", "--input", "BROKEN"], "line 1: not valid JSON"),
        (["embed", "--model", "MODEL", "x", "--device", "abacus"], "abacus"),
        (["embed", "--model", "MODEL", "x", "--max-length", "33"], "more than the 32 tokens that"),
        (
            ["embed", "--model", "MODEL", "x", "--output", "/no/such/folder/x"],
            "there is no folder /no/such/folder; make it",
        ),
        (["embed", "--model", "MODEL", "x", "--output", "."], "--output . is a folder"),
        (["fill-mask", "--model", "MODEL", "the cat"], "there is no [MASK] in 'the cat'"),
        (["generate", "--model", "MODEL", "--prompt", "x"], "there is none of model_type 'bert'"),
        (["generate"], "give the folder of a run, or --model"),
        (["generate", "RUN", "--batch-size", "2"], "--batch-size goes with --model"),
        (["generate", "RUN", "--model", "MODEL"], "not both"),
        (["generate", "RUN", "--stream", "--num-beams", "2"], "leave out one of both"),
        (["generate", "--model", "MODEL", "--stream", "--output", "x"], "leave out --output"),
        (
            ["generate", "--model", "MODEL", "--prompt", "x", "--no-do-sample", "--top-p", "0.9"],
            "--no-do-sample takes the likeliest tokens, but --top-p is for drawing",
        ),
    ],
)
def test_what_is_wrong_is_one_line(argv, said, folder, capsys, tmp_path):
    (tmp_path / "table.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    places = {
        "MODEL": folder(BertForMaskedLM if argv[0] == "fill-mask" else BertModel),
        "TABLE": tmp_path / "table.jsonl",
        "BROKEN": tmp_path / "broken.jsonl",
    }
    status, rows, err = run(capsys, *(places.get(one, one) for one in argv))
    assert (status, rows) == (2, [])
    assert err.startswith(f"glassformer {argv[0]}: error: ") and err.count("\n") == 1
    assert said in err


def test_a_folder_without_a_tokenizer_is_one_line(capsys, tmp_path):
    BertModel(BertConfig(vocab_size=30, **SHAPE)).save_pretrained(tmp_path)
    status, _, err = run(capsys, "embed", "--model", tmp_path, "x")
    assert status == 2 and "holds no tokenizer" in err and err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat\n" * 20000)
    process = subprocess.Popen(
        [*COMMAND, "embed", "--model", folder(BertModel), "--input", text],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(process.stdout.readline())["text"] == "the cat"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_an_interrupt_ends_in_a_line_and_leaves_no_file(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat\n" * 1000000)
    process = subprocess.Popen(
        [*COMMAND, "embed", "--model", folder(BertModel), "--input", text, "--output"]
        + [tmp_path / "out.jsonl"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(path.name.startswith(".out") for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "glassformer embed: interrupted\n"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_interrupt_inside_a_finalizer_is_not_lost(folder, capsys, monkeypatch):
    """Python prints what is raised there, and goes on."""

    class Interrupting:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def describe(found):
        Interrupting()
        return {}

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    args = build_parser().parse_args(["embed", "--model", folder(BertModel), *TEXTS])
    with pytest.raises(KeyboardInterrupt):
        answer_texts(args, "sentence-embedding", describe)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_warnings_are_lines_of_the_command(folder, capsys):
    status, _, err = run(capsys, "classify", "--model", folder(BertModel), "the cat " * 40)
    assert status == 0
    lines = err.splitlines()
    assert all(line.startswith("glassformer classify: warning: ") for line in lines)
    assert "starts with fresh ones" in lines[0] and "longer than the 32 tokens" in lines[1]


def test_every_pooling_can_be_asked_for():
    assert sorted(model_arguments._POOLINGS) == sorted(sentence_embedding.POOLINGS)
