"""One file for a long time: the series, what is made of them, and their picture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompile import bench
from edgecompile.bench import intervals
from edgecompile.bench.sustained import _ends, _slow_down
from edgecompile.errors import InputError
from edgecompile.transport import open_transport
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Environment, Ratio
from tests.lowering import Net
from tests.sshd import serve_known
from tests.test_cli import edgecompile
from tests.test_probes import Board, unpack

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    net = Net()
    x = net.input("x", 1, 8, 32, 32)
    model = net.save(tmp_path_factory.mktemp("tiny") / "tiny.onnx", net.add("Relu", net.conv(x, 8, 8)))
    return bench.bare_file(model.path)


# --------------------------------------------------------------------------------------------------- the measurement


@pytest.fixture(scope="module")
def measured(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> bench.Sustained:
    root = tmp_path_factory.mktemp("board")
    unpack("pi4_throttled", root)
    with Board(root) as transport:
        return bench.sustained(tiny, transport, bench.BenchOptions(), 3.0)


def test_every_second_has_its_entry(measured: bench.Sustained) -> None:
    assert 3.0 <= measured.seconds < 6.0
    assert measured.at_s[-1] == measured.seconds
    assert list(measured.at_s) == sorted(measured.at_s)
    count = len(measured.at_s)
    assert 10 < count <= 60
    assert {len(s) for s in (measured.latency_ms, measured.temperature_c, measured.frequency_mhz)} == {count}
    assert all(ms > 0 for ms in measured.latency_ms)
    assert set(measured.temperature_c) == {82.303}
    assert set(measured.frequency_mhz) == {1500.0}
    assert measured.runs >= count


def test_the_ends_are_compared(measured: bench.Sustained) -> None:
    assert measured.slow_down is not None
    assert measured.slow_down.value == pytest.approx(measured.last_minute_ms / measured.first_minute_ms)
    assert measured.slow_down.ci_low <= measured.slow_down.value <= measured.slow_down.ci_high
    assert min(measured.latency_ms) <= measured.first_minute_ms <= max(measured.latency_ms)


def test_the_machine_is_told_and_its_throttling(measured: bench.Sustained) -> None:
    assert measured.device == "Raspberry Pi 4 Model B Rev 1.4"
    assert measured.runtime == "onnxruntime"
    assert measured.environment.throttled_during == 0x50005
    assert "throttled while measuring: the firmware throttles the CPU" in measured.warnings


def test_a_machine_that_tells_nothing_is_followed_too(tiny: Artifact, tmp_path: Path) -> None:
    with Board(tmp_path) as transport:
        found = bench.sustained(tiny, transport, bench.BenchOptions(pin=False), 0.5)
    assert set(found.temperature_c) == set(found.frequency_mhz) == {None}
    ElementTree.fromstring(bench.sustained_svg(found))


def test_a_time_must_be_positive(tiny: Artifact) -> None:
    with LocalTransport() as transport, pytest.raises(InputError, match="cannot run for -1 seconds"):
        bench.sustained(tiny, transport, bench.BenchOptions(), -1.0)


def interrupted_bench(file: Path, folder: Path, *arguments: str, seconds: int) -> tuple[int, str, str]:
    """The command, which gets Ctrl-C when it has measured for some seconds; it works in ``folder``."""
    command = [sys.executable, "-m", "edgecompile", "bench", str(file), "--sustained", "120s", *arguments]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TMPDIR": str(folder)},
    )
    assert child.stderr is not None
    assert "Run " in child.stderr.readline()
    end = time.monotonic() + 100
    while _seconds_in(folder) < seconds and time.monotonic() < end:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def _seconds_in(folder: Path) -> int:
    return sum(path.read_text().count('"second"') for path in folder.glob("edgecompile-*/sustained.log"))


def test_ctrl_c_keeps_what_was_measured(tiny: Artifact, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    code, out, err = interrupted_bench(tiny.file, tmp_path, "--plot", str(picture), seconds=3)
    assert code == 130, err
    assert "interrupted after" in out
    assert list(tmp_path.glob("edgecompile-*")) == []
    assert "Traceback" not in err
    assert ElementTree.fromstring(picture.read_text()).findall(f"{SVG}polyline")


def test_ctrl_c_before_anything_was_measured_leaves_nothing(tiny: Artifact, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    code, _, err = interrupted_bench(tiny.file, tmp_path, "--plot", str(picture), seconds=0)
    assert code == 130, err
    assert "interrupted" in err
    assert not picture.exists()


def test_the_command_prints_a_table_and_draws_a_picture(tiny: Artifact, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    done = edgecompile("bench", tiny.file, "--sustained", "1s", "--plot", picture)
    assert done.code == 0, done.err
    assert "median of the first half" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--sustained", "soon"), "length of time"),
        (("--sustained", "1s", "--plot", "/proc/x"), "/proc/x"),
        (("--sustained", "1s", "--budget-ms", "0.0001"), "--budget-ms does not go with --sustained"),
        (("--sustained", "1s", "--percentile", "95"), "--percentile does not go with --sustained"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments: tuple[str, ...], word: str, tiny: Artifact) -> None:
    done = edgecompile("bench", tiny.file, *arguments)
    assert done.code == 2
    assert word in " ".join(done.err.split())


def test_over_ssh_the_probes_travel_with_the_runner(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_known(tmp_path, monkeypatch) as server:
        with open_transport(server.where) as transport:
            found = bench.sustained(tiny, transport, bench.BenchOptions(), 0.5)
        assert server.left() == []
    assert found.environment.cores == os.cpu_count()
    assert found.environment.memory_available_bytes_before is not None
    assert len(found.latency_ms) > 5


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert bench.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10 minutes", "-1", "0", "1d", "nan"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no length of time"):
        bench.seconds_of(text)


# -------------------------------------------------------------------------------------------------- first and last


def test_minutes_at_the_ends() -> None:
    at = [float(k) for k in range(1, 601)]
    first, last = _ends(at, at)
    assert (first[0], first[-1], last[0], last[-1]) == (1.0, 60.0, 541.0, 600.0)
    first, last = _ends(at[:60], at[:60])
    assert (len(first), len(last), last[0]) == (30, 30, 31.0)
    assert _ends([70.0], [5.0]) == ([5.0], [5.0])


def test_a_quotient_holds_the_truth() -> None:
    """95 of 100, within what 1,000 draws tell (a standard deviation of 0.7 %)."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        slow, fast = (list(level * np.exp(generator.normal(0, 0.02, 60))) for level in (1.2, 1.0))
        found = intervals.quotient(slow, fast, 6)
        assert found.low <= found.value <= found.high
        hits += found.low <= 1.2 <= found.high
    assert 0.93 < hits / 1000 < 0.98


