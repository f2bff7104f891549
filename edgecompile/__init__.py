"""Give edgecompile a trained model, a device and a millisecond budget; get back the file that ships, and the proof."""

__version__ = "0.1.0"

from edgecompile.api import build

__all__ = ["__version__", "build"]
