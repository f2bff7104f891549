"""Plays ``tegrastats``: a line, again and again."""

from __future__ import annotations

import time

from host import settings

while True:
    tj = settings().get("tj", 51.25)
    print(
        "05-15-2025 18:30:28 RAM 2982/7620MB (lfb 5x1MB) SWAP 0/3810MB (cached 0MB) CPU [7%@1510,5%@1510,off,off,"
        f"8%@729,3%@729] EMC_FREQ 18%@2133 GR3D_FREQ 0%@[624] NVENC off cpu@49.5C soc0@48.1C gpu@50.5C tj@{tj}C VDD_IN "
        "4946mW/4710mW VDD_CPU_GPU_CV 896mW/585mW VDD_SOC 1423mW/1415mW",
        flush=True,
    )
    time.sleep(0.2)
