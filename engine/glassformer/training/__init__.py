"""Training: the loop, its settings, callbacks, checkpoints and log."""

from glassformer.training.arguments import TrainingArguments
from glassformer.training.callbacks import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from glassformer.training.checkpoint import CheckpointError
from glassformer.training.evaluation import EvalPrediction, PredictionOutput
from glassformer.training.progress import PrinterCallback, ProgressCallback
from glassformer.training.snapshot import set_seed
from glassformer.training.trainer import NonFiniteError, Trainer, TrainOutput

__all__ = [
    "CheckpointError",
    "EarlyStoppingCallback",
    "EvalPrediction",
    "NonFiniteError",
    "PredictionOutput",
    "PrinterCallback",
    "ProgressCallback",
    "TrainOutput",
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "set_seed",
]
