"""What a model needs, before it is trained: parameters, memory, compute."""

from stvid.cost.estimate import estimate
from stvid.cost.report import CostReport, LayerCost

__all__ = ["CostReport", "LayerCost", "estimate"]
