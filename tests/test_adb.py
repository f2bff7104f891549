"""A phone reached by adb and measured by benchmark_model, against a stand-in for both. No phone has been met yet."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile import bench, bundle, lower
from edgecompile.bench import benchmark_model, snapshot
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import adb, remote
from edgecompile.transport.adb import AdbTransport
from edgecompile.transport.connection import Dropped, Refused
from edgecompile.transport.shell import Patience
from edgecompile.types import Artifact, Plan
from tests.adb import BATTERY, THERMAL, Phone, make_phone
from tests.lowering import samples, small_net
from tests.net import Project
from tests.test_cli import QUICK, edgecompile
from tests.test_probes import FIXTURES

FAST = Patience(connect_s=10, silence_s=10, first_retries_s=(0.05,), retries_s=(0.05, 0.1), turn_s=20, grace_s=3)
LOG = """INFO: STARTING!
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/mobilenet_v1_1.0_224_quant.tflite]
INFO: The input model file size (MB): 4.27635
INFO: Initialized session in 5.388ms.
INFO: count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

INFO: count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450{more}

INFO: Inference timings in us: Init: 5388, First inference: 127425, Warmup (avg): 76605.9, Inference (avg): 33209.4
INFO: Peak memory footprint (MB): init=0 overall=12.8672
"""
PERCENTILES = " p5=32700 median=33150 p95=33990"
#: https://github.com/google-ai-edge/LiteRT/blob/main/litert/tools/benchmark_litert_model.h
NEWER = """INFO: count=10 curr=7430100 min=7416400 max=7448860 avg=7.4302e+06 p5=7416400 median=7430150 p95=7448860
INFO: [benchmark_litert_model.h:90]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:94] Model initialization: 23744.73 ms
INFO: [benchmark_litert_model.h:96] Warmup (first):       7441.04 ms
INFO: [benchmark_litert_model.h:98] Warmup (avg):         7441.04 ms (1 runs)
INFO: [benchmark_litert_model.h:100] Inference (avg):      7430.20 ms (10 runs)
INFO: [benchmark_litert_model.h:128] Overall footprint:    6391.74 MB
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """A phone; afterwards nothing may be left on it."""
    made = make_phone(tmp_path / "phone", monkeypatch)
    yield made
    (made.root / "fault").unlink(missing_ok=True)
    assert made.left() == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("tiny")
    model = small_net(folder)
    plan = Plan(runtime="tflite", precision="fp32")
    return lower.RUNTIMES["tflite"].lower(model, plan, samples(model), folder / "lowered")


# -------------------------------------------------------------------------------------------------------- transport


def test_files_go_there_and_commands_run(phone: Phone, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(300_000))
    with AdbTransport("adb:PHONE123", patience=FAST) as transport:
        assert transport.folder.startswith(str(phone.tmp))
        transport.put(file, "a/it's there")
        done = transport.run(
            ["sh", "-c", 'cat "$1" > copy; echo out; echo err >&2; exit 7', "x", "a/it's there"], timeout_s=20
        )
        transport.get("copy", tmp_path / "back")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert phone.calls() == {"get-state", "shell", "push", "pull"}


def test_a_hung_command_ends_with_all_that_it_started(phone: Phone) -> None:
    with AdbTransport("adb:", patience=FAST) as transport, pytest.raises(DeviceError, match="did not end within 1 s"):
        transport.run(["sh", "-c", "sleep 81.125 & sleep 81.125"], timeout_s=1)


def test_two_builds_take_turns(phone: Phone) -> None:
    order: list[str] = []

    def second() -> None:
        with AdbTransport("adb:PHONE123", patience=FAST):
            order.append("second")

    with AdbTransport("adb:PHONE123", patience=FAST):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.0)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "allow USB debugging"),
        ("device offline", "adb devices"),
        ("device 'PHONE123' not found", "adb devices"),
        ("more than one device/emulator", "--on adb:SERIAL"),
    ],
)
def test_a_phone_that_is_not_ready_is_told(fault: str, words: str, phone: Phone) -> None:
    (phone.root / "fault").write_text(fault)
    with pytest.raises(DeviceError) as found, AdbTransport("adb:PHONE123", patience=FAST):
        pass
    assert found.value.exit_code == 4
    assert words in str(found.value)


