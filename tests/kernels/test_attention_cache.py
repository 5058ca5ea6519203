"""Decoding over a cache, contiguous or paged, against the exact answer; and merging."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE, assert_near, bits_equal, dtypes, seeds, torch

# isort: split
from glassformer_kernels import launch
from glassformer_kernels.attention import decode
from glassformer_kernels.attention.problem import make_problem as problem
from glassformer_kernels.ops.attention import attention
from glassformer_kernels.ops.attention_cache import merge_attention
from tests.kernels.attention_cases import (
    Case,
    cases,
    eager,
    exact,
    fewer,
    largest_terms,
    off_by_eager_s_usual_error,
    operands,
    run,
    seen_pairs,
    sides,
    tiles,
)
from tests.row_calls import drawn, launched, limits

GARBAGE = 2**30  # a page that doesn't exist
SPLIT = ["attention_decode", "attention_merge"]


@dataclass(frozen=True)
class Cache:
    """A call: `case` but for its length, how many keys each sequence has, and the size of pages."""

    case: Case
    lengths: tuple[int, ...]
    page_size: int | None = None

    def sequences(self):
        """Each sequence's own case and operands; heads' slopes and sinks are the same for all."""
        found = []
        for i, length in enumerate(self.lengths):
            case = replace(self.case, tk=length, seed=(self.case.seed + i) % 2**32)
            x = operands(case)
            first = found[0][1] if found else x
            found.append((case, replace(x, slopes=first.slopes, sinks=first.sinks)))
        return found


def caches(**fixed):
    case = cases(
        batch=st.just(1),
        tq=st.integers(1, 8),
        tk=st.just(0),
        groups=st.sampled_from([1, 2, 3, 5]),
        causal=st.sampled_from([None, "bottom_right"]),
        window=st.one_of(st.none(), st.tuples(sides, sides)),
        softcap=st.one_of(st.none(), st.floats(0.5, 50)),
        alibi=st.booleans(),
        sinks=st.booleans(),
        tile=st.sampled_from([(16, 16), (16, 32)]),
    )
    lengths = st.lists(st.one_of(st.integers(0, 70), st.sampled_from([0, 1, 16])), min_size=1)
    shapes = {"case": case, "lengths": lengths.map(lambda x: tuple(x[:2]))}
    return st.builds(Cache, **{**shapes, **fixed})


def stored(call, name):
    """The keys or values as a cache holds them, NaN in all that no query sees; and the table."""
    rng = np.random.default_rng(call.case.seed)
    parts = []
    for case, x in call.sequences():
        part = getattr(x, name).clone()
        hidden = ~seen_pairs(case, x).any((0, 1, 2))
        part[..., torch.from_numpy(hidden), :] = float("nan")
        parts.append(part)
    heads, width = parts[0].shape[1], parts[0].shape[-1]
    if call.page_size is None:
        capacity = max(call.lengths) + 3
        whole = torch.full((len(parts), heads, capacity, width), float("nan"), dtype=parts[0].dtype)
        for b, part in enumerate(parts):
            whole[b, :, : part.shape[2]] = part[0]
        return whole, None
    counts = [launch.cdiv(n, call.page_size) for n in call.lengths]
    order = iter(rng.permutation(sum(counts) + 2).tolist())
    table = torch.full((len(parts), max(counts) + 1), GARBAGE, dtype=torch.int32)
    shape = (sum(counts) + 2, heads, call.page_size, width)
    whole = torch.full(shape, float("nan"), dtype=parts[0].dtype)
    for b, part in enumerate(parts):
        for i, page in enumerate(part[0].split(call.page_size, 1) if counts[b] else ()):
            table[b, i] = next(order)
            whole[table[b, i], :, : page.shape[1]] = page
    return whole, table


def by_kernels(call):
    """Output and lse of the public call."""
    case, sequences = call.case, call.sequences()
    (key, table), (value, _) = stored(call, "key"), stored(call, "value")
    x = sequences[0][1]
    options = {name: v for name, v in case.options().items() if name not in ("dropout_p", "seed")}
    with tiles(*case.tile), launched() as names:
        out, lse = attention(
            case.layout(torch.cat([x.query for _, x in sequences]).to(DEVICE)),
            case.layout(key.to(DEVICE)),
            case.layout(value.to(DEVICE)),
            alibi_slopes=None if x.slopes is None else x.slopes.to(DEVICE),
            sinks=None if x.sinks is None else x.sinks.to(DEVICE),
            key_lengths=torch.tensor(call.lengths, dtype=torch.int32, device=DEVICE),
            block_table=None if table is None else table.to(DEVICE),
            return_lse=True,
            **options,
        )
    assert names == SPLIT
    return {"out": out, "lse": lse}


def together(found):
    return {n: torch.cat([torch.as_tensor(one[n]) for one in found]) for n in ("out", "lse")}


def check_cache(call):
    sequences = call.sequences()
    truth, theirs = (together([f(case, x) for case, x in sequences]) for f in (exact, eager))
    theirs = off_by_eager_s_usual_error(truth, theirs, [case for case, _ in sequences])
    for name, value in by_kernels(call).items():
        assert_near(name, value, truth[name], theirs[name])


# A chunk of 16 keys is short for a GPU; here it makes several of them.
@given(caches())
@fewer(60)
def test_contiguous_caches(call):
    with limits(_SHORTEST_CHUNK=(decode, 16)):
        check_cache(call)


@given(caches(page_size=st.sampled_from([16, 17, 20, 64])))
@fewer(60)
def test_paged_caches(call):
    with limits(_SHORTEST_CHUNK=(decode, 16)):
        check_cache(call)


@pytest.mark.parametrize(("kv_heads", "groups", "tq"), [(1, 8, 8), (2, 12, 3), (1, 70, 1)])
def test_groups_of_more_rows_than_a_tile(kv_heads, groups, tq):
    case = Case(batch=1, kv_heads=kv_heads, groups=groups, tq=tq, tk=0, alibi=True, sinks=True)
    check_cache(Cache(replace(case, causal="bottom_right"), (21, 5), 16))


# ---- splits -------------------------------------------------------------------------------------


def problem_of(case, x, max_k):
    return problem(
        *(x.query, x.key, x.value, None, None, x.slopes, x.sinks, None, None, case.tq, max_k),
        *(None, None if case.causal is None else 0, case.causal != "top_left"),
        *(case.d**-0.5, case.softcap, 0.0, 0),
    )


@given(
    cases(
        tq=st.integers(1, 4),
        tk=st.integers(1, 90),
        groups=st.sampled_from([1, 2]),
        causal=st.sampled_from([None, "top_left", "bottom_right"]),
        softcap=st.sampled_from([None, 3.0]),
        alibi=st.booleans(),
        sinks=st.booleans(),
        layout=st.none(),
        dtype=st.just(torch.float32),
    ),
    st.integers(2, 9),
)
@fewer(50)
def test_the_number_of_splits_changes_nothing_beyond_rounding(case, splits):
    x = operands(case)
    x = replace(x, **{n: v.to(DEVICE) for n, v in vars(x).items() if v is not None})
    asked = problem_of(case, x, case.tk)
    with tiles():
        one = decode.decode(asked, splits=1)
        many = decode.decode(asked, splits=splits)
    size = max(1.0, float(x.value.abs().max()))
    torch.testing.assert_close(one[0], many[0], rtol=0, atol=4e-6 * size)
    lses = [stats.sum(0) for _, stats in (one, many)]
    torch.testing.assert_close(*lses, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
@pytest.mark.parametrize("tq", [1, 3])
def test_few_queries_over_many_keys_are_split_and_differentiable(tq, causal):
    # Nothing but the sizes asks for it: backward has to agree with what the split kernels kept.
    case = Case(batch=1, groups=2, kv_heads=1, tq=tq, tk=1030, d=4, dv=5, causal=causal, sinks=True)
    x = operands(case)
    truth, theirs = exact(case, x), eager(case, x)
    case = replace(case, tile=(16, 128))
    with launched() as names:
        ours = run(case, x)
    assert names[:2] == SPLIT
    assert "attention_forward" not in names
    terms = largest_terms(case, x)
    for name, value in ours.items():
        factor = 3 if name.startswith("d_") else 2
        assert_near(name, value, truth[name], theirs[name], factor, terms.get(name, 0.0))


def test_what_is_not_split():
    def launches(tq, tk, groups=1, **options):
        q, k = drawn(0, (1, groups, tq, 4)), drawn(1, (1, 1, tk, 4))
        with launch.recording() as made:
            attention(q, k, k, **options)
        return [one.kernel.__name__.lstrip("_") for one in made]

    whole = ["attention_forward"]
    assert launches(1, 1024) == launches(64, 1024) == launches(8, 1024, 8) == SPLIT
    assert launches(1, 1023) == launches(65, 1024) == launches(9, 1024, 8) == whole
    mask = torch.ones(1024, dtype=torch.bool, device=DEVICE)
    assert launches(1, 1024, mask=mask) == launches(1, 1024, bias=mask.float()) == whole
    assert launches(1, 1024, dropout_p=0.5) == whole
    lengths = torch.ones(1, dtype=torch.int32, device=DEVICE)
    assert launches(70, 40, key_lengths=lengths) == SPLIT  # a cache always is


# ---- merging ------------------------------------------------------------------------------------


def partial_results(seed, parts, rows, width, dtype=torch.float32):
    """Outputs and lses of parts, about a third of which saw nothing."""
    rng = np.random.default_rng(seed)
    lses = rng.normal(0, 20, (parts, rows))
    lses[rng.random((parts, rows)) < 0.3] = -np.inf
    outputs = np.where(np.isneginf(lses)[..., None], 0, rng.standard_normal((parts, rows, width)))
    outputs, lses = torch.from_numpy(outputs).to(dtype), torch.from_numpy(lses).float()
    return outputs.to(DEVICE), lses.to(DEVICE)


def merged(outputs, lses):
    """lse = log Σ exp(lseᵢ) and O = Σ exp(lseᵢ - lse) Oᵢ as it is written."""
    outputs, lses = outputs.double(), lses.double()
    lse = lses.logsumexp(0)
    weights = torch.where(lses.isneginf(), 0.0, (lses - lse).exp())
    return (weights[..., None] * outputs).sum(0), lse


@given(seeds, st.integers(1, 6), st.integers(1, 20), st.integers(1, 33), dtypes)
def test_merging_is_its_formula(seed, parts, rows, width, dtype):
    outputs, lses = partial_results(seed, parts, rows, width, dtype)
    truth = merged(outputs, lses)
    weights = (lses - lses.logsumexp(0)).exp().nan_to_num(0).to(dtype)
    theirs = ((weights[..., None] * outputs).sum(0), lses.logsumexp(0))
    for name, ours, right, eagerly in zip(
        ("out", "lse"), merge_attention(outputs, lses), truth, theirs, strict=True
    ):
        assert ours.dtype is eagerly.dtype
        # The lse goes to base 2 and back, of which each way is a rounding.
        term = 2 * float(lses[lses.isfinite()].abs().max()) if bool(lses.isfinite().any()) else 0
        assert_near(name, ours, right, eagerly, term=term if name == "lse" else 0.0)


@given(seeds, st.integers(2, 6), st.data())
@fewer(50)
def test_merging_is_associative(seed, parts, data):
    outputs, lses = partial_results(seed, parts, 9, 5)
    groups = data.draw(st.lists(st.integers(0, 2), min_size=parts, max_size=parts))
    members = [[i for i, g in enumerate(groups) if g == group] for group in set(groups)]
    grouped = [merge_attention(outputs[m], lses[m]) for m in members]
    twice = merge_attention(*(torch.stack(x) for x in zip(*grouped, strict=True)))
    for a, b in zip(merge_attention(outputs, lses), twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@given(seeds, st.lists(st.integers(0, 20), min_size=1, max_size=4), st.booleans())
@fewer(25)
def test_merging_parts_is_attention_over_the_union(seed, lengths, hidden):
    q = drawn(seed, (1, 2, 5, 8))
    k, v = (drawn(seed + i, (1, 2, sum(lengths), 8)) for i in (1, 2))
    options = {}
    with tiles():
        found = []
        pairs = zip(k.split(lengths, 2), v.split(lengths, 2), strict=True)
        for part, (key, value) in enumerate(pairs):
            if hidden and part == 0:
                options = {"mask": torch.zeros(1, dtype=torch.bool, device=DEVICE)}
            found.append(attention(q, key, value, return_lse=True, **options))
            options = {}
        ours = merge_attention(*(torch.stack(x) for x in zip(*found, strict=True)))
        first = lengths[0] if hidden else 0
        whole = attention(q, k[:, :, first:], v[:, :, first:], return_lse=True)
    for a, b in zip(ours, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_merging_what_saw_nothing_gives_nothing():
    out, lse = merge_attention(
        torch.zeros(3, 4, 2, device=DEVICE), torch.full((3, 4), -float("inf"), device=DEVICE)
    )
    assert bits_equal(out, torch.zeros_like(out))
    assert bool(lse.isneginf().all())


def test_a_single_part_is_itself():
    outputs, lses = partial_results(0, 1, 12, 6)
    out, lse = merge_attention(outputs.view(1, 3, 4, 6), lses.view(1, 3, 4))
    assert bits_equal(out, outputs.view(3, 4, 6))
    torch.testing.assert_close(lse, lses.view(3, 4), rtol=1e-6, atol=0)


def test_merging_no_rows():
    out, lse = merge_attention(
        torch.zeros(2, 0, 4, dtype=torch.float16, device=DEVICE), torch.zeros(2, 0, device=DEVICE)
    )
    assert (out.shape, out.dtype, lse.shape) == ((0, 4), torch.float16, (0,))


# ---- errors -------------------------------------------------------------------------------------


def given_cache(**changed):
    args = {
        "query": drawn(0, (2, 2, 1, 4)),
        "key": drawn(1, (2, 1, 20, 4)),
        "value": drawn(2, (2, 1, 20, 4)),
        "key_lengths": torch.tensor([3, 4], dtype=torch.int32, device=DEVICE),
    }
    return {**args, **changed}


REFUSED = {
    "mask is given": lambda: {"mask": torch.ones(20, dtype=torch.bool, device=DEVICE)},
    "bias is given": lambda: {"bias": torch.ones(20, device=DEVICE)},
    "dropout_p is 0.25": lambda: {"dropout_p": 0.25},
    "causal is 'top_left', and a cache is aligned at its end": lambda: {"causal": "top_left"},
    "a gradient is wanted; call it under torch.no_grad": lambda: {
        "query": drawn(0, (2, 2, 1, 4)).requires_grad_()
    },
    "a gradient is wanted": lambda: {"value": drawn(0, (2, 1, 20, 4)).requires_grad_()},
    "mask is given; dropout_p is 0.5": lambda: {
        "mask": torch.ones(20, dtype=torch.bool, device=DEVICE),
        "dropout_p": 0.5,
    },
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_cache_says_in_words_what_it_cannot_serve(reason):
    with pytest.raises(ValueError, match="attention over a cache can't serve this: ") as error:
        attention(**given_cache(**REFUSED[reason]()))
    assert reason in str(error.value)


def test_without_gradients_asked_for_a_cache_serves_parameters():
    with torch.no_grad():
        out = attention(**given_cache(query=drawn(0, (2, 2, 1, 4)).requires_grad_()))
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda: {"key_lengths": torch.tensor([3, 4], device=DEVICE)},
            r"key_lengths must be int32 \(2,\), got \(2,\) torch.int64",
        ),
        (
            lambda: {"key_lengths": torch.ones(3, dtype=torch.int32, device=DEVICE)},
            r"key_lengths must be int32 \(2,\), got \(3,\)",
        ),
        (
            lambda: {"block_table": torch.zeros(2, 1, device=DEVICE)},
            r"block_table must be int32 \(2, pages\), got \(2, 1\) torch.float32",
        ),
        (
            lambda: {
                "block_table": torch.zeros(2, 1, dtype=torch.int32, device=DEVICE),
                "key_lengths": None,
            },
            "block_table needs key_lengths: how many keys each sequence has",
        ),
        (
            lambda: {"key_lengths": torch.zeros(2, dtype=torch.int32, device="meta")},
            f"must be on one device, got query on {DEVICE}.*key_lengths on meta",
        ),
        (
            lambda: {"query": drawn(0, (1, 2, 1, 4)), "key_lengths": None},
            r"query and key must have equal batch \(query \(1, 2, 1, 4\), key \(2, 1, 20, 4\)",
        ),
        (
            lambda: {"alibi_slopes": torch.ones(3, device=DEVICE)},
            r"alibi_slopes must be \(2,\) or \(2, 2\), .* got \(3,\)",
        ),
        (lambda: {"sinks": torch.ones(1, device=DEVICE)}, r"sinks must be \(2,\), .* got \(1,\)"),
    ],
)
def test_errors_of_a_cache(changed, message):
    with pytest.raises(ValueError, match=message):
        attention(**given_cache(**changed()))


@pytest.mark.parametrize(
    ("outputs", "lses", "kind", "message"),
    [
        ((2, 3, 4), (2, 4), ValueError, r"outputs \(2, 3, 4\) must be .* lses \(2, 4\) the same"),
        ((0, 3, 4), (0, 3), ValueError, r"outputs \(0, 3, 4\) must be \(parts, \.\.\., Dv\)"),
        ((4,), (), ValueError, r"outputs \(4,\) must be"),
    ],
)
def test_errors_of_merging(outputs, lses, kind, message):
    with pytest.raises(kind, match=message):
        merge_attention(torch.zeros(outputs, device=DEVICE), torch.zeros(lses, device=DEVICE))


def test_errors_of_merging_other_dtypes_and_gradients():
    outputs, lses = torch.zeros(2, 3, 4, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(TypeError, match=r"lses must be float32, got torch\.float16"):
        merge_attention(outputs, lses.half())
    with pytest.raises(TypeError, match="outputs must be float32, float16 or bfloat16, got"):
        merge_attention(outputs.double(), lses)
    with pytest.raises(ValueError, match="outputs on .*, lses on meta"):
        merge_attention(outputs, lses.to("meta"))
    with pytest.raises(ValueError, match=r"no gradient; call it under torch\.no_grad"):
        merge_attention(outputs.requires_grad_(), lses)
