"""One thread in every test: problems are tiny, and tests run beside each other."""

import pytest
import torch

from tests.bench import cheats


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cheats.forget()  # what one test's kernels remember is nothing to the next
    yield
    torch.set_num_threads(before)
