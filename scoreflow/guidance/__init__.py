"""Guidance and thresholding: score models that wrap a score model. A sampler never knows of them.

All scales are so that 1 is the conditional model as it is and 0 the other branch alone: `out = other + scale (model − other)`.
A model that is bent to a condition is linear in ε, the score and x̂_0 alike, so guidance commutes with every row of a sampler.
"""

from scoreflow.guidance.base import Contrast, Guided
from scoreflow.guidance.classifier_free import CFGPlusPlus, ClassifierFree
from scoreflow.guidance.frequency import FDG
from scoreflow.guidance.others import Autoguidance, ClassifierGuidance, Thresholding
from scoreflow.guidance.projected import APG, TCFG, CFGZeroStar

__all__ = [
    "APG", "Autoguidance", "CFGPlusPlus", "CFGZeroStar", "ClassifierFree", "ClassifierGuidance", "Contrast", "FDG", "Guided",
    "TCFG", "Thresholding",
]  # fmt: skip
