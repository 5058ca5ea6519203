"""Optimizers, learning-rate schedules and gradient clipping."""

from glassformer.optim.adam import Adam, AdamW
from glassformer.optim.clip import clip_grad_norm_
from glassformer.optim.optimizer import Optimizer, get_parameter_groups
from glassformer.optim.schedules import (
    LambdaLR,
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_scheduler,
)
from glassformer.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "LambdaLR",
    "Optimizer",
    "clip_grad_norm_",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_linear_schedule_with_warmup",
    "get_parameter_groups",
    "get_scheduler",
]
