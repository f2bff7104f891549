"""Plays ``jetson_clocks --show``."""

from __future__ import annotations

from host import settings

found = settings()
least = 624750000 if found.get("locked", True) else 306000000
print("SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit\nOnline CPUs: 0-5")
print("cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1510400 IdleStates: WFI=1 c7=1")
print(f"GPU MinFreq={least} MaxFreq=624750000 CurrentFreq={found.get('gpu_hz', 624750000)}")
print("EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0\nNV Power Mode: 15W")
