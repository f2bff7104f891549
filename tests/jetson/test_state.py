"""A board's power mode, clocks, temperatures and power, and what slowed it down."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.jetson.state import (
    BoardState,
    Clock,
    Clocks,
    PowerMode,
    Usage,
    parse_clocks,
    parse_over_current,
    parse_power_mode,
    parse_usage,
    throttled,
)

ORIN_NANO = (
    "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 182MB) CPU [97%@1984,95%@1984,95%@1984,"
    "91%@1984,88%@1984,93%@247] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 NVDEC 40%@115 NVJPG off NVJPG1 off "
    "VIC 31%@115 OFA off NVDLA0 off PVA0_FREQ off APE 174 cv0@63.031C cpu@65.562C soc2@64.156C soc0@63.031C "
    "cv1@62.937C gpu@63.5C tj@65.562C soc1@64.718C cv2@60.875C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW "
    "VDD_SOC 3923mW/3515mW\n"
)
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 "
    "CV0@-256C CPU@44.562C Tboard@32C SOC2@40.093C Tdiode@33C SOC0@41.093C CV1@-256C GPU@-256C tj@44.343C SOC1@41.25C "
    "CV2@-256C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW\n"
)
NANO = (
    "RAM 1409/3964MB (lfb 28x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [22%@518,67%@518,off,off] "
    "EMC_FREQ 0%@1600 GR3D_FREQ 12%@76 APE 25 PLL@28.5C CPU@32C PMIC@50C GPU@30.5C AO@39.5C thermal@31.25C "
    "POM_5V_IN 2003/2003 POM_5V_GPU 0/0 POM_5V_CPU 320/320\n"
)
#: Without root, an old board shows no frequencies.
NANO_USER = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C POM_5V_IN 900/943 "
    "POM_5V_GPU 0/0 POM_5V_CPU 123/123\n"
)
TX1_OLD = (
    "RAM 3607/3983MB (lfb 47x4MB) SWAP 873/8192MB (cached 281MB) cpu [17%,11%,65%,0%]@1734 EMC 1%@1600 APE 25 "
    "GR3D 39%@76\n"
)
LINES = (ORIN_NANO, AGX_ORIN, NANO, NANO_USER, TX1_OLD)

CLOCKS = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu1:  Online=0 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1190400 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=408000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon2_pwm1=73
NV Power Mode: 15W
"""
TX1_CLOCKS = """\
SOC family:tegra210  Machine:jetson_tx1
Online CPUs: 0-3
CPU Cluster Switching: Disabled
cpu0: Gonvernor=interactive MinFreq=1734000 MaxFreq=1734000 CurrentFreq=1734000
GPU MinFreq=998400000 MaxFreq=998400000 CurrentFreq=998400000
EMC MinFreq=12750000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
Fan: speed=255
"""
COUNTERS = """\
/sys/class/hwmon/hwmon3/oc1_event_cnt:0
/sys/class/hwmon/hwmon3/oc2_event_cnt:15
/sys/class/hwmon/hwmon3/oc3_event_cnt:37
"""


# ------------------------------------------------------------------------------------------------- mode, clocks


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: 5W\n1\n", PowerMode(name="5W", number=1)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode(name="MODE_15W_6CORE", number=2)),
        ("NVPM WARN: fan mode is not set!\r\nNV Power Mode: MAXN\r\n0\r\n", PowerMode(name="MAXN", number=0)),
        ("NV Power Mode: MAXN\n\x1b[0mdone\n", PowerMode(name="MAXN", number=None)),
        ("NV Power Mode: MAXN_SU", None),
        ("nvpmodel: command not found\n", None),
        ("", None),
    ],
)
def test_power_mode(text: str, mode: PowerMode | None) -> None:
    assert parse_power_mode(text) == mode


def test_a_mode_cut_anywhere_gives_no_other_mode() -> None:
    text = "NV Power Mode: MODE_30W_ALL\n12\n"
    found = [parse_power_mode(text[:at]) for at in range(len(text))]
    assert {f.name for f in found if f} == {"MODE_30W_ALL"}
    assert {f.number for f in found if f} == {None}


def test_clocks_of_an_orin() -> None:
    clocks = parse_clocks(CLOCKS)
    assert clocks is not None
    assert clocks.gpu == Clock(min_hz=306_000_000, max_hz=918_000_000, current_hz=408_000_000)
    assert clocks.emc == Clock(min_hz=204_000_000, max_hz=3_199_000_000, current_hz=2_133_000_000)
    assert clocks.cpus == (Clock(min_hz=729_600, max_hz=1_344_000, current_hz=729_600),)
    assert not clocks.locked


