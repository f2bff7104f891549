"""Data in: presets, image folders and arrays, and the three disjoint parts that everything else stands on."""

from edgecompile.calibration.load import CalibrationSet, load
from edgecompile.calibration.preset import Detection, Preprocessing, Preset, load_preset, preset_names, resolve
from edgecompile.calibration.samples import Boxes, Samples, random_inputs

__all__ = [
    "Boxes",
    "CalibrationSet",
    "Detection",
    "Preprocessing",
    "Preset",
    "Samples",
    "load",
    "load_preset",
    "preset_names",
    "random_inputs",
    "resolve",
]
