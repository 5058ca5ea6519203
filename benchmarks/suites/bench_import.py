"""The import, in an interpreter of its own, whose start is part of both times."""

import subprocess
import sys


def python(code):
    """Run it in a new interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True)


def bench_import(race):
    """Import the engine, which must not import PyTorch."""

    def check():
        python("import glassformer, sys; sys.exit('torch' in sys.modules)")

    race(
        "interpreter and import",
        lambda: python("import glassformer"),
        lambda: python("import torch"),
        check,
    )
