"""PretrainedModel: a model that is read from, and written to, a folder as the hub serves it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from glassformer.dtypes import DType, as_dtype
from glassformer.grad_mode import no_grad
from glassformer.models.attentions import call_with_attentions
from glassformer.models.config import CONFIG_FILE, ConfigError, PretrainedConfig
from glassformer.models.inputs import check_ids, check_is_no_array, check_not_empty
from glassformer.models.loading import Unloaded, hub_arrays, load_weights
from glassformer.models.names import Names, Place
from glassformer.models.safetensors_file import WeightsError, open_weights
from glassformer.models.saving import save_model
from glassformer.nn import Embedding, Module, init
from glassformer.random import Generator
from glassformer.rematerialisation import checkpoint
from glassformer.tensor import Tensor

Self = TypeVar("Self", bound="PretrainedModel")


class HubTensor(NamedTuple):
    """A tensor of a model, under one of its names, and where the hub keeps it."""

    name: str
    tensor: Tensor
    place: Place


class PretrainedModel(Module):
    """The base class of the families' models.

    A subclass makes its layers in `build`. A model with a head holds the bare model as the
    attribute that `base_model_prefix` names, as Hugging Face's classes do.

    Args:
        config: the shape.
        generator: draws the weights; default: the default generator.

    Raises:
        TypeError, ValueError: the config is another family's, or a setting is wrong.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = ""
    names: ClassVar[Names] = Names({})  # of the bare model's tensors
    head_names: ClassVar[Names] = Names({})  # of those that a head adds
    optional: ClassVar[tuple[str, ...]] = ()  # parts of the bare model that not all have
    ignored_keys: ClassVar[tuple[str, ...]] = ()  # ends of keys: buffers that we compute ourselves

    config: Any
    checkpoints_blocks: bool = False

    def __init__(self, config: PretrainedConfig, generator: Generator | None = None) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got {config!r}; "
                f"{type(self).__name__}.from_pretrained(folder) loads a folder"
            )
        self.config = config
        part_of_another = init.is_skipped()
        if not part_of_another:
            config.check()
        try:
            with init.skip():
                self.build(config)
        except MemoryError as error:
            raise ValueError(
                f"a {type(self).__name__} of this config takes more memory than there is ({error})"
            ) from error
        if not part_of_another:
            self.init_parameters({name for name, _ in self.named_parameters()}, generator)

    def __call__(self, *args: Any, output_attentions: Any = False, **kwargs: Any) -> Any:
        """Run the hooks and `forward`, as any module.

        Args:
            args: those of `forward`.
            output_attentions: return the weights of every attention layer as well, (B, H, Tq, Tk),
                before dropout; they take the memory that attention's kernels avoid.
            kwargs: those of `forward`.

        Raises:
            TypeError: an array or a list is given in place of a tensor.
        """
        inputs = {f"input {place}": value for place, value in enumerate(args)}
        for name, value in {**inputs, **kwargs}.items():
            check_is_no_array(name, value)
        call = partial(super().__call__, *args, **kwargs)
        return call_with_attentions(self.base_model, call) if output_attentions else call()

    def build(self, config: Any) -> None:
        """Make the layers; their weights are filled in afterwards."""
        raise NotImplementedError(f"{type(self).__name__} defines no build()")

    def init_parameters(self, fresh: set[str], generator: Generator | None = None) -> None:
        """Fill the named parameters; the row of an embedding that stands for padding is 0."""
        for name, parameter in self.named_parameters():
            if name in fresh:
                self.init_parameter(name, parameter, generator)
        for prefix, module in self.named_modules():
            is_fresh = f"{prefix}.weight" in fresh
            if is_fresh and isinstance(module, Embedding) and module.padding_idx is not None:
                with no_grad():
                    module.weight[module.padding_idx] = 0.0

    def init_parameter(self, name: str, parameter: Tensor, generator: Generator | None) -> None:
        """Fill a fresh parameter: N(0, initializer_range²), biases 0, gains of norms 1."""
        if parameter.ndim >= 2:
            init.normal_(parameter, std=self.config.initializer_range, generator=generator)
        elif name.endswith("bias"):
            init.zeros_(parameter)
        else:
            init.ones_(parameter)

    def drop_pooler(self) -> None:
        """Do without the layer that makes one vector of the whole input, if there is one."""

    def check_length(self, input_ids: Tensor) -> None:
        """Raise ValueError unless `input_ids` are (B, T), 1 ≤ T ≤ max_position_embeddings."""
        check_ids(input_ids)
        check_not_empty(input_ids)
        limit = self.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"{input_ids.shape[1]} tokens exceed the model's max_position_embeddings={limit}; "
                "truncate the input: tokenizer(text, truncation=True)"
            )

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """While training, keep each block's input alone, and compute the block again in backward.

        Memory for activations then grows with the blocks' number rather than with all they
        compute, for about a third more time. Chen et al. 2016, "Training Deep Nets with Sublinear
        Memory Cost".
        """
        for module in self.modules():
            if isinstance(module, PretrainedModel):
                module.checkpoints_blocks = enable

    def run_blocks(
        self,
        blocks: Sequence[Callable[..., Any]],
        x: Tensor,
        output_hidden_states: bool,
        *,
        cache: Any = None,
        **settings: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Pass x (B, T, C) through blocks in a row; return the last state, and all if asked for.

        `cache[i]` goes to block i, the other settings to every block.
        """
        states = [x]
        for index, block in enumerate(blocks):
            if cache is not None:
                settings["cache"] = cache[index]
            if self.checkpoints_blocks and self.training:
                x = checkpoint(partial(block, **settings), x)
            else:
                x = block(x, **settings)
            if output_hidden_states:
                states.append(x)
        return x, tuple(states) if output_hidden_states else None

    @property
    def base_model(self) -> PretrainedModel:
        """The model without its head; itself if it has none."""
        found: PretrainedModel = getattr(self, self.base_model_prefix or " ", self)
        return found

    def hub_tensors(self) -> Iterator[HubTensor]:
        """Yield every tensor that is saved, under every name that leads to it, with its place."""
        base = self.base_model
        prefix = "" if base is self else f"{self.base_model_prefix}."
        for name, tensor in self.named_tensors(persistent=True):
            if ".adapter." in name:  # saved apart, see `models/lora.py`
                continue
            if name.startswith(prefix):
                place = base.names.place(name.removeprefix(prefix), self.config, prefix)
            else:
                place = self.head_names.place(name, self.config)
            yield HubTensor(name, tensor, place)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        folder: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: Any = "auto",
        torch_dtype: Any = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load `config.json` and `model.safetensors` (or its shards) of a folder.

        A head that the checkpoint lacks, as a bare pre-trained model does, starts fresh, and a head
        that this class has no place for is left out; either is told in a warning. Anything else
        that doesn't fit is an error. The model comes in evaluation mode.

        Args:
            folder: as the hub serves it. Nothing is ever downloaded.
            config: in place of the folder's.
            dtype: what to hold the weights in. "auto" is as they are stored. Half precision, stored
                or asked for, is that of matrices: layers widen them to float32 while they compute.
                Vectors are then float32.
            torch_dtype: an older name of `dtype`.
            ignore_mismatched_sizes: tensors of another shape start fresh.
            overrides: settings that replace those of the config, such as `num_labels=3`.

        Raises:
            WeightsError: files are missing or damaged, or keys are missing, unexpected or of
                another shape: every one is listed.
            ConfigError: a setting of the folder is wrong; it is a WeightsError and a TypeError.
            TypeError: an argument is wrong.
        """
        kept = _weights_dtype(_one_dtype(dtype, torch_dtype))
        overrides = cls.config_class.own_overrides(overrides)
        if config is None:
            config = cls.config_class.from_pretrained(folder, **overrides)
        elif overrides:
            raise TypeError(f"give either a config or settings, not both: {', '.join(overrides)}")
        elif isinstance(config, PretrainedConfig):
            config.check()
        try:
            weights = open_weights(folder)
        except OSError as error:
            raise WeightsError.about(
                folder, f"cannot be read ({error.strerror})", "check its permissions"
            ) from error
        with weights:
            if isinstance(config, PretrainedConfig) and not ignore_mismatched_sizes:
                config.check_against(weights)
            with init.skip():
                model = cls._built(config, folder)
            unloaded = load_weights(model, weights, kept, ignore_mismatched_sizes)
        model.init_parameters({*unloaded.missing, *unloaded.misshaped})
        _warn(model, folder, unloaded)
        return model.eval()

    @classmethod
    def _built(cls: type[Self], config: PretrainedConfig, folder: str | Path) -> Self:
        try:
            return cls(config)
        except ValueError as error:
            raise ConfigError(f"{Path(folder) / CONFIG_FILE}: {error}") from error

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write `config.json` and `model.safetensors` under the hub's names.

        Each file is replaced only once its successor is whole on disk: where there is no space for
        all of them, the old ones stay. What a kill leaves is told at `save_model`.

        Raises:
            ValueError: a setting can't be written, or `max_shard_size` is no size.
            OSError: the disk is full, the folder is a file or read-only, and so on.
        """
        save_model(Path(folder), hub_arrays(self), self.small_files(), max_shard_size)

    def small_files(self) -> dict[str, bytes | None]:
        """Return what is saved beside the weights, by the files' names; None for what must go."""
        dtypes = {parameter.dtype for parameter in self.parameters() if parameter.ndim >= 2}
        stored = min(dtypes, key=lambda dtype: dtype.itemsize).name if dtypes else "float32"
        config = replace(self.config, architectures=[type(self).__name__], dtype=stored)
        return {CONFIG_FILE: config.to_json()}


def _one_dtype(dtype: Any, torch_dtype: Any) -> Any:
    """Return what was asked for under either name."""
    if torch_dtype is None:
        return dtype
    if dtype is not None and not isinstance(dtype, str) or dtype not in (None, "auto", torch_dtype):
        raise TypeError(
            f"dtype={dtype!r} and torch_dtype={torch_dtype!r} are two names of one argument; "
            "give dtype alone"
        )
    return torch_dtype


def _weights_dtype(dtype: Any) -> DType | None:
    """Return what to hold weights in, None for what they are stored in."""
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    if dtype is None or isinstance(dtype, str) and dtype == "auto":
        return None
    kept = as_dtype(dtype)
    if not kept.is_floating_point:
        raise TypeError(f"weights are floats; dtype must be 'auto' or of floats, got {kept}")
    return kept


def _warn(model: PretrainedModel, folder: str | Path, unloaded: Unloaded) -> None:
    kind, level = type(model).__name__, callers_level()
    fresh = f"{kind} starts with fresh ones; train it before you believe what it says"
    if unloaded.missing:
        theirs = {name: place.names for name, _, place in model.hub_tensors()}
        names = [one for name in unloaded.missing for one in theirs[name]]
        warnings.warn(f"{folder} has no {_some(names)}: {fresh}", stacklevel=level)
    if unloaded.misshaped:
        shapes = [
            f"{one.name} {one.given} instead of {one.expected}"
            for wrong in unloaded.misshaped.values()
            for one in wrong
        ]
        warnings.warn(f"{folder} has {_some(shapes)}: {fresh}", stacklevel=level)
    if unloaded.left_out:
        warnings.warn(
            f"{folder} also holds {_some(unloaded.left_out)}, which {kind} has no place for",
            stacklevel=level,
        )


def callers_level() -> int:
    """Return the `stacklevel`, for who called this, of the first line outside the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _some(names: list[str]) -> str:
    """Name a few of many."""
    first, rest = names[:8], len(names) - 8
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
