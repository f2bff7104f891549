"""What a machine is known by, so that what was measured on one is not taken for another's.

An address is not enough: another board may answer there tomorrow, or the same one with another runtime.
"""

from __future__ import annotations

import secrets

from edgecompile.errors import DeviceError
from edgecompile.transport import Transport
from edgecompile.types import digest

_TIMEOUT_S = 60.0
#: Lines that count begin so: a login may greet with words that are others each time.
_MARK = "edgecompile-identity"
#: What the machine says of itself is hashed there: a serial number is nobody's business, and commands are logged.
_MACHINE = f"""
facts() {{
  uname -nm
  for file in /etc/machine-id /proc/device-tree/serial-number /proc/device-tree/model; do
    if [ -r "$file" ]; then cat "$file"; fi
  done
  if command -v getprop >/dev/null 2>&1; then
    for name in ro.serialno ro.build.fingerprint; do getprop "$name"; done
  fi
  :
}}
hashed() {{ sha256sum 2>/dev/null || shasum -a 256 2>/dev/null || cksum; }}
printf '{_MARK} machine %s\\n' "$(facts | hashed)"
if [ -n "$1" ] && program=$(command -v "$1") && [ -r "$program" ]; then
  printf '{_MARK} program %s\\n' "$(hashed <"$program")"
fi
:
"""
#: Python 3.7 has no ``importlib.metadata``: without it a new version of a runtime is not noticed.
_RUNTIMES = f"""
try:
    from importlib import metadata
except ImportError:
    metadata = None
for name in ("ai-edge-litert", "tflite-runtime", "tensorflow", "onnxruntime", "onnxruntime-gpu"):
    try:
        print("{_MARK}", name, metadata.version(name))
    except Exception:
        pass
"""


def of(transport: Transport, *, program: str | None = None) -> str:
    """A digest of what the machine is, of the runtimes' versions and of a program there; ``transport`` was entered.

    A machine that tells nothing is known by another digest each time, so that nothing is ever taken for its own.
    """
    facts = _told(transport, ["sh", "-c", _MACHINE, "sh", program or ""])
    if not facts:
        return digest(secrets.token_hex(16))
    return digest(facts, program, _runtimes(transport))


def _runtimes(transport: Transport) -> list[str]:
    try:
        python = transport.python
    except DeviceError:  # a phone has none, and runs a program of its own
        return []
    return _told(transport, [python, "-c", _RUNTIMES])


def _told(transport: Transport, argv: list[str]) -> list[str]:
    done = transport.run(argv, timeout_s=_TIMEOUT_S)
    if done.code:
        return []
    return [line.rstrip() for line in done.out.splitlines() if line.startswith(_MARK)]
