"""What the tools of the stand-in share: its settings, and the record of calls."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(os.environ["EDGECOMPILE_HOST_ROOT"])


def settings() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "standin.json").read_text())
    return found


def record(program: str) -> None:
    with (ROOT / f"{program}.calls").open("a") as stream:
        stream.write(json.dumps(sys.argv[1:]) + "\n")