def test_a_phone_that_goes_away_is_told_and_cleans_up_by_itself(phone: Phone) -> None:
    with pytest.raises(DeviceError, match="could not be made again") as found:  # noqa: SIM117
        with AdbTransport("adb:PHONE123", patience=FAST) as transport:
            (phone.root / "fault").write_text("no devices/emulators found")
            transport.run(["true"], timeout_s=5)
    assert "is left" in str(found.value)
    assert phone.left() == []


def test_a_file_larger_than_announced_is_left_there(tmp_path: Path) -> None:
    client = tmp_path / "adb"
    client.write_text(
        "#!/bin/sh\ncase $1 in get-state) echo device;; pull) head -c 50000000 /dev/zero > $3; sleep 1;; esac\n"
    )
    client.chmod(0o700)
    connection = adb.AdbConnection(str(client), "")
    with pytest.raises(Refused, match="10"):
        connection.fetch("/somewhere", 10, tmp_path / "file")


@pytest.mark.parametrize(
    ("says", "fault", "words"),
    [
        ("echo '/system/bin/sh: od: inaccessible or not found'; exit 127", Refused, "od"),
        ("yes", Refused, "does not stop talking"),
        ("echo 'error: device not found' >&2; exit 1", Dropped, "not found"),
    ],
)
def test_what_is_no_answer_is_told_from_a_lost_phone(
    says: str, fault: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_MOST_SAID", 1 << 20)
    client = tmp_path / "adb"
    client.write_text(f"#!/bin/sh\ncase $1 in get-state) echo device;; *) {says};; esac\n")
    client.chmod(0o700)
    with pytest.raises(fault, match=words):
        adb.AdbConnection(str(client), "").ask(remote.call(remote.SPACE, "/"))


def test_a_full_phone_is_told(phone: Phone, tmp_path: Path) -> None:
    (phone.root / "full").write_text("")
    (tmp_path / "file").write_text("x")
    with AdbTransport("adb:PHONE123", patience=FAST) as transport, pytest.raises(DeviceError, match="No space left"):
        transport.put(tmp_path / "file", "file")


def test_without_the_client_that_is_said(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB", "/nowhere/adb")
    with pytest.raises(DeviceError, match="no program /nowhere/adb") as found, AdbTransport("adb:PHONE123"):
        pass
    assert "platform tools" in str(found.value)


def test_a_client_that_cannot_be_started_is_told(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "adb"
    client.write_bytes(b"\0no program")
    client.chmod(0o755)
    monkeypatch.setenv("ADB", str(client))
    with pytest.raises(DeviceError, match="cannot start"), AdbTransport("adb:PHONE123", patience=FAST):
        pass


def test_a_serial_number_is_no_option() -> None:
    with pytest.raises(InputError, match="no serial number"):
        AdbTransport("adb:-H evil")


# ------------------------------------------------------------------------------------------------------- the program


def test_what_it_prints_is_read() -> None:
    log = benchmark_model.parse(LOG.format(more=PERCENTILES))
    assert (log.runs, log.mean_ms, log.init_ms, log.first_ms) == (50, 33.2094, 5.388, 127.425)
    assert log.percentiles_ms == {5.0: 32.7, 50.0: 33.15, 95.0: 33.99}
    assert (log.size_mb, log.threads, log.peak_memory_bytes) == (4.27635, 4, round(12.8672 * 1024 * 1024))
    newer = benchmark_model.parse(NEWER)
    assert (newer.runs, newer.at(50.0), newer.init_ms, newer.first_ms) == (10, 7430.15, 23744.73, 7441.04)
    assert newer.mean_ms == 7430.2
    alike = benchmark_model.parse("count=5 curr=120(all same) p5=120 median=120 p95=120")
    assert (alike.mean_ms, alike.at(95.0)) == (0.12, 0.12)


@pytest.mark.parametrize("text", ["", "Segmentation fault", "count=0 p5=0"])
def test_what_holds_no_result_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        benchmark_model.parse(text)


def test_a_mean_is_no_median() -> None:
    log = benchmark_model.parse(LOG.format(more=""))
    with pytest.raises(InputError, match="the mean only"):
        log.at(50.0)
    with pytest.raises(InputError, match="90th"):
        benchmark_model.parse(LOG.format(more=PERCENTILES)).at(90.0)


OPTIONS = bench.BenchOptions(min_runs=20, min_seconds=0.2, rounds=2, passes=3, cool_down_s=0.0)


def measured(phone: Phone, tiny: Artifact, count: int = 1) -> bench.BenchResult:
    options = dataclasses.replace(OPTIONS, benchmark_model=str(phone.program))
    with AdbTransport("adb:PHONE123", patience=FAST) as transport:
        return bench.measure([tiny] * count, transport, options)


def test_a_phone_is_measured(phone: Phone, tiny: Artifact) -> None:
    result = measured(phone, tiny, 2)
    one = result.measurements[0]
    expected = (9000 + tiny.size_bytes // 1000) / 1e3
    assert (one.provenance, one.device, one.runtime) == ("measured", "Acme Phone 7", "benchmark_model")
    assert one.value_ms == one.median_ms == pytest.approx(expected)
    assert one.p95_ms == pytest.approx(expected + 0.04)
    assert (one.p90_ms, one.p99_ms) == (None, None)
    assert (one.cold_ms, one.load_ms, one.peak_memory_bytes) == (39.195, 4.183, round(6.5 * 1024 * 1024))
    assert one.environment is not None
    assert one.environment.temperature_c_before == 46.25
    assert result.ratio(1, 0).value == pytest.approx(1.0)
    assert len(one.environment.affinity) == 1


def test_a_phone_that_throttles_is_not_trusted(phone: Phone, tiny: Artifact) -> None:
    phone.services(status=2)
    (one,) = measured(phone, tiny).measurements
    assert not one.trusted
    assert "Android throttles because of heat (thermal status 2, moderate)" in one.warnings


@pytest.mark.parametrize(
    ("services", "words", "grave"),
    [
        ({}, "", False),
        ({"status": 9}, "thermal status 9, shutdown", True),
        ({"saving": 1}, "battery saver", True),
        ({"level": 12, "usb": "false"}, "battery is at 12 %", False),
        ({"level": 12}, "", False),
    ],
)
def test_what_androids_services_say(services: dict[str, int], words: str, grave: bool) -> None:
    values = {"status": 0, "level": 75, "usb": "true", "saving": 0} | services
    printed = {
        "dumpsys thermalservice": THERMAL.format(**values),
        "dumpsys battery": BATTERY.format(**values),
        "settings get global low_power": values["saving"],
        "getprop ro.product.model": "Phone 7",
    }
    text = "".join(f"==> /usr/bin/{name} <==\n{body}\n\n" for name, body in printed.items()) + "==> the end <==\n"
    found = snapshot.read(text, 1, fallback="x")
    assert found.device == "Phone 7"
    assert found.android is not None
    assert (found.android.cpu_c, found.android.skin_c, found.android.battery_c) == (46.25, 34.351, 35.7)
    doubts = list(snapshot.doubts(found, found))
    assert [words in doubt.words for doubt in doubts] == ([True] if words else [])
    assert [doubt.grave for doubt in doubts] == ([grave] if words else [])


def test_passes_that_do_not_agree_are_not_trusted(phone: Phone, tiny: Artifact) -> None:
    phone.measures(9000, first="echo x >> again; median=$((median * $(wc -c < again)))")
    (one,) = measured(phone, tiny).measurements
    assert one.environment is not None
    assert one.environment.passes == 3
    assert not one.trusted
    assert "no two passes agreed within 5 %" in one.warnings


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("echo 'ERROR: Unsupported operator' >&2; exit 1", "Unsupported operator"),
        ("kill -9 $$", "SIGKILL.*memory"),
        ("echo hello; exit 0", "gave no result"),
    ],
)
def test_a_program_that_fails_is_told(first: str, words: str, phone: Phone, tiny: Artifact) -> None:
    phone.measures(9000, first=first)
    with pytest.raises(DeviceError, match=words) as found:
        measured(phone, tiny)
    assert found.value.remedy


# ---------------------------------------------------------------------------------------------------- the state


def test_recorded_machines_are_read_the_same_way() -> None:
    text = (FIXTURES / "phone.txt").read_text() + "\n==> the end <==\n"
    found = snapshot.read(text, 3, fallback="a phone")
    assert (found.device, found.cores, found.affinity) == ("a phone", 8, (5, 6, 7))
    assert found.state.clusters[0].core == "Cortex-X1"
    assert found.android is None
    pi = snapshot.read((FIXTURES / "pi4_throttled.txt").read_text() + "\n==> the end <==\n", 1, fallback="x")
    assert (pi.device, pi.state.throttled) == ("Raspberry Pi 4 Model B Rev 1.4", 0x50005)


def test_temperatures_are_those_of_now() -> None:
    assert snapshot._hottest(THERMAL.format(status=0), 0) == 46.25
    assert snapshot._hottest("Temperature{mValue=99, mType=0, mName=CPU, mStatus=0}", 0) is None


# ------------------------------------------------------------------------------------------------ as a user does it


def test_a_build_is_measured_and_checked_on_a_phone(phone: Phone, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgecompile(
        "build", project.model, "--target", "android", "--on", "adb:PHONE123", "--benchmark-model", phone.program,
        "--budget-ms", "100", *QUICK, "--data", project.train, "--precision", "int8", "--eval-on-device", "2",
        "--validation-samples", "20", "--calibration-samples", "20", "--no-prune", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = bundle.read(out).manifest
    assert manifest.measurement.runtime == "benchmark_model"
    assert manifest.golden.devices[0].fault is None
    assert manifest.device_accuracy is not None
    assert manifest.device_accuracy.samples == 2
    done = edgecompile("bench", out, "--on", "adb:PHONE123", "--benchmark-model", phone.program, *QUICK, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["measurements"][0]["device"] == "Acme Phone 7"
    done = edgecompile("verify", out, "--on", "adb:PHONE123", "--benchmark-model", phone.program)
    assert done.code == 0, done.err


def test_ctrl_c_leaves_nothing_on_the_phone(phone: Phone, tiny: Artifact) -> None:
    phone.measures(9000, first="sleep 60")
    command = [sys.executable, "-m", "edgecompile", "bench", str(tiny.file), "--on", "adb:PHONE123"]
    child = subprocess.Popen([*command, "--benchmark-model", str(phone.program)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not list(phone.tmp.glob("edgecompile-*/benchmark_model")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--benchmark-model"),
        (("--benchmark-model", "/nowhere/benchmark_model"), "no such file"),
        (("--benchmark-model", "x", "--sustained", "1m"), "--sustained"),
    ],
)
def test_what_a_phone_cannot_do_is_refused(arguments: tuple[str, ...], word: str, phone: Phone, tiny: Artifact) -> None:
    done = edgecompile("bench", tiny.file, "--on", "adb:PHONE123", *arguments)
    assert done.code == 2
    assert word in done.err


def test_other_files_than_tflite_are_refused(phone: Phone, project: Project) -> None:
    done = edgecompile("bench", project.model, "--on", "adb:PHONE123", "--benchmark-model", phone.program)
    assert done.code == 2
    assert ".tflite" in done.err


def test_over_ssh_the_program_there_is_used_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Artifact
) -> None:
    from tests.sshd import serve
    from tests.test_device_setup import at_home

    phone = make_phone(tmp_path / "phone", monkeypatch)
    with serve(tmp_path / "sshd") as server:
        at_home(server, tmp_path / "home", monkeypatch)
        done = edgecompile("bench", tiny.file, "--on", server.where, "--benchmark-model", phone.program, *QUICK)
        assert done.code == 0, done.err
        assert "benchmark_model" in done.out
        done = edgecompile("bench", tiny.file, "--on", server.where, "--benchmark-model", "/nowhere/b", *QUICK)
        assert done.code == 4
        assert "cannot start /nowhere/b" in done.err
        assert server.left() == []
