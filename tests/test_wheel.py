"""A real wheel, installed beside nothing of the checkout, must find its content."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_carries_all_content(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("device_profiles", "calibration", "targets"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".toml", ".py") and "__pycache__" not in path.parts:
                assert f"edgecompile/_content/{path.relative_to(ROOT)}" in names
    assert not any("tests/" in name or "__pycache__" in name for name in names)


def test_devices_are_listed_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    # A fresh environment that sees this one's dependencies but not the checkout: unpack the wheel as pip would.
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    code += "import edgecompile; assert edgecompile.__file__.startswith(sys.path[0]), edgecompile.__file__\n"
    code += "from edgecompile.__main__ import main; main(['devices', '--json'])"
    # -S keeps the editable install's hook out.
    listed = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert {"raspberry-pi-4", "jetson-orin-nano", "x86-avx2"} <= {profile["name"] for profile in found}
    assert all(profile["origin"] == "built-in" for profile in found)
