"""What a config's settings may be: of the type of their field, and of a size that a model can have.

A config.json may be a stranger's. Its numbers are believed only within bounds far beyond any model,
and within what the checkpoint beside it holds; else a line of it could take all memory and time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from glassformer.models.safetensors_header import shown
from glassformer.nn.feed_forward import ACTIVATIONS, GATED

_TOKEN = r"\w+_token_id"
_PROBABILITY = r"\w*(dropout|pdrop)\w*"
_LAYERS = r"\w+_layers?|num_hidden_groups|inner_group_num"
_VOCABULARY = r"\w*vocab_size"
_DISTANCE = r"\w*(positions|position_embeddings|distance|window)"
_WIDTH = r"\w+"  # channels, heads, and whatever else is an int

_RANGES: dict[str, tuple[float, float]] = {  # by names; the first pattern that fits
    _TOKEN: (1 - 2**31, 2**31 - 1),  # some files say -1 for none
    _PROBABILITY: (0, 1),
    _LAYERS: (0, 10_000),
    _VOCABULARY: (0, 2**31 - 1),  # no token types at all are usual
    _DISTANCE: (1, 2**31 - 1),
    _WIDTH: (1, 2**20),
}
_ACTIVATIONS = ("hidden_act", "activation_function", "activation", "pooler_act")
_FEW_LAYERS, _NARROW = 256, 1024  # cost nothing, whatever the checkpoint has


def check_setting(name: str, value: Any, hint: Any) -> None:
    """Check a setting by its name and its field's type.

    Raises:
        TypeError: it isn't of that type; an int will do for a float.
        ValueError: it is a number out of range, or an activation that isn't known.
    """
    check_type(name, value, hint)
    is_float = float in (hint, *get_args(hint))
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_range(name, number, is_float)
    if name in _ACTIVATIONS and (value not in ACTIVATIONS or value in GATED):
        known = ", ".join(activation for activation in ACTIVATIONS if activation not in GATED)
        raise ValueError(f"{name}={shown(value)} is unknown; known are {known}")


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError unless a value read from JSON is of a field's type; an int is a float too."""
    if not _fits(value, hint):
        raise TypeError(f"{name} must be {_spelled(hint)}, got {shown(value)}")


def check_against(
    settings: Mapping[str, Any], hints: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]
) -> None:
    """Check that a checkpoint of these shapes may be of a model of this size, roughly.

    What is merely another size is told once the model is built, tensor by tensor.

    Raises:
        ValueError: there are more layers than tensors, or a width that no tensor has.
    """
    stored = [shape for shape in shapes if 0 not in shape]
    widest = max((size for shape in stored for size in shape), default=0)
    for name, value in settings.items():
        if hints[name] not in (int, int | None) or value is None:
            continue
        kind = _kind(name)
        if kind == _LAYERS and value > max(len(stored), _FEW_LAYERS):
            raise ValueError(f"{name}={value}, but the checkpoint has {len(stored)} tensors")
        if kind in (_VOCABULARY, _WIDTH) and value > max(widest, _NARROW):
            raise ValueError(
                f"{name}={value}, but no tensor of the checkpoint is longer than {widest} in any "
                "direction"
            )


def _kind(name: str) -> str:
    return next(pattern for pattern in _RANGES if re.fullmatch(pattern, name))


def _check_range(name: str, number: float, is_float: bool) -> None:
    kind = _kind(name)
    low, high = _RANGES[kind]
    if is_float and kind == _WIDTH:
        low, high = 0, sys.float_info.max
    if not low <= number <= high:  # NaN isn't either
        raise ValueError(
            f"{name} must be a number from {low:.10g} to {high:.10g}, got {shown(number)}"
        )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type; any int will do for a float.

    Of a list's or a dict's items, one of each type is looked at: a million labels take no time.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and _all_fit(value, arguments[0])
    if origin is dict:
        return (
            isinstance(value, dict)
            and _all_fit(value, arguments[0])
            and _all_fit(value.values(), arguments[1])
        )
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _all_fit(items: Iterable[Any], hint: Any) -> bool:
    return all(_fits(item, hint) for item in {type(item): item for item in items}.values())


def _spelled(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_spelled(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is list:
        return f"list of {_spelled(get_args(hint)[0])}"
    return "null" if hint is NoneType else getattr(hint, "__name__", str(hint))
