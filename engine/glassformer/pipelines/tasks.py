"""The tasks by name, and what each is made of."""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from glassformer.data.tokenizer import AutoTokenizer
from glassformer.devices import Device
from glassformer.models import auto
from glassformer.models.pretrained import PretrainedModel
from glassformer.pipelines.base import Pipeline


class Task(NamedTuple):
    """Where a task's pipeline is, and the auto class of its model.

    Args:
        module: in this package.
        pipeline: the name of its class.
        model: the name of an auto class.
    """

    module: str
    pipeline: str
    model: str


TASKS = {
    "feature-extraction": Task("feature_extraction", "FeatureExtractionPipeline", "AutoModel"),
    "fill-mask": Task("fill_mask", "FillMaskPipeline", "AutoModelForMaskedLM"),
    "image-classification": Task(
        "image_classification", "ImageClassificationPipeline", "AutoModelForImageClassification"
    ),
    "question-answering": Task(
        "question_answering", "QuestionAnsweringPipeline", "AutoModelForQuestionAnswering"
    ),
    "sentence-embedding": Task("sentence_embedding", "SentenceEmbeddingPipeline", "AutoModel"),
    "summarization": Task("text_to_text", "SummarizationPipeline", "AutoModelForSeq2SeqLM"),
    "text-classification": Task(
        "text_classification", "TextClassificationPipeline", "AutoModelForSequenceClassification"
    ),
    "text-generation": Task("text_generation", "TextGenerationPipeline", "AutoModelForCausalLM"),
    "text2text-generation": Task(
        "text_to_text", "Text2TextGenerationPipeline", "AutoModelForSeq2SeqLM"
    ),
    "token-classification": Task(
        "token_classification", "TokenClassificationPipeline", "AutoModelForTokenClassification"
    ),
    "translation": Task("text_to_text", "TranslationPipeline", "AutoModelForSeq2SeqLM"),
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def pipeline(
    task: str,
    model: Any,
    tokenizer: Any = None,
    *,
    batch_size: int | None = None,
    device: str | int | Device | None = None,
    **settings: Any,
) -> Any:
    """Return a `Pipeline` for a task.

        classify = pipeline("text-classification", folder)
        classify(["What a day!", "Oh no."], top_k=2)

    Args:
        task: one of `TASKS`, "sentiment-analysis", "ner", or "translation_en_to_fr".
        model: a model, or a folder as the hub serves it. Nothing is ever downloaded.
        tokenizer: a tokenizer or its folder (an image processor for images); default: the model's
            folder.
        batch_size: texts that go through the model at once; default: 32.
        device: where to compute, a GPU's number or -1 for the CPU; default: the CPU, or where a
            given model is.
        settings: of the task, for calls that don't give their own. The task's class tells which.

    Raises:
        ValueError: the task is unknown, or a model was given without a tokenizer.
        WeightsError, TokenizerError: a folder holds no usable model or tokenizer.
        TypeError: the task has no such setting, or the model is another task's.
    """
    name = "translation" if task.startswith("translation_") else ALIASES.get(task, task)
    if name not in TASKS:
        known = sorted([*TASKS, *ALIASES])
        near = difflib.get_close_matches(task, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"unknown task {task!r}{hint or ';'} known are {', '.join(known)}, and "
            "translation_XX_to_YY"
        )
    entry = TASKS[name]
    if tokenizer is None:
        if not isinstance(model, (str, os.PathLike)):
            raise ValueError("give the tokenizer of a model that isn't loaded from a folder")
        tokenizer = model
    if isinstance(model, (str, os.PathLike)):
        folder = Path(model)
        if name == "sentence-embedding":
            module = import_module("glassformer.pipelines.sentence_folder")
            folder, said = module.folder_settings(folder)
            settings = {**said, **settings}
            tokenizer = folder if tokenizer is model else tokenizer
        model = getattr(auto, entry.model).from_pretrained(folder)
    elif isinstance(model, PretrainedModel):
        try:
            getattr(auto, entry.model).check(model)
        except TypeError as error:
            raise TypeError(f"{task} {error}") from None
    if isinstance(tokenizer, (str, os.PathLike)):
        reads_images = name == "image-classification"
        reader = _image_processor() if reads_images else AutoTokenizer
        tokenizer = reader.from_pretrained(tokenizer)
    found: type[Pipeline] = getattr(
        import_module(f"glassformer.pipelines.{entry.module}"), entry.pipeline
    )
    size = {} if batch_size is None else {"batch_size": batch_size}
    return found(
        model, tokenizer, task=name if task in ALIASES else task, device=device, **size, **settings
    )


def _image_processor() -> Any:
    return import_module("glassformer.data.images").AutoImageProcessor
