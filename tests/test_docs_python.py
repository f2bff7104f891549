"""The examples of the documentation for Python run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.net import Project

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


def test_the_examples_of_the_page_run(project: Project, tmp_path: Path) -> None:
    for file in (project.model, project.train):
        shutil.copy(file, tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    (tmp_path / "examples.py").write_text("\n".join(examples))
    done = subprocess.run(
        [sys.executable, "examples.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 predicted")
    assert any("['prune', 'distill']" in line for line in lines)
    assert re.search(r"^[0-9a-f]{64}$", done.stdout, re.MULTILINE)
    ((before, after),) = re.findall(r"^(\d+) parameters, now (\d+)$", done.stdout, re.MULTILINE)
    assert int(after) < int(before)
    assert "logits" in lines[-1]
