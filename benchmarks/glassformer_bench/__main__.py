"""`python -m glassformer_bench` is `attnbench`."""

import sys

from glassformer_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
