"""ViT: a Transformer that reads an image as a sequence of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.models.config import PretrainedConfig
from glassformer.models.heads import ModelWithHead, classifier_loss
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import BaseModelOutput, SequenceClassifierOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.models.safetensors_header import shown
from glassformer.nn import (
    Dropout,
    FeedForward,
    LayerNorm,
    Linear,
    Module,
    MultiheadAttention,
    TransformerBlock,
)
from glassformer.nn import functional as F
from glassformer.nn.feed_forward import ACTIVATIONS
from glassformer.ops.creation import empty
from glassformer.ops.shape import broadcast_to, cat
from glassformer.tensor import Parameter, Tensor, from_numpy


@dataclass(kw_only=True)
class ViTConfig(PretrainedConfig):
    """The shape of a ViT; the names and defaults are Hugging Face's (ViT base, patches of 16).

    `image_size` and `patch_size` are a number of pixels, or [height, width].
    """

    model_type = "vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"

    def __post_init__(self) -> None:
        self.check_divides("num_attention_heads", "hidden_size")
        if self.pooler_act not in ACTIVATIONS:
            raise ValueError(f"pooler_act {self.pooler_act!r} is none of {', '.join(ACTIVATIONS)}")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {self.num_channels}")
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2 or min(_pair(size)) < 1:
                raise ValueError(f"{name} must be pixels, one number or [height, width]: {size!r}")
        if min(self.grid) < 1:
            raise ValueError(
                f"patch_size={self.patch_size} must not exceed image_size={self.image_size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; pixels left over at the right and the bottom don't count."""
        (height, width), (rows, columns) = _pair(self.image_size), _pair(self.patch_size)
        return height // rows, width // columns


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class PatchEmbeddings(Module):
    """The same linear map of every patch: (B, channels, Y, X) -> (B, rows · columns, C).

    A convolution whose windows don't overlap, which is why the weight has a convolution's shape.
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equation 1.
    """

    weight: Parameter  # (C, channels, patch height, patch width)
    bias: Parameter  # (C,)

    def __init__(self, config: ViTConfig) -> None:
        patch = _pair(config.patch_size)
        self.weight = Parameter(empty(config.hidden_size, config.num_channels, *patch))
        self.bias = Parameter(empty(config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Cut into patches, row by row, and embed each."""
        width, channels, height_of_patch, width_of_patch = self.weight.shape
        batch, _, height, image_width = pixel_values.shape
        rows, columns = height // height_of_patch, image_width // width_of_patch
        whole = pixel_values[:, :, : rows * height_of_patch, : columns * width_of_patch]
        cut = whole.reshape(batch, channels, rows, height_of_patch, columns, width_of_patch)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(patches, self.weight.reshape(width, -1), self.bias)


class ViTEmbeddings(Module):
    """A learned class token, then the patches; each with a learned vector for its position."""

    patch_embeddings: PatchEmbeddings
    cls_token: Parameter  # (1, 1, C)
    position_embeddings: Parameter  # (1, 1 + patches, C)
    dropout: Dropout

    def __init__(self, config: ViTConfig) -> None:
        rows, columns = self.grid = config.grid
        self.image_size = _pair(config.image_size)
        self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = Parameter(empty(1, 1, config.hidden_size))
        self.position_embeddings = Parameter(empty(1, 1 + rows * columns, config.hidden_size))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> Tensor:
        """(B, channels, Y, X) -> (B, 1 + patches, C)."""
        self._check(pixel_values, interpolate_pos_encoding)
        shape, (rows, columns) = pixel_values.shape, self.patch_embeddings.weight.shape[2:]
        grid = (shape[2] // rows, shape[3] // columns)
        dtype = self.patch_embeddings.weight.dtype.wide
        patches = self.patch_embeddings(pixel_values.to(dtype))
        first = broadcast_to(self.cls_token.to(dtype), (shape[0], 1, patches.shape[2]))
        positions = self.position_embeddings.to(dtype)
        x = cat([first, patches], dim=1) + self._positions_for(grid, positions)
        embedded: Tensor = self.dropout(x)
        return embedded

    def _check(self, pixel_values: Tensor, any_size: bool) -> None:
        if not isinstance(pixel_values, Tensor) or not pixel_values.dtype.is_floating_point:
            is_tensor = isinstance(pixel_values, Tensor)
            given = pixel_values.dtype.name if is_tensor else shown(pixel_values)
            raise TypeError(
                f"pixel_values must be a Tensor of floats, got {given}; an ImageProcessor scales "
                "and normalizes images as the model expects them"
            )
        _, channels, *patch = self.patch_embeddings.weight.shape
        shape = pixel_values.shape
        height, width = self.image_size
        fits = len(shape) == 4 and shape[1] == channels
        if not fits or shape[2:] != self.image_size and not any_size:
            hint = "; resize them, or pass interpolate_pos_encoding=True" if fits else ""
            raise ValueError(
                f"pixel_values must be (batch, {channels}, {height}, {width}), got {shape}{hint}"
            )
        if shape[2] < patch[0] or shape[3] < patch[1]:
            raise ValueError(f"images of {shape[2:]} hold no patch of {tuple(patch)}")

    def _positions_for(self, grid: tuple[int, int], positions: Tensor) -> Tensor:
        """Positions (1, 1 + patches, C) of another grid, by bicubic interpolation.

        Dosovitskiy et al. 2021, section 3.2. Both directions are linear maps, so that gradients
        reach the positions that there are.
        """
        if grid == self.grid:
            return positions
        (rows, columns), width = self.grid, positions.shape[2]
        down, across = (
            from_numpy(_bicubic(old, new)).to(positions.dtype).to(positions.device)
            for old, new in zip(self.grid, grid, strict=True)
        )
        patches = positions[0, 1:].reshape(rows, columns * width)
        stretched = (down @ patches).reshape(grid[0], columns, width)
        patches = (across @ stretched).reshape(1, grid[0] * grid[1], width)
        return cat([positions[:, :1], patches], dim=1)


def _bicubic(old: int, new: int) -> npt.NDArray[np.float64]:
    """The matrix (new, old) that resamples a line of points, as `torch.nn.functional.interpolate`.

    Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 4, with
    a = -3/4; beyond the ends the line goes on with its last point.
    """
    a = -0.75
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centres).astype(np.int64) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        point = first + tap
        s = np.abs(centres - point)
        near = ((a + 2) * s - (a + 3)) * s * s + 1  # |s| <= 1
        far = ((a * s - 5 * a) * s + 8 * a) * s - 4 * a  # 1 < |s| < 2
        weight = np.where(s <= 1, near, far)
        np.add.at(matrix, (np.arange(new), point.clip(0, old - 1)), weight)
    return matrix


class ViTModel(PretrainedModel):
    """Patches, pre-norm blocks and a last norm; the pooler is dense with tanh on the class token.

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1.
    """

    config_class = ViTConfig
    base_model_prefix = "vit"
    names = Names(
        {
            "embeddings.patch_embeddings.{p}": "embeddings.patch_embeddings.projection.{p}",
            "blocks.{i}.self_attn.in_proj_{p}": Stacked(
                "encoder.layer.{i}.attention.attention.query.{p}",
                "encoder.layer.{i}.attention.attention.key.{p}",
                "encoder.layer.{i}.attention.attention.value.{p}",
            ),
            "blocks.{i}.self_attn.out_proj.{p}": "encoder.layer.{i}.attention.output.dense.{p}",
            "blocks.{i}.self_attn_norm.{p}": "encoder.layer.{i}.layernorm_before.{p}",
            "blocks.{i}.feed_forward.linear1.{p}": "encoder.layer.{i}.intermediate.dense.{p}",
            "blocks.{i}.feed_forward.linear2.{p}": "encoder.layer.{i}.output.dense.{p}",
            "blocks.{i}.feed_forward_norm.{p}": "encoder.layer.{i}.layernorm_after.{p}",
            "norm.{p}": "layernorm.{p}",
            "pooler.{p}": "pooler.dense.{p}",
        }
    )
    optional = ("pooler.", "embeddings.mask_token")  # the latter is for masked image modelling

    pooler: Linear | None

    def build(self, config: ViTConfig) -> None:  # noqa: D102
        width = config.hidden_size
        self.embeddings = ViTEmbeddings(config)
        self.blocks = [_block(config) for _ in range(config.num_hidden_layers)]
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.pooler = Linear(width, config.pooler_output_size or width)

    def drop_pooler(self) -> None:  # noqa: D102
        self.pooler = None

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Encode images; T in the outputs is 1 for the class token, and the number of patches.

        Args:
            pixel_values: (B, channels, Y, X), as an `ImageProcessor` makes them.
            interpolate_pos_encoding: take images of any size, by stretching the grid of positions.
            output_hidden_states: return those of every layer as well.

        Raises:
            TypeError: the pixels are no floats.
            ValueError: the images have another size or number of channels than the model takes.
        """
        x = self.embeddings(pixel_values, interpolate_pos_encoding)
        x, hidden_states = self.run_blocks(self.blocks, x, output_hidden_states)
        x = self.norm(x)
        pooled = None
        if self.pooler is not None:
            pooled = ACTIVATIONS[self.config.pooler_act](self.pooler(x[:, 0]))
        return BaseModelOutput(x, pooled, hidden_states)


def _block(config: ViTConfig) -> TransformerBlock:
    width = config.hidden_size
    return TransformerBlock(
        MultiheadAttention(
            width,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
            bias=config.qkv_bias,
            out_bias=True,
        ),
        FeedForward(width, config.intermediate_size, config.hidden_act),
        dropout=config.hidden_dropout_prob,
        norm_first=True,
        norm=lambda channels: LayerNorm(channels, eps=config.layer_norm_eps),
    )


class ViTForImageClassification(ModelWithHead):
    """ViT that judges images by what stands at the class token; section 3.1 of the paper."""

    base_class = ViTModel

    vit: ViTModel
    classifier: Linear

    def build_head(self, config: ViTConfig) -> None:  # noqa: D102
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> SequenceClassifierOutput:
        """Classify; the arguments are `ViTModel`'s, and labels (B,), see `classifier_loss`."""
        outputs = self.vit(pixel_values, **settings)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = classifier_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states)
