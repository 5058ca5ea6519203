"""`glassformer classify`: tell the class of texts."""

from __future__ import annotations

from argparse import Namespace

from glassformer.cli.texts import answer_texts


def run(args: Namespace) -> int:
    """Write a line with the class of each text, or the best few."""
    return answer_texts(
        args,
        "text-classification",
        lambda found: {"labels": found} if isinstance(found, list) else found,
        top_k=args.top_k,
        max_length=args.max_length,
    )
