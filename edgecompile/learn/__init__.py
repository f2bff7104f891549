"""Learns what operators cost on a device, and estimates nets by what was learned. See docs/device-learn.md."""

from edgecompile.learn.estimates import latency, operator_times
from edgecompile.learn.session import LearnRequest, LearnResult, learn

__all__ = ["LearnRequest", "LearnResult", "latency", "learn", "operator_times"]
