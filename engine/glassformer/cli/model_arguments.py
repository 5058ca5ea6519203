"""The arguments of the commands that run a model of the hub's on texts. Imports nothing heavy."""

from __future__ import annotations

import argparse

from glassformer.cli.argument_types import positive_int
from glassformer.cli.device import add_device

EMBED_HELP = "turn texts into vectors"
CLASSIFY_HELP = "tell the class of texts"
FILL_MASK_HELP = "find the words behind masks"


# As `pipelines.sentence_embedding` has them, which takes longer to import than --help may.
_POOLINGS = ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `embed`."""
    parser.description = (
        'Turn each text into a vector: a line {"text": …, "embedding": […]} for each. Pooling and '
        "length are what a folder of sentence-transformers says, else the mean over all tokens."
    )
    add_model(parser)
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="make every vector's length 1 (default: as the folder says)",
    )
    parser.add_argument("--pooling", choices=_POOLINGS, help="default: as the folder says")
    add_texts(parser)


def add_classify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `classify`."""
    parser.description = (
        'Tell the class of each text: a line {"text": …, "label": …, "score": …} for each; with a '
        'model that was taught numbers (finetune --task regression) {"text": …, "value": …}.'
    )
    add_model(parser)
    parser.add_argument(
        "--top-k",
        type=positive_int,
        metavar="K",
        help='the K best classes instead, {"text": …, "labels": […]}',
    )
    add_texts(parser)


def add_fill_mask(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fill-mask`."""
    parser.description = (
        'Find the words behind masks: a line {"text": …, "predictions": […]} for each text; a list '
        "of lists where a text has several masks. A mask is written as the model's mask token, "
        "such as [MASK] or <mask>."
    )
    add_model(parser)
    parser.add_argument(
        "--top-k", type=positive_int, default=5, metavar="K", help="words a mask (default: 5)"
    )
    add_texts(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, and how it reads."""
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER",
        required=True,
        help="as the Hugging Face hub serves it: config.json, model.safetensors, tokenizer.json",
    )
    add("texts", metavar="TEXT", nargs="*", help="texts (default: the lines of stdin)")
    add(
        "--max-length",
        type=positive_int,
        metavar="N",
        help="tokens to read of a text (default: as many as the model can)",
    )
    add_device(parser)


def add_texts(parser: argparse.ArgumentParser, title: str = "texts") -> None:
    """Add where texts come from and answers go to, under that title."""
    add = parser.add_argument_group(title).add_argument
    add(
        "--input",
        metavar="FILE",
        help="read texts from a file in UTF-8: a table (.csv, .tsv, .jsonl), or any other with a "
        "text on each line",
    )
    add("--text-column", metavar="NAME", help="of a table (default: text)")
    add("--output", metavar="FILE", help="write the lines there (default: stdout)")
    add("--batch-size", type=positive_int, metavar="N", help="default: 32")
