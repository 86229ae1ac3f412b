"""Step count against quality: sweeps of samplers and budgets, metrics with their noise, a store, a report."""

from typing import Any

from scoreflow._core.deprecated import warn
from scoreflow.studies import calibration as calibration  # which registers its metrics
from scoreflow.studies.features import FEATURES
from scoreflow.studies.measured import Measured, measure
from scoreflow.studies.metrics import METRICS, Metric, MetricInput, metric
from scoreflow.studies.moments import Moments, Statistics
from scoreflow.studies.named import ORACLES, ZOO, load, states_of
from scoreflow.studies.simulated import Simulated
from scoreflow.studies.strips import picture
from scoreflow.studies.subject import Subject
from scoreflow.studies.sweep import Answer, Study, study

__all__ = [
    "FEATURES",
    "METRICS",
    "ORACLES",
    "ZOO",
    "Answer",
    "Measured",
    "Metric",
    "MetricInput",
    "Moments",
    "Simulated",
    "Statistics",
    "Study",
    "Subject",
    "load",
    "measure",
    "metric",
    "picture",
    "states_of",
    "study",
]


def __getattr__(name: str) -> Any:
    if name == "Scene":
        warn("scoreflow.studies.Scene", "MetricInput")
        return MetricInput
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
