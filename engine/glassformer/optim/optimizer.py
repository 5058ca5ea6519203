"""Optimizer: parameter groups, per-parameter state, and what every rule shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glassformer.grad_mode import no_grad
from glassformer.nn import Module
from glassformer.tensor import Tensor

Group = dict[str, Any]


class Optimizer:
    """Changes parameters in place by their gradients. A subclass implements `update`.

    Args:
        params: parameters, or groups: dicts with "params" and the settings that differ from the
            defaults.
        defaults: the settings of a group that doesn't say otherwise.

    Attributes:
        param_groups: list of dicts, "params" and every setting; change "lr" here at any time.
        state: for each parameter that was ever updated, a dict of what the rule remembers.

    Raises:
        ValueError: there is no parameter, one occurs twice, or a setting is unknown or wrong.
        TypeError: something is not a leaf tensor that can require grad.
    """

    param_groups: list[Group]
    state: dict[Tensor, dict[str, Any]]
    defaults: dict[str, Any]

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Mapping[str, Any]], defaults: dict[str, Any]
    ) -> None:
        self.defaults = defaults
        self.state = {}
        self.param_groups = []
        given: list[Any] = list(params)
        if not given:
            raise ValueError("the optimizer got no parameters")
        groups = given if isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Optimise more parameters, with settings of their own.

        Raises:
            ValueError: a setting is unknown or out of range, or a parameter occurs twice.
            TypeError: a parameter is not a Tensor of floats, or not a leaf.
        """
        index = len(self.param_groups)
        unknown = group.keys() - self.defaults.keys() - {"params", "initial_lr"}
        if unknown:
            raise ValueError(
                f"parameter group {index} sets {', '.join(sorted(unknown))}; "
                f"{type(self).__name__} knows {', '.join(self.defaults)}"
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for param in params:
            if not isinstance(param, Tensor) or not param.dtype.is_floating_point:
                raise TypeError(f"parameter group {index} holds {param!r}, not a float Tensor")
            if not param.is_leaf:
                raise TypeError(
                    f"parameter group {index} holds a result of shape {param.shape}; only leaves "
                    "can be optimised"
                )
            if id(param) in known:
                raise ValueError(
                    f"a parameter of shape {param.shape} occurs a second time in group {index}"
                )
            known.add(id(param))
        settings = {**self.defaults, **group, "params": params}
        self.check(settings)
        self.param_groups.append(settings)

    def check(self, group: Group) -> None:
        """Raise ValueError if a setting of `group` is out of range."""
        for name in ("lr", "eps", "weight_decay"):
            if name in group and not group[name] >= 0:
                raise ValueError(f"{name} must be 0 or more, got {group[name]!r}")

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        with no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        self.update(param, param.grad, self.state.setdefault(param, {}), group)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: Group) -> None:
        """Change one parameter, and what is remembered for it, in place."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with zeros."""
        for group in self.param_groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad = param.grad.detach()
                    param.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on later, parameters as their number in the groups.

        {"state": {number: {"step": int, …}}, "param_groups": [{"lr": …, "params": [numbers]}]}, as
        in PyTorch. Tensors share memory with the optimizer.
        """
        numbers = {id(param): i for i, param in enumerate(self._params())}
        return {
            "state": {numbers[id(param)]: dict(state) for param, state in self.state.items()},
            "param_groups": [
                {**group, "params": [numbers[id(param)] for param in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; its tensors are copied.

        Raises:
            ValueError: it holds other groups, or state of another shape. Nothing is changed.
        """
        groups, params = state_dict["param_groups"], list(self._params())
        given = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if given != own:
            raise ValueError(
                f"the state_dict has groups of {given} parameters, the optimizer of {own}"
            )
        state: dict[Tensor, dict[str, Any]] = {}
        for number, values in state_dict["state"].items():
            if not 0 <= int(number) < len(params):  # int(): JSON makes the numbers strings
                raise ValueError(f"state of parameter {number}, but there are {len(params)}")
            param = params[int(number)]
            state[param] = {
                name: _owned(f"{name} of parameter {number}", value, param)
                for name, value in values.items()
            }
        self.state = state
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in loaded.items() if name != "params"})

    def _params(self) -> Iterable[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    def __repr__(self) -> str:
        lines = [
            f"  group {i}: {len(group['params'])} parameters, "
            + ", ".join(f"{name}={value!r}" for name, value in group.items() if name != "params")
            for i, group in enumerate(self.param_groups)
        ]
        return "\n".join([type(self).__name__, *lines])


def get_parameter_groups(model: Module, weight_decay: float) -> list[Group]:
    """Return two groups: matrices with `weight_decay`, and biases and norms (ndim < 2) without.

    A group without parameters is left out, and so are frozen parameters.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    groups: list[Group] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _owned(name: str, value: Any, param: Tensor) -> Any:
    """A copy of a state tensor, in dtype and place like its parameter; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != param.shape:
        raise ValueError(f"{name} has shape {value.shape}, but the parameter {param.shape}")
    return value.detach().to(param).clone()
