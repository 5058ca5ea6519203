"""Matrix products, each beside its derivative."""

from __future__ import annotations

import math
from typing import Any

from glassformer.dtypes import result_type
from glassformer.graph import wants_grad
from glassformer.ops import conversion
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor


def _product(xp: Any, x: Any, y: Any) -> Any:
    if x.ndim != 2 and y.ndim == 2:  # one large product in place of many small ones
        return xp.reshape(xp.matmul(_as_rows(xp, x), y), (*x.shape[:-1], y.shape[1]))
    return xp.matmul(x, y)


def _as_rows(xp: Any, x: Any) -> Any:
    """(..., C) -> (N, C)."""
    return xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


_matmul = Primitive("matmul", _product)
_matmul.defvjp(
    lambda g, _out, _x, y: matmul(g, y.mT),
    lambda g, _out, x, _y: _row_products(x, g) if _y.ndim == 2 else matmul(x.mT, g),
)

# Σ over rows of xᵢᵀ yᵢ: x (..., n), y (..., m) -> (n, m). What a weight's gradient is.
_row_products: Primitive = Primitive(
    "row_products",
    lambda xp, x, y: xp.matmul(xp.transpose(_as_rows(xp, x), (1, 0)), _as_rows(xp, y)),
)
_row_products.defvjp(
    lambda g, _out, _x, y: matmul(y, g.mT),
    lambda g, _out, x, _y: matmul(x, g),
)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix product over the last two dimensions, earlier ones broadcast together.

    A 1-d tensor is a row on the left and a column on the right.

    Raises:
        ValueError: the inner dimensions differ, or a tensor is 0-d.
    """
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(f"matmul needs at least one dimension, got {x.shape} and {y.shape}")
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul: inner dimensions differ, {x.shape} @ {y.shape}")
    if x.dtype is not y.dtype:
        dtype = result_type((x, y))
        x, y = conversion.to(x, dtype), conversion.to(y, dtype)
    row, column = x.ndim == 1, y.ndim == 1
    x = x.unsqueeze(0) if row else x
    y = y.unsqueeze(1) if column else y
    if x.ndim != 2 and y.ndim == 2:  # one large product in place of many small ones
        batch = x.shape[:-1]
        rows = x.reshape(math.prod(batch), x.shape[-1])
        out: Tensor = _matmul(rows, y).reshape(*batch, y.shape[-1])
    else:
        out = _matmul(x, y)
    if row or column:
        kept = out.shape[: out.ndim - 2]
        out = out.reshape(kept + out.shape[-2:][int(row) : 2 - int(column)])
    return out


def bmm(x: Tensor, y: Tensor) -> Tensor:
    """Return one matrix product per batch element: (B, n, k) @ (B, k, m) -> (B, n, m).

    Raises:
        ValueError: the shapes are no such two.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0]:
        raise ValueError(f"bmm takes (B, n, k) and (B, k, m), got {x.shape} and {y.shape}")
    return matmul(x, y)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Return the products of all pairs: (n,), (m,) -> (n, m).

    Raises:
        ValueError: one of them is not a vector.
    """
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"outer takes two vectors, got {x.shape} and {y.shape}")
    return x.unsqueeze(1) * y.unsqueeze(0)


# ---- linear: x Wᵀ + b as one node ---------------------------------------------------------------


def _linear_forward(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    out = _product(xp, x, xp.transpose(weight, (1, 0)))
    if bias is not None:
        out += bias
    return out


_linear = Primitive("linear", _linear_forward)
_linear.defvjp(
    lambda g, _out, _x, weight, _bias: matmul(g, weight),
    lambda g, _out, x, _weight, _bias: _row_products(g, x),
    lambda g, _out, _x, _weight, _bias: g,  # summed over rows, as what was broadcast
)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b: input (..., in), weight (out, in), bias (out,) -> (..., out).

    Parameters held in half precision are widened to the dtype of a float32 or float64 input.

    Raises:
        ValueError: the shapes don't fit.
        TypeError: the dtypes differ, or `input` is no Tensor.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"linear takes a Tensor, got {type(input).__name__}; see gf.tensor()")
    if weight.ndim != 2 or input.ndim == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: input {input.shape} needs a last dimension equal to the second of "
            f"weight {weight.shape}, which is (out, in)"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"linear: bias {bias.shape} must be ({weight.shape[0]},)")
    dtype = input.dtype
    if bias is not None and bias.dtype is not dtype:
        _check_compact(bias, input)
        bias = conversion.to(bias, dtype)
    if weight.dtype is not dtype:
        _check_compact(weight, input)
        # NumPy's products read a compact weight as it is. Its gradient needs the conversion.
        if input.device.type != "cpu" or wants_grad((weight,)):
            weight = conversion.to(weight, dtype)
    return _linear(input, weight, bias)


def _check_compact(parameter: Tensor, input: Tensor) -> None:
    """Raise TypeError unless a parameter is of half precision, and an input is not."""
    if parameter.dtype.wide is parameter.dtype or input.dtype.wide is not input.dtype:
        raise TypeError(f"linear: input is {input.dtype} but a parameter is {parameter.dtype}")


# ---- einsum -------------------------------------------------------------------------------------

_einsum = Primitive(
    "einsum", lambda xp, *operands, terms, out: xp.einsum(f"{','.join(terms)}->{out}", *operands)
)
_einsum.defvjp_each(
    lambda i, g, _out, *operands, terms, out: _einsum_vjp(i, g, operands, terms, out)
)


def _einsum_vjp(
    i: int, g: Tensor, operands: tuple[Tensor, ...], terms: tuple[str, ...], out: str
) -> Tensor:
    """The gradient of one operand: an einsum of the output's gradient with the other operands."""
    others = [(t, o) for j, (t, o) in enumerate(zip(terms, operands, strict=True)) if j != i]
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, n in zip(term, operand.shape, strict=True):
            if n != 1 or letter not in sizes:
                sizes[letter] = n
    # a dimension of length 1 that was broadcast: repeat the operand so that sizes agree again
    repeated = [o.expand(*(sizes[letter] for letter in t)) for t, o in others]
    known = set(out).union(*(t for t, _ in others)) if others else set(out)
    summed = [letter for letter in terms[i] if letter not in known]
    g_term, g_full = out, g
    for letter in summed:  # summed within this operand alone: its gradient repeats along it
        g_term += letter
        g_full = g_full.unsqueeze(-1).expand(*g_full.shape, sizes[letter])
    new_terms = (g_term, *(t for t, _ in others))
    return _einsum(g_full, *repeated, terms=new_terms, out=terms[i])


