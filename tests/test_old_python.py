"""What runs on devices keeps to Python 3.7: by its syntax everywhere, by running where such a Python is installed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgecompile import content

TARGETS = content.builtin_root("targets")
#: What is put on devices; the emulated boards have a newer Python.
PROGRAMS = sorted(p for p in TARGETS.rglob("*.py") if p.parent.name != "lab")
#: What came after 3.7 and is no syntax: attributes of modules that are used here.
NEWER = {
    ("functools", "cache"), ("functools", "cached_property"), ("math", "prod"), ("math", "dist"), ("shlex", "join"),
    ("time", "pthread_getcpuclockid"), ("os", "pidfd_open"), ("random", "randbytes"), ("ast", "unparse"),
}  # fmt: skip
METHODS = {"removeprefix", "removesuffix", "is_relative_to", "readlink", "with_stem", "bit_count"}


def pythons() -> list[str]:
    """Installed Pythons of 3.6 (which must not be needed) to 3.8, newest last."""
    places = [Path.home() / ".pyenv" / "versions", Path("/root/.pyenv/versions"), Path("/opt/hostedtoolcache/Python")]
    found = [str(path) for place in places if place.is_dir() for path in sorted(place.glob("3.7.*/bin/python3.7"))]
    return [*found, *filter(None, [shutil.which("python3.7")])]


def test_there_is_something_to_check() -> None:
    assert {"runner.py", "probes.py", "environment.py", "backend.py"} <= {path.name for path in PROGRAMS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(TARGETS)))
def test_the_syntax_is_that_of_python_3_7(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.NamedExpr | ast.Match | ast.TryStar), f"line {node.lineno}"
        assert not (isinstance(node, ast.arguments) and node.posonlyargs)
        if isinstance(node, ast.Attribute):
            assert node.attr not in METHODS, f"line {node.lineno}"
            if isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in NEWER, f"line {node.lineno}"
    assert not re.search(r"\{\w+=\}", path.read_text()), "an f-string that names its expression came with 3.8"


def test_an_installed_python_3_7_runs_it(tmp_path: Path) -> None:
    if not pythons():
        pytest.skip("no Python 3.7 is installed here: only the syntax was checked")
    python = pythons()[0]
    for path in PROGRAMS:
        done = subprocess.run(
            [python, "-c", "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [python, str(TARGETS / "environment.py"), "look"], capture_output=True, text=True, check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().removeprefix("EDGECOMPILE-RESULT "))
    assert found["python"][:2] == [3, 7]
    done = subprocess.run(
        [python, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import probes; print(probes.Probes().state([0]))",
         str(TARGETS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "temperature_c" in done.stdout
