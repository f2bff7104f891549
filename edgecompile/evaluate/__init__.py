"""Accuracy out: the metric of a shipped file on data, against the original on the same samples."""

from edgecompile.evaluate.compare import Reference, accuracy, reference

__all__ = ["Reference", "accuracy", "reference"]
