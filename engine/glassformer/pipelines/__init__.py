"""Pipelines: from a folder of the hub's and text to labels, answers, vectors or more text."""

from __future__ import annotations

from glassformer.pipelines.base import Pipeline
from glassformer.pipelines.tasks import TASKS, pipeline

__all__ = ["TASKS", "Pipeline", "pipeline"]
