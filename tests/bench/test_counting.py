"""FLOPs and bytes against closed forms, and pairs against the engine's own mask."""

from dataclasses import replace

import pytest

from glassformer.fused.attention import visible_keys as engine_mask
from glassformer_bench.counting import count, visible_keys, visible_pairs
from glassformer_bench.problem import Problem, grid, normalised, parse_size, parse_window


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_causal_pairs_are_the_triangle(n):
    assert visible_pairs(n, n, "top_left") == n * (n + 1) // 2
    assert visible_pairs(n, n, "bottom_right") == n * (n + 1) // 2


@pytest.mark.parametrize(("n", "m"), [(3, 10), (64, 100)])
def test_rectangular_causal_pairs(n, m):
    assert visible_pairs(n, m, "top_left") == n * (n + 1) // 2
    assert visible_pairs(n, m, "bottom_right") == n * (n + 1) // 2 + n * (m - n)
    # more queries than keys: the first m queries make the triangle, the others see all keys
    assert visible_pairs(m, n, "top_left") == n * (n + 1) // 2 + (m - n) * n
    # ... or none, where the last query stands at the last key
    assert visible_pairs(m, n, "bottom_right") == n * (n + 1) // 2


@pytest.mark.parametrize(("n", "w"), [(10, 3), (64, 16), (5, 5)])
def test_a_causal_window_is_a_band(n, w):
    expected = n * (w + 1) - w * (w + 1) // 2
    assert visible_pairs(n, n, "top_left", (w, 0)) == expected
    assert visible_pairs(n, n, "top_left", (w, -1)) == expected
    assert visible_pairs(n, n, None, (w, w)) == 2 * expected - n


@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
@pytest.mark.parametrize("window", [None, (2, 0), (0, 2), (-1, 1), (1, -1), (3, 2)])
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (9, 4), (6, 6)])
def test_pairs_and_keys_agree_with_the_mask(causal, window, shape):
    limits = window and tuple(None if n == -1 else n for n in window)
    seen = engine_mask(*shape, causal, limits)
    if seen is None:
        assert visible_pairs(*shape, causal, window) == shape[0] * shape[1]
        assert visible_keys(*shape, causal, window) == shape[1]
    else:
        assert visible_pairs(*shape, causal, window) == seen.sum()
        assert visible_keys(*shape, causal, window) == seen.any(0).sum()


def attention(**changes):
    sizes = {"batch": 2, "heads": 6, "kv_heads": 6, "seqlen": 128, "seqlen_k": 128, "head_dim": 32}
    return Problem(op="attention", **{**sizes, **changes})


def test_attention_flops():
    forward = 4 * 2 * 6 * 128 * 128 * 32
    assert count(attention()).flops == forward
    assert count(attention(mode="bwd")).flops == 2.5 * forward
    assert count(attention(mode="fwd_bwd")).flops == 3.5 * forward
    assert count(attention(mode="fwd_bwd")).least_flops == 3 * forward
    assert count(attention(causal="top_left")).flops == 4 * 2 * 6 * 32 * (128 * 129 // 2)
    # sharing keys saves bytes, not FLOPs
    assert count(attention(kv_heads=2)).flops == forward


def test_attention_bytes():
    one = 2 * 6 * 128 * 32 * 4
    assert count(attention()).bytes == 4 * one
    assert count(attention()).bytes_read == 3 * one
    assert count(attention(mode="bwd")).bytes == 8 * one
    assert count(attention(mode="fwd_bwd")).bytes == 12 * one
    assert count(attention(dtype="bf16")).bytes == 2 * one
    assert count(attention(kv_heads=2)).bytes == 2 * one + 2 * one / 3
    # 16 queries from the top left see 16 of 128 keys
    short = count(attention(seqlen=16, causal="top_left"))
    assert short.bytes == 4 * one / 8
    # ... but the gradients of all keys are written
    back = count(attention(seqlen=16, causal="top_left", mode="bwd"))
    assert back.bytes == (4 + 2) * one / 8 + 2 * one


def test_intensity_of_long_attention_is_half_its_length_over_the_item():
    long = count(attention(seqlen=4096, seqlen_k=4096, dtype="bf16"))
    assert long.intensity == pytest.approx(4096 / 2)


def test_decode_reads_the_cache_once():
    work = count(
        normalised(replace(attention(kv_heads=2, seqlen_k=1000, dtype="fp16"), op="decode"))
    )
    assert work.flops == 4 * 2 * 6 * 1000 * 32
    assert work.bytes == 2 * (2 * 2 * 1000 * 32) * 2 + 2 * (2 * 6 * 32) * 2


def test_rows():
    softmax = Problem(op="softmax", batch=2, heads=3, kv_heads=3, seqlen=5, seqlen_k=7)
    assert count(softmax).bytes == 2 * 210 * 4
    assert count(softmax).flops == 5 * 210
    norm = Problem(op="layer_norm", batch=2, heads=4, kv_heads=4, seqlen=5, head_dim=8, mode="bwd")
    assert count(norm).bytes == 3 * 10 * 32 * 4 + 3 * 32 * 4
    loss = Problem(op="cross_entropy", batch=2, seqlen=5, vocab=11, mode="fwd_bwd")
    assert count(loss).bytes == 3 * 110 * 4 + 2 * 10 * 8 + 2 * 10 * 4


def test_sizes_and_windows_are_read():
    assert [parse_size(x) for x in ("512", "1k", "2K", "1m")] == [512, 1024, 2048, 1 << 20]
    assert parse_window("128") == (128, 0)
    assert parse_window("-1,4") == (-1, 4)
    for text in ("", "k", "1.5k", "0", "-3"):
        with pytest.raises(ValueError, match="a size is a number"):
            parse_size(text)


def test_a_grid_holds_every_combination_once():
    options = {
        "batch": [1],
        "heads": [8],
        "kv_heads": [None, 2],
        "seqlen": [128, 256],
        "seqlen_k": [None],
        "head_dim": [64],
        "causal": [None, "top_left"],
        "dtype": ["fp32"],
        "mode": ["fwd"],
    }
    found = grid(op="attention", **options)
    assert len(found) == len(set(found)) == 8
    assert {p.seqlen_k for p in found} == {128, 256}
    assert len(grid(op="softmax", **options)) == 2  # heads of keys and masks mean nothing to it
    for problem in found:
        assert Problem.from_dict(problem.to_dict()) == problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 6, "kv_heads": 4}, "can't share"),
        ({"dtype": "fp8"}, "dtype must be one of"),
        ({"seqlen": 0}, "seqlen must be 1 or more"),
        ({"op": "decode", "mode": "bwd"}, "decode has no backward"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Problem(**fields)
