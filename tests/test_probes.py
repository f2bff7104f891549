"""What machines say about themselves: read from texts of theirs, and what is made of it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from edgecompile import bench, content
from edgecompile.bench import document, state
from edgecompile.transport import Completed
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Measurement
from tests.lowering import Net

FIXTURES = Path(__file__).with_name("fixtures_probes")
MACHINES = sorted(path.stem for path in FIXTURES.glob("*.txt"))


def load() -> ModuleType:
    path = content.builtin_root("targets") / "probes.py"
    spec = importlib.util.spec_from_file_location("edgecompile_probes_tested", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = writing
    return module


probes = load()


def unpack(name: str, folder: Path) -> dict[str, str]:
    """Write the files of a recorded machine below ``folder``; what its programs print, by their commands."""
    programs = {}
    text = (FIXTURES / f"{name}.txt").read_text()
    for path, body in re.findall(r"^==> /(.*?) <==\n(.*?)(?=\n==> |\Z)", text, re.MULTILINE | re.DOTALL):
        if path.startswith("usr/bin/"):
            programs[path.removeprefix("usr/bin/")] = body
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(body)
    return programs


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Any]:
    def make(name: str) -> Any:
        programs = unpack(name, tmp_path / name)
        return probes.Probes(str(tmp_path / name), program=lambda command: programs.get(" ".join(command)))

    return make


# ----------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("name", MACHINES)
def test_every_recorded_machine_is_read(name: str, machine: Callable[[str], Any]) -> None:
    found = machine(name)
    told = found.state([0])
    assert found.cpu()["model"].startswith("Cortex-A")
    assert "asimd" in found.cpu()["flags"]
    assert 20 < told["temperature_c"] < 100
    assert 300 < told["frequency_mhz"] < 3000
    assert told["governor"] in ("ondemand", "schedutil", "performance")
    assert told["load"] is not None
    assert told["memory_available_bytes"] > 100e6
    for cluster in told["clusters"]:
        assert cluster["min_mhz"] <= cluster["mhz"] <= cluster["max_mhz"]
        assert cluster["core"].startswith("Cortex-")
    assert msgspec.convert(told, document.State, strict=False).frequency_mhz == told["frequency_mhz"]


@pytest.mark.parametrize(
    ("name", "model", "throttled", "celsius", "mhz"),
    [
        ("pi3", "Cortex-A53", 0, 48.312, 1200.002),
        ("pi4", "Cortex-A72", 0, 52.582, 1500.345728),
        ("pi4_throttled", "Cortex-A72", 0x50005, 82.303, 600.117184),
        ("pi5", "Cortex-A76", 0xE0000, 55.75, 2400.033792),
        ("jetson", "Cortex-A78AE", None, 48.968, 1510.4),
        ("phone", "Cortex-A55 + Cortex-A78 + Cortex-X1", None, 51.2, 1804.8),
        ("rk3399", "Cortex-A53 + Cortex-A72", None, 47.222, 1416.0),
    ],
)
def test_figures_of_recorded_machines(
    name: str, model: str, throttled: int | None, celsius: float, mhz: float, machine: Callable[[str], Any]
) -> None:
    found = machine(name)
    told = found.state([0])
    assert found.cpu()["model"] == model
    assert told["throttled"] == throttled
    assert told["temperature_c"] == celsius
    assert told["frequency_mhz"] == mhz


def test_boards_have_names(machine: Callable[[str], Any]) -> None:
    assert machine("pi4").device() == "Raspberry Pi 4 Model B Rev 1.4"
    old_kernel = machine("pi5")
    (Path(old_kernel.root) / "proc/device-tree/model").unlink()
    assert old_kernel.device() == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine("phone").device() is None


def test_clusters_stand_with_the_biggest_first(machine: Callable[[str], Any]) -> None:
    phone = machine("phone").clusters()
    assert [one["cpus"] for one in phone] == [[7], [4, 5, 6], [0, 1, 2, 3]]
    assert [one["core"] for one in phone] == ["Cortex-X1", "Cortex-A78", "Cortex-A55"]
    assert [one["capacity"] for one in phone] == [1024, 871, 276]
    assert (phone[0]["max_mhz"], phone[0]["allowed_mhz"]) == (2841.6, 2265.6)
    assert [one["max_mhz"] for one in machine("rk3399").clusters()] == [1800.0, 1800.0, 1416.0, 1416.0, 1416.0, 1416.0]


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("phone", 1, [7]),
        ("phone", 3, [5, 6, 7]),
        ("phone", 4, [4, 5, 6, 7]),
        ("rk3399", 2, [4, 5]),
        ("rk3399", 3, [3, 4, 5]),
        ("pi4", 1, [3]),
        ("pi4", 3, [1, 2, 3]),
        ("jetson", 2, [4, 5]),
    ],
)
def test_threads_go_to_the_biggest_cores(
    name: str, count: int, expected: list[int], machine: Callable[[str], Any]
) -> None:
    found = machine(name)
    assert found.biggest(range(len(found.processors()[0])), count) == expected


def test_only_allowed_cpus_are_chosen(machine: Callable[[str], Any]) -> None:
    assert machine("phone").biggest([0, 1, 5], 2) == [1, 5]


def test_the_part_tells_big_cores_where_the_kernel_does_not(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    block = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
    text = "\n".join(block.format(k, part) for k, part in enumerate(["0xd41", "0xd05", "0xd05"]))
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert probes.Probes(str(tmp_path), program=lambda _: None).biggest([0, 1, 2], 1) == [0]


def test_means_of_cooling_that_slow_the_cpu_count_and_fans_do_not(machine: Callable[[str], Any]) -> None:
    assert machine("phone").cooling() == {"thermal-cpufreq-7": 3}
    assert machine("pi5").cooling() == {}
    assert machine("jetson").cooling() == {}


def test_a_batterys_state_of_charge_is_no_temperature(machine: Callable[[str], Any]) -> None:
    phone = machine("phone")
    for number, celsius in ((1, -40000), (2, 0)):
        (Path(phone.root) / f"sys/class/thermal/thermal_zone{number}/temp").write_text(str(celsius))
    assert phone.temperature() == 62.0  # no zone of the CPU is on, so the hottest of the others
    (Path(phone.root) / "sys/class/thermal/thermal_zone3/temp").write_text("0")
    assert phone.temperature() == 41.0
    (Path(phone.root) / "sys/class/thermal/thermal_zone0/temp").write_text("0")
    assert phone.temperature() == 38.0  # in whole degrees; the battery's charge is 97 %


def test_where_there_is_no_vcgencmd_the_kernels_file_is_read(machine: Callable[[str], Any]) -> None:
    found = machine("pi4_throttled")
    found.program = lambda _: None
    assert found.throttled() == 0x50005
    assert found.state([0])["frequency_mhz"] == 1500.0  # what the kernel asked for


def test_while_measuring_a_pis_clock_is_the_firmwares_or_none(machine: Callable[[str], Any]) -> None:
    found = machine("pi4_throttled")
    folders = found.clocks_of([3])
    assert found.sample(folders)["frequency_mhz"] == 600.117184
    files = found.sample(folders, programs=False)
    assert (files["frequency_mhz"], files["throttled"], files["temperature_c"]) == (None, None, 82.303)
    other = machine("jetson")
    other.state([0])  # which learns that there is no vcgencmd
    assert other.sample(other.clocks_of([0]), programs=False)["frequency_mhz"] == 1510.4


@pytest.mark.parametrize(
    "answer", ["", "VCHI initialization failed", "error=1 error_msg=x", "frequency(48)=", "throttled="]
)
def test_a_firmware_that_does_not_answer(answer: str, tmp_path: Path) -> None:
    found = probes.Probes(str(tmp_path), program=lambda _: answer)
    assert found.throttled() is None
    assert found.firmware_mhz() is None


def test_a_program_that_is_not_there_is_not_asked_again(tmp_path: Path) -> None:
    asked = []
    found = probes.Probes(str(tmp_path), program=lambda command: asked.append(command))
    assert found.throttled() is None
    assert found.throttled() is None
    assert asked == [["vcgencmd", "get_throttled"]]
    assert probes.run_program(["no-such-program"]) is None
    assert probes.run_program(["false"]) is None


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = probes.Probes(str(tmp_path), program=lambda _: None)
    told = found.state([0, 1])
    assert told.pop("load") is not None  # the C library knows it
    assert {key: value for key, value in told.items() if value} == {}
    assert found.biggest([0, 1, 2], 2) == [1, 2]
    assert found.device() is None
    assert found.cpu() == {"model": "", "flags": []}
    assert probes.summary([[found.sample(found.clocks_of([0]))]])["frequency_mhz"] is None


@pytest.mark.parametrize("text", ["", "nonsense", "-", "99999999999999999999999", "\x00\xff"])
def test_files_with_nonsense_are_as_if_they_were_not_there(text: str, machine: Callable[[str], Any]) -> None:
    found = machine("phone")
    for path in Path(found.root).rglob("*"):
        if path.is_file():
            path.write_text(text)
    msgspec.convert(found.state([0]), document.State, strict=False)
    found.biggest(range(8), 2)


def test_lists_of_cpus() -> None:
    assert probes.cpu_list("0-2,5") == [0, 1, 2, 5]
    assert probes.cpu_list("0 1 4-6\n") == [0, 1, 4, 5, 6]
    assert probes.cpu_list("") == []


# --------------------------------------------------------------------------------------------- while measuring


def sample(mhz: float | None = 1500.0, **changes: Any) -> dict[str, Any]:
    return {"at_s": 0.0, "frequency_mhz": mhz, "temperature_c": 50.0, "throttled": None, "cooling": {}, **changes}


def test_samples_in_one() -> None:
    assert probes.summary([[], []]) is None
    calm = probes.summary([[sample() for _ in range(9)]])
    assert (calm["samples"], calm["frequency_mhz"], calm["frequency_fall"]) == (9, 1500.0, 0.0)
    assert probes.summary([[sample(), sample(None)]])["clock_samples"] == 1
    falling = probes.summary([[sample(1500.0)] * 4 + [sample(600.0)] * 5, [sample(1500.0)] * 4])
    assert falling["frequency_fall"] == pytest.approx(0.6)
    assert (falling["frequency_mhz"], falling["frequency_mhz_lowest"]) == (1500.0, 600.0)
    worst = probes.summary([[sample(throttled=2, temperature_c=81.0), sample(throttled=0x40000, cooling={"a": 2})]])
    assert (worst["throttled"], worst["temperature_c_highest"], worst["cooling"]) == (0x40002, 81.0, {"a": 2})


def test_one_sample_between_two_processes_is_no_fall() -> None:
    assert (
        probes.summary([[sample(m) for m in (1500, 1500, 1500, 600, 1500, 1500, 1500, 600, 600)]])["frequency_fall"]
        == 0
    )


def test_a_watch_looks_on_and_ends(machine: Callable[[str], Any]) -> None:
    with probes.Watch(machine("pi4_throttled"), [3], [], every_s=0.01) as watch:
        end = time.monotonic() + 20
        while len(watch.samples) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert not watch.thread.is_alive()
    assert len(watch.samples) >= 3
    assert watch.samples[0]["throttled"] == 0x50005
    assert watch.samples[0]["frequency_mhz"] == 600.117184


# ---------------------------------------------------------------------------------------------------- verdicts


def described(**changes: Any) -> document.Machine:
    clock = document.Clock(
        cpus=(0, 1, 2, 3), core="Cortex-A72", capacity=None, governor="ondemand", mhz=1500.0, min_mhz=600.0,
        max_mhz=1500.0, allowed_mhz=1500.0,
    )  # fmt: skip
    before = document.State(
        load=0.1, frequency_mhz=600.0, governor="ondemand", temperature_c=50.0, throttled=0, clusters=(clock,)
    )
    calm = document.Machine(
        device="Raspberry Pi 4", machine="aarch64", cpu_model="Cortex-A72", cpu_flags=(), cores=4, kernel="6.6",
        affinity=(3,), before=before, after=replace(before, frequency_mhz=1500.0, temperature_c=60.0), own_cpus=1.0,
        other_cpus=0.0, stolen_cpus=0.0, during=during(),
    )  # fmt: skip
    return replace(calm, **changes)


def during(**changes: Any) -> document.During:
    calm = document.During(
        samples=20, clock_samples=20, frequency_mhz=1500.0, frequency_mhz_lowest=1500.0, frequency_fall=0.0,
        temperature_c_highest=60.0, throttled=0, cooling={},
    )  # fmt: skip
    return replace(calm, **changes)


def found(**changes: Any) -> list[tuple[str, bool]]:
    return [(doubt.words, doubt.grave) for doubt in state.doubts(described(**changes), 1)]


def changed(side: str, **changes: Any) -> dict[str, document.State]:
    return {side: replace(getattr(described(), side), **changes)}


def test_a_calm_machine_is_not_doubted() -> None:
    assert found() == []


def test_a_load_that_was_over_when_the_measurement_began_is_no_doubt() -> None:
    assert found(**changed("before", load=9.0)) == []
    assert found(**changed("before", load=9.0), other_cpus=1.5)[-1] == (
        "the load average was 9.0 on 4 CPUs before the start", True
    )  # fmt: skip


CAPPED = (replace(described().before.clusters[0], allowed_mhz=1000.0),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"during": during(throttled=0x50005)}, "throttled while measuring: the supply's voltage is too low"),
        ({"during": during(throttled=0b10)}, "throttled while measuring: the firmware caps the clock"),
        (changed("after", throttled=0b1000), "throttled while measuring: the soft temperature limit is reached"),
        (changed("after", throttled=0x40000), "throttled while measuring: the firmware throttles the CPU"),
        (changed("before", load=4.6) | {"other_cpus": None}, "the load average was 4.6 on 4 CPUs before the start"),
        (changed("after", clusters=CAPPED), "the clock is capped at 1000 of 1500 MHz"),
        ({"during": during(frequency_mhz=1000.0)}, "the CPU ran at 1000 of 1500 MHz while measuring"),
        ({"during": during(frequency_fall=0.2, frequency_mhz_lowest=1200.0)}, "clock fell by 20% while measuring"),
        ({"during": during(cooling={"thermal-cpufreq-0": 2})}, "slows the CPU to cool it (thermal-cpufreq-0)"),
        (
            {**changed("before", frequency_mhz=1500.0), **changed("after", frequency_mhz=1300.0), "during": None},
            "the CPU's clock fell from 1500 to 1300 MHz",
        ),
    ],
)
def test_a_slowed_machine_is_not_trusted(changes: dict[str, Any], words: str) -> None:
    grave = [text for text, is_grave in found(**changes) if is_grave]
    assert any(words in text for text in grave), grave


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {**changed("before", throttled=0xE0000), **changed("after", throttled=0xE0000)},
            "before the measurement: the firmware has throttled the CPU since boot",
        ),
        ({"during": during(temperature_c_highest=81.0)}, "81 degrees"),
        ({"affinity": (3, 4), **changed("before", clusters=(CAPPED[0], replace(CAPPED[0], cpus=(4,), core="X")))},
         "cores of different kinds: Cortex-A72 and X"),
    ],
)  # fmt: skip
def test_what_is_said_without_distrust(changes: dict[str, Any], words: str) -> None:
    assert any(words in text for text, is_grave in found(**changes) if not is_grave)


def test_a_clock_that_rests_afterwards_is_no_fall() -> None:
    assert found(**changed("before", frequency_mhz=1500.0), **changed("after", frequency_mhz=600.0)) == []


def test_a_jetsons_power_mode_is_the_users_choice() -> None:
    sides = {**changed("before", clusters=CAPPED), **changed("after", clusters=CAPPED)}
    jetson = {"device": "NVIDIA Jetson Orin Nano Developer Kit", **sides}
    words = "the clock is capped at 1000 of 1500 MHz by the power mode"
    assert found(**jetson, during=during(frequency_mhz=1000.0)) == [(words, False)]
    assert ("the CPU ran at 700 of 1000 MHz while measuring", True) in found(
        **jetson, during=during(frequency_mhz=700.0)
    )


def test_on_x86_the_highest_clock_is_no_promise() -> None:
    assert found(machine="x86_64", during=during(frequency_mhz=1000.0)) == []


def test_every_bit_has_its_words() -> None:
    assert state.explain(0) == ()
    assert len(state.explain(0xF000F)) == 8
    assert [words.endswith("since boot") for words in state.explain(0x50005)] == [False, False, True, True]
    assert set(state.THROTTLED) == set(probes.THROTTLED_BITS)


def test_a_cool_down_that_was_too_short_is_said() -> None:
    passes = tuple(
        document.Pass(medians_ms=(1.0,), cooled_s=s, temperature_c=c, kept=True) for s, c in ((0.0, 50.0), (30.0, 71.0))
    )
    assert found(passes=passes) == [("after 30 s of cooling the CPU was still 21 degrees above the start", False)]


def test_passes_that_were_left_out_are_said() -> None:
    kept = (True, False, True)
    passes = tuple(document.Pass(medians_ms=(1.0,), cooled_s=0.0, temperature_c=None, kept=one) for one in kept)
    assert found(passes=passes) == [("1 of 3 passes were left out: they differed from the two that agree", False)]


def test_what_counts_keeps_the_budget_and_is_trusted() -> None:
    good = Measurement(
        provenance="measured", device="d", runtime="r", runtime_version="1", threads=1, percentile=50.0, value_ms=9.0,
        ci_low_ms=8.0, ci_high_ms=10.0, median_ms=9.0, p90_ms=9.0, p95_ms=9.0, p99_ms=9.0,
    )  # fmt: skip
    assert good.counts(10.0)
    assert not good.counts(9.5)
    assert replace(good, trusted=False).meets(10.0)
    assert not replace(good, trusted=False).counts(10.0)


# ------------------------------------------------------------------------------------------------- from end to end


class Board(LocalTransport):
    """This machine, which says about itself what another one said."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        return super().run([*argv, "--machine-root", str(self.root)], timeout_s=timeout_s)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    net = Net()
    x = net.input("x", 1, 8, 32, 32)
    model = net.save(tmp_path_factory.mktemp("tiny") / "tiny.onnx", net.add("Relu", net.conv(x, 8, 8)))
    return bench.bare_file(model.path)


