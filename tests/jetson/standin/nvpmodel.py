"""Plays ``nvpmodel``: ``-q`` and ``-m``; modes that need a reboot ask for one and wait for an answer."""

from __future__ import annotations

import sys

from host import ROOT, record, settings

record("nvpmodel")
found = settings()
path = ROOT / "mode"
if "-m" in sys.argv:
    wanted = int(sys.argv[sys.argv.index("-m") + 1])
    if found.get("mode_fails"):
        sys.exit("NVPM ERROR: failed to set power mode")
    if wanted in found.get("reboot_modes", []):
        print(f"NVPM WARN: Reboot required for changing to this power mode: {wanted}")
        print("NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:", flush=True)
        if sys.stdin.readline().strip().lower() == "yes":
            (ROOT / "rebooted").touch()
        sys.exit("NVPM ERROR: optMask is 1, no request for power mode")
    path.write_text(str(wanted))
else:
    number = int(path.read_text())
    name = next(name for name, value in found["modes"].items() if value == number)
    print(f"NV Power Mode: {name}\n{number}")
