"""Damaged and hostile model files give one clear error, never a crash, a hang or a foreign exception."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import fuzz

#: What reading a small file may need at most, whatever it claims to hold.
_MOST_BYTES = 4 << 30


def _hold(folder: Path, mutations: int) -> list[fuzz.Outcome]:
    fuzz.seed_files(folder)
    found = list(fuzz.outcomes(folder, mutations))
    assert len(found) == mutations
    assert [o for o in found if o.verdict in ("foreign", "timed out")] == []
    assert max(o.peak_bytes for o in found) < _MOST_BYTES
    return found


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    verdicts = Counter(o.verdict for o in _hold(tmp_path, 150))
    # Mutations that all fail, or all pass, would show nothing.
    assert min(verdicts["read"], verdicts["refused"]) > 15


@pytest.mark.parametrize("number", range(3))
def test_edgecompile_itself_answers_a_mutated_file_with_one_error(tmp_path: Path, number: int) -> None:
    fuzz.seed_files(tmp_path)
    answer = fuzz.answer_of_edgecompile(tmp_path, number)
    assert answer is None or "mutated" in answer


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    for outcome in _hold(tmp_path, 10_000):
        if outcome.verdict == "killed":
            fuzz.answer_of_edgecompile(tmp_path, outcome.number)  # raises what is not ours