QUICK = bench.BenchOptions(warmup_s=0.02, min_runs=9, min_seconds=0.06, rounds=2, passes=2)


def measure(transport: LocalTransport, artifact: Artifact) -> Measurement:
    with transport:
        return bench.measure([artifact], transport, QUICK).measurements[0]


def test_a_throttled_board_is_measured_and_not_trusted(tiny: Artifact, tmp_path: Path) -> None:
    unpack("pi4_throttled", tmp_path)
    measured = measure(Board(tmp_path), tiny)
    assert measured.value_ms > 0
    assert not measured.trusted
    assert not measured.counts(1e9)
    assert "throttled while measuring: the supply's voltage is too low" in measured.warnings
    environment = measured.environment
    assert environment is not None
    assert environment.device == "Raspberry Pi 4 Model B Rev 1.4"
    assert (environment.throttled_before, environment.throttled_after) == (0x50005, 0x50005)
    assert environment.clusters[0].core == "Cortex-A72"
    assert environment.temperature_c_before == 82.303
    assert environment.passes == 2


@pytest.mark.parametrize("mode", [(), ("--sustained", "0.3s")])
def test_the_runner_alone_tells_people_of_throttling(mode: tuple[str, ...], tiny: Artifact, tmp_path: Path) -> None:
    unpack("pi4_throttled", tmp_path)
    command = [
        sys.executable,
        str(content.builtin_root("targets") / "runner.py"),
        "--model",
        f"onnxruntime:{tiny.file}",
    ]
    quick = ("--warmup-s", "0.02", "--min-runs", "4", "--min-seconds", "0.02", "--rounds", "1")
    done = subprocess.run(
        [*command, *quick, *mode, "--machine-root", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "throttled: under-voltage now" in done.stdout
    assert "throttled: throttling has occurred since boot" in done.stdout
    assert "Cortex-A72" in done.stdout


def test_a_machine_without_any_of_these_files_still_measures(tiny: Artifact, tmp_path: Path) -> None:
    measured = measure(Board(tmp_path), tiny)
    assert measured.value_ms > 0
    assert measured.environment is not None
    assert measured.environment.clusters == ()
    assert measured.environment.temperature_c_highest is None
    assert measured.cold_ms is not None
    assert measured.load_ms is not None
    assert measured.peak_memory_bytes is not None