def _spelled_out(equation: str, operands: tuple[Tensor, ...]) -> tuple[tuple[str, ...], str]:
    """Replace `...` by letters and add the implicit output."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum {equation!r} has {len(terms)} terms for {len(operands)} operands")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    widest = 0
    spelled: list[tuple[str, int]] = []
    for term, operand in zip(terms, operands, strict=True):
        missing = operand.ndim - len(term.replace("...", ""))
        if missing < 0 or (missing and "..." not in term):
            raise ValueError(
                f"einsum {equation!r}: term {term!r} doesn't fit a tensor of shape {operand.shape}"
            )
        widest = max(widest, missing)
        spelled.append((term, missing))
    batch = "".join(free[:widest])  # ellipses align at their last dimension
    full = [term.replace("...", batch[widest - missing :]) for term, missing in spelled]
    if not arrow:
        letters = "".join(terms).replace(".", "")
        out = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    out = out.replace("...", batch)
    if unknown := set(out) - set("".join(full)):
        raise ValueError(f"einsum {equation!r}: no term has the output's {sorted(unknown)}")
    for term in (*full, out):
        if len(set(term)) != len(term):
            raise ValueError(f"einsum {equation!r}: an index repeated within one term")
    return tuple(full), out


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Return the Einstein sum, for example `einsum("bhqd,bhkd->bhqk", query, key)`.

    Raises:
        ValueError: the equation doesn't fit the operands, or repeats an index within one term.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, out = _spelled_out(equation, operands)
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, n in zip(term, operand.shape, strict=True):
            if n != 1 and sizes.setdefault(letter, n) != n:
                raise ValueError(
                    f"einsum {equation!r}: index {letter!r} is {sizes[letter]} and {n} long "
                    f"(shapes {', '.join(str(o.shape) for o in operands)})"
                )
    dtype = result_type(operands)
    return _einsum(*(conversion.to(o, dtype) for o in operands), terms=terms, out=out)
