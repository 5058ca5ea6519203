"""Filling a model from a checkpoint of the hub's, and the other way round, by its table of names.

Keys are compared in one form. The hub names the tensors of a bare model "x" where it stands alone
and "prefix.x" below a head; here the prefix is always there, and what lacks it belongs to a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassformer.backends.numpy_backend import astype
from glassformer.dtypes import BFLOAT16_STORAGE, FROM_NUMPY, DType, bfloat16, float32
from glassformer.models.names import Place
from glassformer.models.safetensors_file import Weights, WeightsError
from glassformer.models.safetensors_header import DTYPES
from glassformer.nn import Embedding, Linear, MultiheadAttention
from glassformer.tensor import Tensor

if TYPE_CHECKING:
    from glassformer.models.pretrained import PretrainedModel

Array = npt.NDArray[Any]

_MOST_LISTED = 100  # tensors in an error, of those missing, of those unexpected, …


class OtherShape(NamedTuple):
    """A checkpoint's tensor whose shape is not that of the model's."""

    name: str
    given: tuple[int, ...]
    expected: tuple[int, ...]


class Unloaded(NamedTuple):
    """What did not go from a checkpoint into a model.

    Args:
        missing: names of parameters that the checkpoint lacks; they start fresh.
        misshaped: the tensors of another shape, by the name of the parameter that starts fresh
            instead.
        left_out: keys that the model has no place for.
    """

    missing: list[str]
    misshaped: dict[str, list[OtherShape]]
    left_out: list[str]


def load_weights(
    model: PretrainedModel, weights: Weights, dtype: DType | None, ignore_mismatched_sizes: bool
) -> Unloaded:
    """Read a model's tensors from a checkpoint.

    `dtype` is what to hold them in; None is as they are stored. Tensors that their layers do not
    widen come in float32 instead of half precision.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; the model is untouched.
    """
    match = _match(model, weights, ignore_mismatched_sizes)
    compact = _widened_by_layers(model)
    arrays = [
        (tensor, _assembled(weights, place, tensor, dtype, id(tensor) in compact))
        for tensor, place in match.found
    ]
    for tensor, array in arrays:
        tensor.array = array
        tensor.bump_version()
    for module in model.modules():
        if isinstance(module, Embedding):
            module.output_dtype = module.weight.dtype.wide
    return Unloaded(match.missing, match.misshaped, match.left_out)


def hub_arrays(
    model: PretrainedModel, values: Mapping[str, Tensor] | None = None
) -> dict[str, Array]:
    """Return a model's tensors, or `values` of the same names, as the hub keeps them.

    A tied tensor comes once, under the first of its names.
    """
    arrays: dict[str, Array] = {}
    seen: set[int] = set()
    for name, tensor, place in model.hub_tensors():
        if id(tensor) not in seen and (values is None or name in values):
            seen.add(id(tensor))
            array = (tensor if values is None else values[name]).detach().cpu().array
            array = array.T if place.transposed and array.ndim == 2 else array
            starts = np.cumsum([0, *(place.rows or ())])[1:-1]
            parts = np.split(array, starts if place.rows else len(place.names))
            arrays.update(zip(place.names, parts, strict=True))
    return arrays


@dataclass
class _Match:
    """How a model's tensors and a checkpoint's keys go together."""

    found: list[tuple[Tensor, Place]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshaped: dict[str, list[OtherShape]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _match(model: PretrainedModel, weights: Weights, ignore_mismatched_sizes: bool) -> _Match:
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    keys = _by_one_form(weights, prefix)
    added = prefix if model.base_model is model else ""
    match = _Match()
    wanted: set[str] = set()
    missing: dict[int, tuple[str, Place]] = {}
    matched: dict[int, str] = {}
    for name, tensor, place in model.hub_tensors():
        names = tuple(added + one for one in place.names)
        wanted.update(names)
        if not all(one in keys for one in names):
            missing.setdefault(id(tensor), (name, Place(names)))
        elif id(tensor) not in matched:
            matched[id(tensor)] = name
            stored = Place(tuple(keys[one] for one in names), place.rows, place.transposed)
            wrong = _wrong_shapes(weights, stored, tensor.shape)
            if not wrong:
                match.found.append((tensor, stored))
            elif ignore_mismatched_sizes:
                match.misshaped[name] = wrong
            else:
                match.problems += [
                    f"shape of {one.name}: given {one.given}, the model has {one.expected}"
                    for one in wrong
                ]
    lacking = [(name, place) for key, (name, place) in missing.items() if key not in matched]
    _sort_missing(match, model, lacking, set(matched.values()), keys, prefix)
    for key in keys.keys() - wanted:
        part = key.removeprefix(prefix)
        if not key.endswith(model.ignored_keys or ("\0",)):
            known = not key.startswith(prefix) or part.startswith(
                model.base_model.optional or ("\0",)
            )
            (match.left_out if known else match.problems).append(
                keys[key] if known else f"unexpected: {keys[key]}"
            )
    if match.problems:
        raise WeightsError(
            f"the checkpoint {weights.path} does not fit {type(model).__name__}:\n  "
            + "\n  ".join(_listed(match.problems))
        )
    match.left_out.sort()
    return match


def _listed(problems: list[str]) -> list[str]:
    """Return problems in order, of each kind as many as anyone would read."""
    listed = []
    for kind in ("missing", "shape", "unexpected"):
        of_kind = sorted(problem for problem in problems if problem.startswith(kind))
        rest = len(of_kind) - _MOST_LISTED
        listed += of_kind[:_MOST_LISTED] + ([f"{kind}: {rest} more"] if rest > 0 else [])
    return listed


def _by_one_form(weights: Weights, prefix: str) -> dict[str, str]:
    """Return the checkpoint's keys by the form in which they are compared."""
    keys = list(weights.keys())
    bare = not any(key.startswith(prefix) for key in keys)
    return {(prefix if bare else "") + _modern(key): key for key in keys}


