"""Every test here draws the same numbers each time."""

import pytest

import glassformer as gf


@pytest.fixture(autouse=True)
def seed():
    gf.manual_seed(0)
