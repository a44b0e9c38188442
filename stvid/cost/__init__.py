"""What a model needs, before it is trained: parameters, memory, compute."""

from stvid.cost.estimate import CostReport, LayerCost, estimate

__all__ = ["CostReport", "LayerCost", "estimate"]
