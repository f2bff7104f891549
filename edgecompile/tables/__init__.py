"""Measured latency tables of single fused operators, for a search that knows what a model looks like at other widths.

A sum of operators measured alone predicts a whole model well enough to compare its variants (ProxylessNAS, Cai et al.
2019, https://arxiv.org/abs/1812.00332; NetAdapt, Yang et al. 2018, https://arxiv.org/abs/1804.03230).
"""

from edgecompile.tables.graph import keys_of
from edgecompile.tables.key import OperatorKey
from edgecompile.tables.timing import MeasureOptions, footprint_bytes, measure, measure_alone

__all__ = ["MeasureOptions", "OperatorKey", "footprint_bytes", "keys_of", "measure", "measure_alone"]