def test_clocks_are_locked_when_the_gpu_cannot_move() -> None:
    clocks = parse_clocks(TX1_CLOCKS)
    assert clocks is not None
    assert clocks.locked
    assert len(clocks.cpus) == 1
    moved = parse_clocks(TX1_CLOCKS.replace("GPU MinFreq=998400000", "GPU MinFreq=76800000"))
    assert moved is not None
    assert not moved.locked


def test_what_shows_no_clocks_gives_none() -> None:
    assert parse_clocks("") is None
    assert parse_clocks("Error: Need to be root\n") is None
    assert not Clocks(gpu=None).locked


@pytest.mark.parametrize("text", [CLOCKS, TX1_CLOCKS])
def test_clocks_cut_anywhere(text: str) -> None:
    whole = parse_clocks(text)
    assert whole is not None
    for at in range(len(text)):
        cut = parse_clocks(text[:at])
        if cut is not None:
            assert cut.gpu in (None, whole.gpu)
            assert cut.emc in (None, whole.emc)
            assert cut.cpus == whole.cpus[: len(cut.cpus)]


def test_clocks_shown_twice_and_differently_are_none() -> None:
    clocks = parse_clocks(CLOCKS + TX1_CLOCKS)
    assert clocks is not None
    assert (clocks.gpu, clocks.emc) == (None, None)
    assert parse_clocks(CLOCKS * 2) is not None


def test_a_line_that_goes_on_is_another_line() -> None:
    assert parse_clocks("GPU MinFreq=1 MaxFreq=1 CurrentFreq=1garbage\n") is None
    assert parse_clocks("cpu0: Online=1 Governor=x MinFreq=1 MaxFreq=1 CurrentFreq=1x\n") is None
    assert parse_clocks("GPU MinFreq=1 MaxFreq=1 CurrentFreq=1\n") is not None
    assert parse_over_current("/sys/oc1_event_cnt:1x\n") == {}


# --------------------------------------------------------------------------------------------------- tegrastats


def test_an_orin_nano() -> None:
    assert parse_usage(ORIN_NANO) == Usage(
        ram_used_mb=6982, ram_total_mb=7620, swap_used_mb=2640, swap_total_mb=16384,
        cpu_percent=(97, 95, 95, 91, 88, 93), gpu_percent=84, gpu_mhz=713, emc_percent=18,
        temperatures_c={"cv0": 63.031, "cpu": 65.562, "soc2": 64.156, "soc0": 63.031, "cv1": 62.937, "gpu": 63.5,
                        "tj": 65.562, "soc1": 64.718, "cv2": 60.875},
        power_mw={"VDD_IN": 17946, "VDD_CPU_GPU_CV": 8896, "VDD_SOC": 3923},
    )  # fmt: skip


