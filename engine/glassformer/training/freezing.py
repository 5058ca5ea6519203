"""Training only the last parts of a model."""

from __future__ import annotations

from glassformer.nn import Module


def freeze_backbone(model: Module, unfrozen_layers: int = 0) -> None:
    """Train the head alone, or with it the last layers of the backbone.

    With 0 unfrozen layers the backbone is a fixed extractor of features. With k of them its last k
    blocks are trained, and what the backbone holds after its blocks, such as a final norm or a
    pooler: what was assigned after them in its `__init__`. Call again with another number to
    unfreeze more or fewer; the head stays as it is. A parameter that the head shares with the
    backbone's frozen part (tied embeddings) is frozen.

    Nothing is recorded where only frozen parameters took part, so the backward pass ends at the
    first trained layer. Freeze before the optimizer is made (`Trainer.train` makes it):
    `get_parameter_groups` leaves frozen parameters out.

    Args:
        model: has a `base_model` with `blocks`.
        unfrozen_layers: how many of the last blocks to train.

    Raises:
        ValueError: there is no such backbone, it has fewer blocks, or nothing is left to train.
    """
    backbone = getattr(model, "base_model", None)
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(backbone, Module) or not blocks:
        raise ValueError(
            f"{type(model).__name__} has no base_model with blocks to freeze; set requires_grad_ "
            "of its parts yourself"
        )
    if not 0 <= unfrozen_layers <= len(blocks):
        raise ValueError(
            f"unfrozen_layers must be between 0 and the model's {len(blocks)} layers, "
            f"got {unfrozen_layers}"
        )
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    backbone.requires_grad_(False)
    if unfrozen_layers:
        for part in [*blocks[-unfrozen_layers:], *_after_blocks(backbone)]:
            part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(before[id(parameter)])
        raise ValueError(
            f"nothing of {type(model).__name__} is left to train: it has no head with parameters "
            "of its own; leave some layers unfrozen"
        )


def _after_blocks(backbone: Module) -> list[Module]:
    """The backbone's children that were assigned after its blocks."""
    children = list(backbone.named_children())
    last = max(i for i, (name, _) in enumerate(children) if name.split(".")[0] == "blocks")
    return [child for _, child in children[last + 1 :]]
