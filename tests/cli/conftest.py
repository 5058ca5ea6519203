"""A small run of `glassformer train`, which several files of tests begin with."""

import pytest

from glassformer.cli import main
from tests.cli.commands import SMALL, TEXT, runner


@pytest.fixture
def run(capsys):
    """Run the command line in this process; what it prints is kept."""
    return runner(capsys)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A finished run; tests that change it must copy it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(corpus), "--output", str(folder), *SMALL]) == 0
    return folder