def test_an_agx_orin_has_sensors_without_power() -> None:
    usage = parse_usage(AGX_ORIN)
    assert usage is not None
    assert (usage.gpu_percent, usage.gpu_mhz, len(usage.cpu_percent)) == (0, 0, 12)
    assert set(usage.temperatures_c) == {"CPU", "Tboard", "SOC2", "Tdiode", "SOC0", "tj", "SOC1"}
    assert usage.junction_c == 44.343
    assert usage.power_mw == {"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025, "VDDQ_VDD2_1V8AO": 301}


def test_older_boards() -> None:
    nano = parse_usage(NANO)
    assert nano is not None
    assert (nano.ram_used_mb, nano.swap_used_mb, nano.swap_total_mb) == (1409, 0, 1982)
    assert (nano.cpu_percent, nano.gpu_percent, nano.gpu_mhz) == ((22, 67, None, None), 12, 76)
    assert nano.power_mw == {"POM_5V_IN": 2003, "POM_5V_GPU": 0, "POM_5V_CPU": 320}
    assert nano.junction_c == 32
    user = parse_usage(NANO_USER)
    assert user is not None
    assert (user.gpu_percent, user.gpu_mhz, user.emc_percent) == (0, None, 0)
    tx1 = parse_usage(TX1_OLD)
    assert tx1 is not None
    assert (tx1.cpu_percent, tx1.gpu_percent, tx1.emc_percent, tx1.junction_c) == ((17, 11, 65, 0), 39, 1, None)


def test_the_last_line_counts_unless_it_is_cut() -> None:
    assert parse_usage(ORIN_NANO + NANO) == parse_usage(NANO)
    assert parse_usage(ORIN_NANO + NANO[:-30]) == parse_usage(ORIN_NANO)
    assert parse_usage("tegrastats: command not found\n") is None


def test_a_core_that_cannot_be_read_gives_no_cores() -> None:
    for core in ("22", "22%@", "x", ""):
        usage = parse_usage(NANO.replace("22%@518", core))
        assert usage is not None
        assert usage.cpu_percent == ()
        assert usage.gpu_mhz == 76


def right_or_none(found: Usage | None, whole: Usage) -> None:
    for field in fields(Usage) if found is not None else ():
        value, right = getattr(found, field.name), getattr(whole, field.name)
        if isinstance(right, dict):
            assert value.items() <= right.items(), field.name
        else:
            assert value in (None, (), right), field.name


@pytest.mark.parametrize("line", LINES)
def test_a_line_cut_anywhere(line: str) -> None:
    whole = parse_usage(line)
    assert whole is not None
    for at in range(len(line)):
        right_or_none(parse_usage(line[:at]), whole)


@settings(max_examples=300)
@given(st.sampled_from(LINES), st.data(), st.sampled_from(["", "x", "[E] error 12", "7", "APE 25", " "]))
def test_a_line_that_another_breaks(line: str, data: st.DataObject, noise: str) -> None:
    at = data.draw(st.integers(0, len(line)))
    whole = parse_usage(line)
    assert whole is not None
    right_or_none(parse_usage(line[:at] + "\n" + noise + "\n" + line[at:]), whole)


@pytest.mark.parametrize("line", LINES)
def test_colours_and_line_ends_change_nothing(line: str) -> None:
    assert parse_usage(line.replace("\n", "\r\n")) == parse_usage(line)
    assert parse_usage("\x1b[1m" + line.replace("MB", "M\x1b[0mB")) == parse_usage(line)


@settings(max_examples=200)
@given(st.text())
def test_any_text_may_come(text: str) -> None:
    parse_usage(text)
    parse_usage("RAM 1/2MB " + text)
    assert parse_clocks(text) is None
    assert parse_over_current(text) == {}
    assert parse_power_mode(text) is None


# --------------------------------------------------------------------------------------------------- throttling


def test_over_current_counters() -> None:
    assert parse_over_current(COUNTERS) == {"oc1": 0, "oc2": 15, "oc3": 37}
    assert parse_over_current("grep: /sys/class/hwmon/hwmon*/oc*_event_cnt: No such file or directory\n") == {}
    found = [parse_over_current(COUNTERS[:at]) for at in range(len(COUNTERS))]
    assert all(f.items() <= {"oc1": 0, "oc2": 15, "oc3": 37}.items() for f in found)


def state(current: int = 918, *, top: int = 918, low: int | None = None, tj: float = 60, **more: object) -> BoardState:
    gpu = Clock(min_hz=(top if low is None else low) * 10**6, max_hz=top * 10**6, current_hz=current * 10**6)
    values: dict[str, object] = {"over_current": {"oc1": 0, "oc2": 15, "oc3": 37}}
    return BoardState(clocks=Clocks(gpu=gpu), usage=Usage(temperatures_c={"tj": tj}), **(values | more))  # type: ignore[arg-type]


def test_nothing_is_slowed_without_a_reason() -> None:
    assert throttled(state(), state()) == ()
    assert throttled(BoardState(), BoardState()) == ()
    assert throttled(state(), BoardState()) == ()
    assert throttled(BoardState(), state()) == ()
    assert throttled(state(306, low=306), state(918, low=306)) == (), "a free clock may move"


def test_over_current_is_counted_between_the_two() -> None:
    after = state(over_current={"oc1": 0, "oc2": 15, "oc3": 40})
    assert throttled(state(), after) == ("the current was over its limit for moments (3 times)",)
    assert throttled(after, state(over_current={"oc3": 0})) == (), "the board has started anew"
    assert throttled(state(over_current={}), after) == ()


def test_a_locked_gpu_that_runs_slower() -> None:
    assert throttled(state(), state(408)) == ("the GPU ran at 408 MHz, and was locked at 918 MHz",)
    assert throttled(state(408), state()) == ("the GPU ran at 408 MHz, and was locked at 918 MHz",)
    assert throttled(state(), state(915)) == ()


def test_a_lock_that_is_gone() -> None:
    expected = ("the GPU's clock was locked before the measurement, and no longer or elsewhere after it",)
    assert throttled(state(), state(low=306)) == expected
    assert throttled(state(), state(624, top=624)) == expected


def test_a_hot_chip() -> None:
    assert throttled(state(), state(tj=98.5)) == ("the chip was 98.5 C hot after the measurement (97 C slows it)",)
    assert len(throttled(state(tj=97), state(tj=99))) == 2
    assert throttled(state(), state(tj=96.9)) == ()


def test_a_changed_power_mode() -> None:
    modes = [PowerMode(name=name, number=None) for name in ("15W", "MAXN")]
    assert throttled(state(power_mode=modes[0]), state(power_mode=modes[1])) == (
        "the power mode changed from 15W to MAXN",
    )
