"""`glassformer fill-mask`: find the words behind masks."""

from __future__ import annotations

from argparse import Namespace

from glassformer.cli.texts import answer_texts


def run(args: Namespace) -> int:
    """Write a line with the likeliest words for the masks of each text."""
    return answer_texts(
        args,
        "fill-mask",
        lambda found: {"predictions": found},
        top_k=args.top_k,
        max_length=args.max_length,
    )
