"""`glassformer embed`: turn texts into vectors."""

from __future__ import annotations

from argparse import Namespace

from glassformer.cli.texts import answer_texts


def run(args: Namespace) -> int:
    """Write a line with the vector of each text."""
    return answer_texts(
        args,
        "sentence-embedding",
        lambda vector: {"embedding": vector.tolist()},
        normalize=args.normalize,
        pooling=args.pooling,
        max_length=args.max_length,
    )