def test_of_one_value_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        intervals.quotient([2.0], [1.0, 1.0], 6)
    assert _slow_down([2.0], [1.0, 1.0]) is None


# -------------------------------------------------------------------------------------------------------- picture


def series(count: int, *, warm: bool = True, device: str = "a board") -> bench.Sustained:
    environment = Environment(
        device=device, machine="aarch64", cpu_model="c", cpu_flags=(), cores=4, affinity=(3,), kernel="6",
        load_before=0.0, load_after=0.0,
    )  # fmt: skip
    at = tuple(float(k) for k in range(1, count + 1))
    return bench.Sustained(
        device=device, runtime="onnxruntime", runtime_version="1", threads=1, seconds=at[-1], at_s=at,
        latency_ms=tuple(10.0 + k / count for k in range(count)),
        temperature_c=tuple(50.0 + 30.0 * k / count if warm else None for k in range(count)),
        frequency_mhz=(1500.0,) * count, first_minute_ms=10.0, last_minute_ms=11.0,
        slow_down=Ratio(value=1.1, ci_low=1.0, ci_high=1.2), runs=count, environment=environment,
    )  # fmt: skip


def lines(found: bench.Sustained) -> list[list[tuple[float, float]]]:
    """The points of each line of the picture."""
    tree = ElementTree.fromstring(bench.sustained_svg(found))
    assert tree.tag == f"{SVG}svg"
    assert tree.attrib["viewBox"] == "0 0 720 280"
    drawn = tree.findall(f"{SVG}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in one.attrib["points"].split())] for one in drawn]


def test_the_picture_shows_latency_and_temperature() -> None:
    latency, temperature = lines(series(600))
    assert len(latency) == len(temperature) == 600
    for line in (latency, temperature):
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        assert all(0 <= x <= 720 and 0 <= y <= 280 for x, y in line)
        assert line[0][1] > line[-1][1]  # both rise, and the picture's y grows downward
    texts = ElementTree.fromstring(bench.sustained_svg(series(600))).itertext()
    assert {"latency, ms", "time, min", "temperature, °C (dashed)", "10"} <= set(texts)


def test_a_long_series_is_thinned() -> None:
    assert all(len(line) <= 600 for line in lines(series(5000)))


def test_without_temperatures_latency_is_drawn_alone() -> None:
    (latency,) = lines(series(100, warm=False))
    assert len(latency) == 100
    partly = replace(series(100), temperature_c=(None,) * 99 + (60.0,))
    assert len(lines(partly)[1]) == 1


def test_names_are_escaped() -> None:
    tree = ElementTree.fromstring(bench.sustained_svg(series(10, device="<script>&\"'")))
    title = tree.find(f"{SVG}title")
    assert title is not None
    assert title.text is not None
    assert title.text.startswith("Latency and temperature of <script>&\"'")
