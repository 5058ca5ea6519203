import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.data import DataLoader, NextTokenWindows


def ids(loader):
    return [batch.tolist() for batch in loader]


def flat(batches):
    return [item for batch in batches for item in batch]


settings = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 7),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**40),
        "drop_last": st.booleans(),
    }
)


@given(st.integers(0, 30), settings)
def test_a_pass_visits_every_item_once(size, options):
    loader = DataLoader(range(size), **options)
    for _ in range(2):
        batches = ids(loader)
        assert len(batches) == len(loader)
        seen = flat(batches)
        if options["drop_last"]:
            assert len(seen) == size - size % options["batch_size"] == len(set(seen))
        else:
            assert sorted(seen) == list(range(size))
        if not options["shuffle"]:
            assert seen == list(range(len(seen)))


@given(st.integers(1, 30), settings, st.integers(0, 40))
def test_resuming_anywhere_continues_with_the_very_next_batch(size, options, stop_after):
    def three_passes(loader, state=None):
        while loader.epoch < 3:
            for batch in loader:
                yield batch.tolist(), json.dumps(loader.state_dict())

    whole = list(three_passes(DataLoader(range(size), **options)))
    if not whole:
        return
    stop_after %= len(whole)
    resumed = DataLoader(range(size), **options)
    resumed.load_state_dict(json.loads(whole[stop_after][1]))
    assert list(three_passes(resumed)) == whole[stop_after + 1 :]


def test_orders_differ_between_passes_and_seeds_and_repeat_with_the_seed():
    loader = DataLoader(range(100), 10, shuffle=True, seed=5)
    first, second = flat(ids(loader)), flat(ids(loader))
    assert first != second
    assert first == flat(ids(DataLoader(range(100), 10, shuffle=True, seed=5)))
    assert first != flat(ids(DataLoader(range(100), 10, shuffle=True, seed=6)))
    loader.set_epoch(0)
    assert flat(ids(loader)) == first


def test_shuffled_windows_start_uniformly():
    windows = NextTokenWindows(np.arange(2001), 1)
    loader = DataLoader(windows, 1000, shuffle=True, seed=0)
    starts = next(iter(loader))["input_ids"].numpy().ravel()
    counts, _ = np.histogram(starts, bins=10, range=(0, 2000))
    assert abs(counts - 100).max() < 4 * 7.1  # hypergeometric: sigma = sqrt(1000*.1*.9*.5) = 6.7


def test_abandoned_pass_is_followed_by_the_next():
    loader = DataLoader(range(10), 2)
    next(iter(loader))
    assert loader.state_dict()["epoch"] == 0
    assert len(ids(loader)) == 5
    assert loader.state_dict()["epoch"] == 2


def test_an_iterator_that_was_overtaken_does_not_move_the_position():
    loader = DataLoader(range(10), 2)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    list(old)
    assert (loader.epoch, loader.position) == (1, 1)


def test_batched_fetch_equals_collating_items():
    windows = NextTokenWindows(np.arange(40) % 7, 5)
    fetched = list(DataLoader(windows, 4))
    collated = list(DataLoader([windows[i] for i in range(len(windows))], 4))
    assert len(fetched) == len(collated) == 9
    for a, b in zip(fetched, collated, strict=True):
        assert a.keys() == b.keys()
        assert all((a[name].numpy() == b[name].numpy()).all() for name in a)


def test_collate_fn_gets_the_items():
    loader = DataLoader(range(5), 2, collate_fn=lambda items: sum(items))
    assert list(loader) == [1, 5, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"shuffle": False},
        {"seed": 2},
        {"drop_last": True},
        {"dataset": range(9)},
    ],
)
def test_position_of_another_loader_is_refused(change):
    options = {"dataset": range(10), "batch_size": 2, "shuffle": True, "seed": 1}
    state = DataLoader(**options).state_dict()
    other = DataLoader(**{**options, **change})
    with pytest.raises(ValueError, match="was .*, is "):
        other.load_state_dict(state)
    assert (other.epoch, other.position) == (0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", -1), ("epoch", 1.0), ("position", 6), ("position", -1), ("position", None)],
)
def test_impossible_position_is_refused(name, value):
    loader = DataLoader(range(10), 2)
    with pytest.raises(ValueError, match=name):
        loader.load_state_dict({**loader.state_dict(), name: value})


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DataLoader(range(3), **options)