def _modern(key: str) -> str:
    """Norms had gamma and beta in checkpoints converted from TensorFlow."""
    if key.endswith(".gamma"):
        return key.removesuffix("gamma") + "weight"
    return key.removesuffix("beta") + "bias" if key.endswith(".beta") else key


def _sort_missing(
    match: _Match,
    model: PretrainedModel,
    lacking: list[tuple[str, Place]],
    matched: set[str],
    keys: Mapping[str, str],
    prefix: str,
) -> None:
    """A head, or an optional part, that is missing as a whole starts fresh; others are missed.

    But for what `ignored_keys` name: buffers, which keep what the model was built with.
    """
    present = {name.partition(".")[0] for name in matched}
    for name, place in lacking:
        if place.names[0].endswith(model.ignored_keys or ("\0",)):
            continue
        part = place.names[0].removeprefix(prefix)
        if place.names[0].startswith(prefix):
            as_whole = part.startswith(model.base_model.optional or ("\0",))
        else:
            as_whole = name.partition(".")[0] not in present
        if as_whole:
            match.missing.append(name)
        else:
            match.problems += [f"missing: {one}" for one in place.names if one not in keys]


def _part_shapes(shape: tuple[int, ...], place: Place) -> list[tuple[int, ...]]:
    """The shape of each of the hub's tensors that make one of ours."""
    if len(place.names) == 1:
        return [shape[::-1] if place.transposed else shape]
    rows = place.rows or (shape[0] // len(place.names),) * len(place.names)
    return [(count, *shape[1:]) for count in rows]


def _wrong_shapes(weights: Weights, place: Place, shape: tuple[int, ...]) -> list[OtherShape]:
    pairs = zip(place.names, _part_shapes(shape, place), strict=True)
    return [
        OtherShape(name, weights.shape(name), wanted)
        for name, wanted in pairs
        if weights.shape(name) != wanted
    ]


def _widened_by_layers(model: PretrainedModel) -> set[int]:
    """The tensors whose layers compute in float32 even if they are held in half precision."""
    found = set()
    for module in model.modules():
        if isinstance(module, Linear | Embedding):
            found.add(id(module.weight))
        elif isinstance(module, MultiheadAttention):
            found.add(id(module.in_proj_weight))
    return found


def _assembled(
    weights: Weights, place: Place, tensor: Tensor, dtype: DType | None, compact: bool
) -> Array:
    """Return the array of one of our tensors, made of the hub's.

    A tensor that is stored as we hold it is mapped, and read from the disk where it is used. Others
    are read part by part, so that no more than one part is in memory twice.
    """
    stored = {DTYPES[weights.dtype(name)] for name in place.names}
    kinds = {FROM_NUMPY.get(one) for one in stored}
    if dtype is None:
        dtype = kinds.pop() if len(kinds) == 1 else float32
        if dtype is None or not dtype.is_floating_point:
            dtype = tensor.dtype
    if not compact:
        dtype = dtype.wide
    held = BFLOAT16_STORAGE if dtype is bfloat16 else dtype.numpy
    as_stored = stored == {held}
    if as_stored and len(place.names) == 1 and not place.transposed:
        return weights.array(place.names[0])
    whole = np.empty(tensor.shape, held)
    start = 0
    for name in place.names:
        shape = weights.shape(name)
        part = whole if len(place.names) == 1 else whole[start : start + shape[0]]
        if as_stored and not place.transposed:
            weights.read_into(name, part)
        else:
            read = np.empty(shape, DTYPES[weights.dtype(name)])
            weights.read_into(name, read)
            part[...] = _converted(read.T if place.transposed else read, dtype)
        start += shape[0]
    return whole


def _converted(array: Array, dtype: DType) -> Array:
    """Return an array in another element type."""
    if dtype is not bfloat16:
        other: Array = astype(array, dtype)
        return other
    # bfloat16 is the upper half of a float32: add just under half of its last place, and one more
    # where that place is odd, so that a tie goes to the even neighbour.
    wide = np.ascontiguousarray(astype(array, float32))
    is_nan = np.isnan(wide)
    bits: Array = wide.view(np.uint32)
    bits += np.where(is_nan, np.uint32(0), (bits >> 16 & 1) + np.uint32(0x7FFF))
    upper: Array = (bits >> 16).astype(np.uint16)
    upper[is_nan] |= 0x40  # a NaN whose upper half alone would be infinity stays one
    narrow: Array = upper.view(BFLOAT16_STORAGE)
    return narrow
