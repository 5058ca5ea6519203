"""The KV cache: keys and values of the tokens so far, so that each new token costs one step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glassformer.ops.creation import empty
from glassformer.tensor import Tensor, tensor

_FIRST_CAPACITY = 64


class LayerCache:
    """Keys and values (B, H, T, D) of one attention layer, in buffers that double when full.

    Attributes:
        length: T, the positions held.
        memory: keys and values (B, H, S, D) of what cross-attention looks at, once there are any.
    """

    def __init__(self) -> None:
        self.length = 0
        self.memory: tuple[Tensor, Tensor] | None = None
        self._buffers: tuple[Tensor, Tensor] | None = (
            None  # (B, H, capacity, D), (B, H, capacity, Dv)
        )

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `key` (B, H, T, D) and `value` (B, H, T, Dv); return all of both so far.

        What is returned is a view: it shows these positions until the cache is dropped.

        Raises:
            RuntimeError: gradients are being recorded; a cache is for inference.
            ValueError: batch, heads or head size differ from what is held.
        """
        if key.requires_grad or value.requires_grad:
            raise RuntimeError("a KV cache records no gradients; generate under no_grad()")
        end = self.length + key.shape[2]
        held = []
        for index, new in enumerate((key, value)):
            buffer = None if self._buffers is None else self._buffers[index]
            if buffer is None or buffer.shape[2] < end:
                buffer = self._grown(buffer, new, end)
            elif buffer.shape[:2] + buffer.shape[3:] != new.shape[:2] + new.shape[3:]:
                raise ValueError(f"the cache holds {buffer.shape}, cannot append {new.shape}")
            # On the bare arrays: indexing tensors would cost more than the copy, for every layer.
            buffer.array[:, :, self.length : end] = new.array
            buffer.bump_version()
            held.append(buffer)
        self._buffers = held[0], held[1]
        self.length = end
        keys, values = (Tensor(buffer.array[:, :, :end], buffer.device) for buffer in held)
        return keys, values

    def reorder(self, rows: npt.NDArray[np.int64]) -> None:
        """Let each row b go on from what row `rows[b]` holds; views given out before follow.

        The memory stays: rows that change places, the beams of one input, have the same.
        """
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if self._buffers is None or not moved.size:
            return
        for buffer in self._buffers:
            held = buffer[:, :, : self.length]
            held[tensor(moved, device=held.device)] = held[tensor(rows[moved], device=held.device)]

    def _grown(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        batch, heads, _, size = new.shape
        capacity = max(_FIRST_CAPACITY, 1 << (end - 1).bit_length())
        grown = empty(batch, heads, capacity, size, dtype=new.dtype, device=new.device)
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown


class KVCache:
    """One `LayerCache` for each attention layer of a model.

    Args:
        num_layers: layers to start with; others are added when `cache[i]` first asks for them.
    """

    def __init__(self, num_layers: int = 0) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]

    def __getitem__(self, index: int) -> LayerCache:
        while index >= len(self.layers):
            self.layers.append(LayerCache())
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def reorder(self, rows: npt.NDArray[np.int64]) -> None:
        """Let each row b of every layer go on from row `rows[b]`, as beam search needs it."""
        for layer in self.layers:
            layer.reorder(rows)

    @property
    def length(self) -> int:
        """The positions held."""
        return self.layers[0].length if self.layers else 0
