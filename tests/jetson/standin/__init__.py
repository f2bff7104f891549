"""A host that plays a Jetson for tests: TensorRT of a chosen version, its tools, its files. Nothing of it is a figure.

Its `trtexec` takes the options that the version has and no other, checks them against the graph, answers with logs and
exports in the shapes that boards have published, and computes outputs with ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sshd import Server, serve

_HERE = Path(__file__).parent
_TOOLS = ("trtexec", "nvpmodel", "jetson_clocks", "tegrastats", "sudo", "dpkg-query", "python3")
#: The version, the L4T release with it, and the board.
HOSTS = {
    "8.2.1": ("32", "7.1", "NVIDIA Jetson Xavier NX Developer Kit", "nvidia,tegra194"),
    "8.5.2": ("35", "3.1", "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,tegra234"),
    "8.6.2": ("36", "3.0", "NVIDIA Jetson Orin Nano Developer Kit", "nvidia,tegra234"),
    "10.3.0": ("36", "4.3", "NVIDIA Jetson Orin Nano Developer Kit Super", "nvidia,tegra234"),
    "10.13.3": ("38", "2.0", "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,tegra264"),
    "11.0.0": ("38", "9.0", "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,tegra264"),
}
_MODES = {"MAXN": 0, "15W": 1, "7W": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standin:
    """A running one, reached by ``server`` where it has one.

    ``root`` holds the board's files, its settings, and the record of what was called.
    """

    server: Server | None
    root: Path

    @property
    def where(self) -> str:
        assert self.server is not None
        return self.server.where

    def set(self, **settings: Any) -> None:
        """Change how it behaves from the next call on."""
        path = self.root / "standin.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        path = self.root / f"{program}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def mode(self) -> int:
        """The power mode that it is in."""
        return int((self.root / "mode").read_text())


def make_host(root: Path, version: str) -> Path:
    """Write the board's files and tools; the folder of the tools."""
    release, revision, model, chip = HOSTS[version]
    files = {
        "etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: arm\n",
        "etc/nvpmodel.conf": "".join(f"< POWER_MODEL ID={n} NAME={name} >\nX 1\n" for name, n in _MODES.items()),
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/serial-number": "1422823049382\0",
        "proc/device-tree/compatible": f"nvidia,p3768-0000\0{chip}\0",
        "sys/class/hwmon/hwmon3/oc2_event_cnt": "0\n",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "4\n",
        "mode": "1",
        "standin.json": json.dumps({"version": version, "modes": _MODES}),
    }  # fmt: skip
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    tools = root / "tools"
    tools.mkdir()
    for tool in _TOOLS:
        path = tools / tool
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_HERE}/{tool.replace("-", "_")}.py" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tools


@contextlib.contextmanager
def standin(folder: Path, version: str) -> Iterator[Standin]:
    """A host with an SSH server that plays a board with a TensorRT of ``version``, one of `HOSTS`."""
    root = folder / "board"
    tools = make_host(root, version)
    # Without the folders of this environment: what the host's Python has is not what this machine's has.
    path = f"{tools}:/usr/bin:/bin:/usr/sbin"
    with serve(folder / "sshd", environment={"PATH": path, "EDGECOMPILE_HOST_ROOT": str(root)}) as server:
        yield Standin(server=server, root=root)


def known_to_us(server: Server, home: Path) -> None:
    """Let the user whose home folder ``home`` is reach the server."""
    ssh = home / ".ssh"
    ssh.mkdir(parents=True)
    shutil.copy(server.identity, ssh / "id_ed25519")
    shutil.copy(server.known_hosts, ssh / "known_hosts")


def environment(root: Path) -> dict[str, str]:
    """The variables of a process on such a host."""
    return {**os.environ, "PATH": f"{root / 'tools'}:/usr/bin:/bin", "EDGECOMPILE_HOST_ROOT": str(root)}
