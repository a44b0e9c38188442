"""stvid: train, test, explain and deploy models that recognise actions in video."""

__version__ = "0.1.0"
