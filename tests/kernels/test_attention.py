"""Attention forward and backward against the engine's composite reference in float64."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.attention_cases import cases, causals, check, parts, sides


@given(cases(causal=causals))
def test_any_lengths_head_dims_groups_and_layouts(case):
    check(case)


@given(cases(causal=causals, window=st.tuples(sides, sides)))
def test_windows(case):
    check(case)


@given(cases(causal=causals, mask=parts))
def test_boolean_masks_that_broadcast(case):
    check(case)


@given(cases(causal=causals, bias=parts, mask=st.one_of(st.none(), parts)))
def test_bias_with_its_gradient_over_any_broadcast(case):
    check(case)


@given(
    cases(
        causal=causals,
        window=st.one_of(st.none(), st.tuples(sides, sides)),
        softcap=st.one_of(st.none(), st.floats(0.5, 50)),
        alibi=st.booleans(),
        sinks=st.booleans(),
        bias=st.one_of(st.none(), parts),
        scale=st.one_of(st.none(), st.sampled_from([-0.5, 0.0, 1.0])),
    )
)
def test_softcap_alibi_and_sinks(case):
    check(case)


@given(cases(causal=causals, dropout_p=st.floats(0.05, 0.95), bias=st.one_of(st.none(), parts)))
@settings(max_examples=60)
def test_dropout_is_the_reference_s_own(case):
    check(case)
