"""Plays ``dpkg-query -W`` for the packages of TensorRT."""

from __future__ import annotations

import sys

from host import settings

found = settings()
version = found["version"]
if sys.argv[-1] != f"libnvinfer{version.partition('.')[0]}" or found.get("no_packages"):
    sys.exit("dpkg-query: no packages found matching " + sys.argv[-1])
print(f"{sys.argv[-1]} {version}.1-1+cuda12.6")
