"""Packed sequences (cu_seqlens), forward and backward: each is as it would be alone."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE, GRADIENT, OUTPUT, assert_near, bits_equal, torch

# isort: split
from glassformer.fused.dropout_mask import keep_mask
from glassformer_kernels.ops.attention import attention
from tests.kernels.attention_cases import (
    Case,
    cases,
    causals,
    eager,
    exact,
    fewer,
    largest_terms,
    off_by_eager_s_usual_error,
    operands,
    sides,
    tiles,
)
from tests.row_calls import drawn

LEAVES = ("query", "key", "value", "sinks")


@dataclass(frozen=True)
class Packed:
    """A call: `case` but for its lengths, each sequence's (Tq, Tk), what maxima exceed them by."""

    case: Case
    lengths: tuple[tuple[int, int], ...]
    slack: int | None = None

    def sequences(self):
        """Each sequence's own case and operands; heads' slopes and sinks are the same for all."""
        found = []
        for i, (tq, tk) in enumerate(self.lengths):
            case = replace(self.case, tq=tq, tk=tk, seed=(self.case.seed + i) % 2**32)
            x = operands(case)
            first = found[0][1] if found else x
            x = replace(x, slopes=first.slopes, sinks=first.sinks)
            if not bool(np.isfinite(exact(case, x)["lse"]).all()):
                x.d_lse.zero_()  # the lse of nothing is -inf: there is no gradient to ask for
            found.append((case, x))
        return found


def packed(**fixed):
    case = cases(
        batch=st.just(1),
        tq=st.just(0),
        tk=st.just(0),
        d=st.integers(1, 20),
        dv=st.integers(1, 20),
        **{"causal": causals, **fixed},
    )
    length = st.one_of(st.integers(0, 20), st.sampled_from([0, 1, 16, 33]))
    lengths = st.lists(st.tuples(length, length), min_size=1, max_size=4)
    slack = st.sampled_from([None, 0, 5])
    return st.builds(Packed, case, lengths.map(tuple), slack)


def joined(tensors):
    """(1, H, T, D) each, as one (total, H, D)."""
    return torch.cat([x[0].transpose(0, 1) for x in tensors])


def offsets(lengths):
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)


def by_kernels(call, sequences):
    """Output, lse and gradients of the public call."""
    case, (_, first) = call.case, sequences[0]

    def laid(tensor):
        return case.layout(tensor.to(DEVICE)) if tensor.numel() else tensor.to(DEVICE)

    leaves = {n: laid(joined([getattr(x, n) for _, x in sequences])) for n in LEAVES[:3]}
    if case.sinks:
        leaves["sinks"] = first.sinks.to(DEVICE)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    q_lengths, k_lengths = zip(*call.lengths, strict=True)
    longest = {}
    if call.slack is not None:
        longest["max_seqlen_q"] = max(q_lengths) + call.slack
        longest["max_seqlen_k"] = max(k_lengths) + call.slack
    with tiles(*case.tile):
        out, lse = attention(
            leaves["query"],
            leaves["key"],
            leaves["value"],
            cu_seqlens_q=offsets(q_lengths),
            cu_seqlens_k=offsets(k_lengths),
            alibi_slopes=None if first.slopes is None else first.slopes.to(DEVICE),
            sinks=leaves.get("sinks"),
            return_lse=True,
            **longest,
            **case.options(),
        )
        d_out = laid(joined([x.d_out for _, x in sequences]))
        d_lse = torch.cat([x.d_lse[0] for _, x in sequences], 1).to(DEVICE)
        torch.autograd.backward([out, lse], [d_out, d_lse])
    return {"out": out, "lse": lse, **{f"d_{name}": x.grad for name, x in leaves.items()}}


def together(found):
    """What each sequence gives alone, as the packed call gives it."""
    everything = {}
    for name in found[0]:
        parts = [torch.as_tensor(one[name]) for one in found]
        if name == "lse":
            everything[name] = torch.cat([x[0] for x in parts], 1)
        elif name == "d_sinks":
            everything[name] = torch.stack(parts).sum(0)
        else:
            everything[name] = joined(parts)
    return everything


def check_packed(call):
    sequences = call.sequences()
    truth, theirs = (together([f(case, x) for case, x in sequences]) for f in (exact, eager))
    theirs = off_by_eager_s_usual_error(truth, theirs, [case for case, _ in sequences])
    terms = [largest_terms(case, x) for case, x in sequences if 0 not in (case.tq, case.tk)]
    ours = by_kernels(call, sequences)
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        term = max((t[name] for t in terms if name in t), default=0.0)
        if name == "d_sinks":
            term *= len(sequences) ** 0.5
        factor = GRADIENT if name.startswith("d_") else OUTPUT
        assert_near(name, value, truth[name], theirs[name], factor, term)


