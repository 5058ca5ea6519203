"""Marian: the translation models of the Opus-MT project."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from glassformer.devices import Device
from glassformer.dtypes import DType, float32
from glassformer.models.bart import BartConfig, BartForConditionalGeneration, BartModel, BartStack
from glassformer.models.seq2seq import Seq2SeqModel
from glassformer.nn import Embedding, Module
from glassformer.nn.positions import sinusoidal_table
from glassformer.ops.shape import cat
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class MarianConfig(BartConfig):
    """The shape of a Marian model; the names and defaults are Hugging Face's."""

    model_type = "marian"

    vocab_size: int = 58101
    decoder_vocab_size: int | None = None  # as many as the encoder's unless told
    share_encoder_decoder_embeddings: bool = True
    pad_token_id: int | None = 58100
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 0
    decoder_start_token_id: int | None = 58100
    forced_eos_token_id: int | list[int] | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_vocab_size is None:
            self.decoder_vocab_size = self.vocab_size
        if self.d_model % 2:
            raise ValueError(f"sine and cosine come in pairs; d_model={self.d_model} is odd")
        if self.share_encoder_decoder_embeddings and not self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings=False with share_encoder_decoder_embeddings=True is not "
                "supported: share all tables, or the decoder's two, or none"
            )


class MarianPositions(Module):
    """x + PE with all sines first: PE[t, i] = sin(t / 10000^(2i/C)), PE[t, C/2 + i] = cos(…).

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with the channels in the order of
    the Marian toolkit (Junczys-Dowmunt et al. 2018, "Marian: Fast Neural Machine Translation in
    C++").
    """

    def __init__(self, num_positions: int, embedding_dim: int) -> None:
        self.num_positions = num_positions
        self.embedding_dim = embedding_dim

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add positions offset, offset + 1, … to x (B, T, C)."""
        stop = offset + x.shape[1]
        rows = 1 << max(stop - 1, 0).bit_length()  # so that growing targets meet few tables
        table = _table(rows, self.embedding_dim, x.dtype, x.device)
        return x + table[offset:stop]

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.num_positions}, {self.embedding_dim}"


@lru_cache(maxsize=4)
def _table(num_positions: int, dim: int, dtype: DType, device: Device | None) -> Tensor:
    # Rounded to float32 whatever the model computes in: with these numbers it was trained.
    interleaved = sinusoidal_table(num_positions, dim, float32, device)
    return cat([interleaved[:, 0::2], interleaved[:, 1::2]], dim=1).to(dtype)


class MarianModel(BartModel):
    """BART's blocks with fixed positions, and without a norm on the embeddings.

    Source and target have one embedding, or each its own.
    """

    config_class = MarianConfig
    ignored_keys = (*BartModel.ignored_keys, "embed_positions.weight")

    def build(self, config: Any) -> None:  # noqa: D102
        source = Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        target = source
        if config.share_encoder_decoder_embeddings:
            self.shared = source
        else:
            size = config.decoder_vocab_size
            target = Embedding(size, config.d_model, config.pad_token_id)
        self.encoder, self.decoder = (
            BartStack(
                config,
                table,
                MarianPositions(config.max_position_embeddings, config.d_model),
                norm=False,
                decoder=decoder,
            )
            for decoder, table in ((False, source), (True, target))
        )

    def default_decoder_input(self, input_ids: Tensor | None) -> Tensor:  # noqa: D102
        return Seq2SeqModel.default_decoder_input(self, input_ids)


class MarianMTModel(BartForConditionalGeneration):
    """Marian that translates."""

    base_class = MarianModel