@given(packed())
@fewer(40)
def test_any_lengths(call):
    check_packed(call)


@given(
    packed(
        window=st.one_of(st.none(), st.tuples(sides, sides)),
        softcap=st.one_of(st.none(), st.floats(0.5, 50)),
        alibi=st.booleans(),
        sinks=st.booleans(),
    )
)
@fewer(40)
def test_windows_softcap_alibi_and_sinks(call):
    check_packed(call)


@pytest.mark.parametrize("lengths", [((0, 0),), ((0, 0), (3, 0)), ((0, 5), (0, 0)), ((1, 1),) * 5])
@pytest.mark.parametrize("slack", [None, 2])
def test_sequences_of_no_queries_or_keys(lengths, slack):
    check_packed(Packed(Case(batch=1, sinks=True), lengths, slack))
    check_packed(Packed(Case(batch=1, causal="bottom_right"), lengths, slack))


LENGTHS = ((5, 7), (0, 3), (18, 17), (4, 0), (1, 33))
OPTIONS = {
    "nothing else": {},
    "top_left": {"causal": "top_left"},
    "bottom_right": {"causal": "bottom_right"},
    "window": {"window": (5, 3)},
    "softcap": {"softcap": 2.0, "causal": "bottom_right"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_packed_sequence_is_bit_for_bit_what_it_is_alone(name):
    q_lengths, k_lengths = zip(*LENGTHS, strict=True)
    shapes = ((sum(q_lengths), 2, 8), (sum(k_lengths), 1, 8), (sum(k_lengths), 1, 6))
    slopes = torch.tensor([0.5, 0.25], device=DEVICE)
    leaves = [drawn(i, shape).requires_grad_() for i, shape in enumerate(shapes)]
    d_out = drawn(3, (sum(q_lengths), 2, 6))
    d_lse = drawn(4, (2, sum(q_lengths)))

    def gradients(out, lse, d_out, d_lse, inputs):
        return out, lse, *torch.autograd.grad([out, lse], inputs, [d_out, d_lse])

    options = {"alibi_slopes": slopes, "return_lse": True, **OPTIONS[name]}
    with tiles():
        cu = {"cu_seqlens_q": offsets(q_lengths), "cu_seqlens_k": offsets(k_lengths)}
        whole = gradients(*attention(*leaves, **cu, **options), d_out, d_lse, leaves)
        at_q = at_k = 0
        for tq, tk in LENGTHS:
            q, k = slice(at_q, at_q + tq), slice(at_k, at_k + tk)
            own = [
                x[s].detach().transpose(0, 1)[None] for x, s in zip(leaves, (q, k, k), strict=True)
            ]
            own = [x.requires_grad_() for x in own]
            grads = d_out[q].transpose(0, 1)[None], d_lse[None, :, q]
            alone = gradients(*attention(*own, **options), *grads, own)
            for i, part in enumerate(alone):
                if i == 1:
                    assert bits_equal(whole[i][:, q], part[0])
                else:
                    assert bits_equal(whole[i][k if i > 2 else q].transpose(0, 1), part[0]), i
            at_q, at_k = at_q + tq, at_k + tk


def test_slopes_of_each_sequence():
    lengths = ((5, 7), (20, 18))
    q, k, v = drawn(0, (25, 2, 8)), drawn(1, (25, 2, 8)), drawn(2, (25, 2, 4))
    slopes = drawn(3, (2, 2)).abs()
    cu = {"cu_seqlens_q": offsets([5, 20]), "cu_seqlens_k": offsets([7, 18])}
    at_q = at_k = 0
    with tiles():
        out = attention(q, k, v, alibi_slopes=slopes, **cu)
        for i, (tq, tk) in enumerate(lengths):
            parts = (q[at_q : at_q + tq], k[at_k : at_k + tk], v[at_k : at_k + tk])
            own = [x.transpose(0, 1)[None] for x in parts]
            alone = attention(*own, alibi_slopes=slopes[i])[0].transpose(0, 1)
            assert bits_equal(out[at_q : at_q + tq], alone)
            at_q, at_k = at_q + tq, at_k + tk


def test_dropout_drops_what_the_hash_of_seed_row_and_key_says():
    # Rows are numbered through the packed queries of each head, (H, total); keys in their sequence.
    lengths, p, seed = ((5, 7), (20, 18), (3, 1)), 0.4, 12345
    q_lengths, k_lengths = zip(*lengths, strict=True)
    totals = (sum(q_lengths), sum(k_lengths), sum(k_lengths))
    leaves = [drawn(i, (total, 2, 8)).requires_grad_() for i, total in enumerate(totals)]
    d_out = drawn(3, (sum(q_lengths), 2, 8))
    kept = torch.from_numpy(keep_mask(seed, p, (1, 2, sum(q_lengths), max(k_lengths))))[0].to(
        DEVICE
    )
    outs, at_q, at_k = [], 0, 0
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    for tq, tk in lengths:
        q, k = slice(at_q, at_q + tq), slice(at_k, at_k + tk)
        query, key, value = (
            x[s].transpose(0, 1) for x, s in zip(exact_leaves, (q, k, k), strict=True)
        )
        weights = (query @ key.mT * 8**-0.5).softmax(-1)
        outs.append(((weights * kept[:, q, :tk] / (1 - p)) @ value).transpose(0, 1))
        at_q, at_k = at_q + tq, at_k + tk
    expected = torch.cat(outs)
    expected_grads = torch.autograd.grad(expected, exact_leaves, d_out.double())
    cu = {"cu_seqlens_q": offsets(q_lengths), "cu_seqlens_k": offsets(k_lengths)}
    with tiles():
        for _ in range(2):  # the same seed, the same weights
            out = attention(*leaves, dropout_p=p, seed=seed, **cu)
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
            for a, b in zip(torch.autograd.grad(out, leaves, d_out), expected_grads, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)
        other = attention(*leaves, dropout_p=p, seed=seed + 1, **cu)
    assert not torch.allclose(out, other)


def call_with(**changed):
    args = {
        "query": drawn(0, (6, 2, 4)),
        "key": drawn(1, (6, 2, 4)),
        "value": drawn(2, (6, 2, 4)),
        "cu_seqlens_q": offsets([2, 4]),
        "cu_seqlens_k": offsets([2, 4]),
    }
    return attention(**{**args, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: {"cu_seqlens_k": None}, "packed sequences need both cu_seqlens_q and"),
        (lambda: {"cu_seqlens_q": None}, "packed sequences need both cu_seqlens_q and"),
        (
            lambda: {"cu_seqlens_q": offsets([6])},
            r"cu_seqlens_q \(2,\) and cu_seqlens_k \(3,\) must tell of equally many",
        ),
        (
            lambda: {"cu_seqlens_q": offsets([2, 4]).long()},
            r"cu_seqlens_q must be int32 of shape \(sequences \+ 1,\), got \(3,\) torch.int64",
        ),
        (lambda: {"cu_seqlens_k": offsets([])}, r"cu_seqlens_k must be int32 .*, got \(1,\)"),
        (
            lambda: {"cu_seqlens_q": offsets([2, 4]).to("meta")},
            f"must be on one device, got query on {DEVICE}.*cu_seqlens_q on meta",
        ),
        (
            lambda: {"mask": torch.ones(1, dtype=torch.bool, device=DEVICE)},
            "can't be combined with mask: .* packed sequences have no rectangle",
        ),
        (
            lambda: {
                "mask": torch.ones(1, dtype=torch.bool, device=DEVICE),
                "bias": torch.ones(1, device=DEVICE),
            },
            "can't be combined with mask or bias",
        ),
        (
            lambda: {"query": drawn(0, (1, 6, 2, 4))},
            r"packed sequences are \(total, heads, head_dim\) tensors: query \(1, 6, 2, 4\)",
        ),
        (
            lambda: {"key": drawn(0, (6, 4, 4)), "value": drawn(0, (6, 4, 4))},
            r"2 query heads can't share 4 key heads; .* \(query \(6, 2, 4\), key \(6, 4, 4\)",
        ),
        (
            lambda: {"alibi_slopes": torch.ones(3, device=DEVICE)},
            r"alibi_slopes must be \(2,\) or \(2, 2\), .* got \(3,\)",
        ),
        (
            lambda: {"key_lengths": torch.ones(6, dtype=torch.int32, device=DEVICE)},
            "attention over a cache can't serve this: cu_seqlens_q is given",
        ),
    ],
)
def test_errors_of_packed_sequences(changed, message):
    with pytest.raises(ValueError, match=message):
        call_with(**changed())
