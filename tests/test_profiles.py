"""Device profiles: the built-in ones, aliases, strict keys, and how a machine is recognised."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecompile import content, profiles
from edgecompile.errors import InputError
from edgecompile.jetson import versions
from edgecompile.profiles import Machine
from edgecompile.types import to_builtins

BUILT_IN = {
    "raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "android-mid-range",
    "android-high-end", "pixel", "pixel-2", "pixel-3", "pixel-3a", "pixel-4", "jetson-nano", "jetson-xavier-nx",
    "jetson-orin-nano", "jetson-agx-orin", "x86-avx2", "x86-avx512-vnni",
}  # fmt: skip
PI4 = content.builtin_root("device_profiles") / "raspberry-pi-4.toml"


def machine(architecture: str = "aarch64", board: str = "", flags: str = "") -> Machine:
    return Machine(architecture=architecture, cpu_flags=frozenset(flags.split()), board=board)


def refused(path: Path, *words: str) -> InputError:
    with pytest.raises(InputError) as caught:
        profiles.load(str(path))
    for word in (str(path), *words):
        assert word in str(caught.value)
    return caught.value


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the Raspberry Pi 4's profile with one text replaced."""
    text = PI4.read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


# ------------------------------------------------------------------------------------------------------- built in


def test_every_device_is_there_and_complete() -> None:
    found = {profile.name: profile for profile in profiles.all_profiles()}
    assert set(found) == BUILT_IN
    for profile in found.values():
        assert profile.origin == "built-in"
        assert profile.description
        for runtime in profile.runtimes:
            for precision in runtime.precisions:
                table = profile.costs(runtime.name, precision)
                assert table is not None
                assert table.fit.extrapolated or table.fit.rows >= 6
                assert table.fit.basis


def test_what_a_profile_says() -> None:
    pi = profiles.load("raspberry-pi-4")
    assert (pi.architecture, pi.core, pi.cores, pi.threads) == ("aarch64", "cortex-a72", 4, 4)
    assert pi.memory_bytes == 4 << 30
    assert pi.default_budget_ms == 33
    assert [r.name for r in pi.runtimes] == ["tflite"]
    assert pi.runtimes[0].tile.of("int8") == 8
    assert profiles.load("raspberry-pi-5").runtimes[0].tile.of("int8") == 16
    assert profiles.load("raspberry-pi-zero-2w").default_budget_ms == 100
    assert profiles.load("x86-avx2").int8_saturates
    assert not profiles.load("x86-avx512-vnni").int8_saturates


def test_the_first_jetson_nano_has_no_int8() -> None:
    nano, orin = profiles.load("jetson-nano"), profiles.load("jetson-orin-nano")
    assert nano.costs("tensorrt", "int8") is None
    assert orin.costs("tensorrt", "int8") is not None
    assert orin.runtime("tensorrt") == orin.runtimes[0]
    assert orin.runtime("tflite") is None


@pytest.mark.parametrize(
    ("name", "memory", "newest", "precisions"),
    [
        ("jetson-nano", 4, "8.2.0", {"fp16", "fp32"}),
        ("xavier-nx", 8, "8.5.0", {"fp16", "int8", "fp32"}),
        ("orin-nano", 8, "10.16.0", {"fp16", "int8", "fp32"}),
        ("agx-orin", 64, "10.16.0", {"fp16", "int8", "fp32"}),
    ],
)
def test_what_is_known_of_a_jetson(name: str, memory: int, newest: str, precisions: set[str]) -> None:
    found = profiles.load(name)
    support = found.runtime("tensorrt")
    assert support is not None
    assert found.memory_bytes == memory << 30
    assert str(versions.newest_of(found.jetpacks)) == newest
    assert set(support.precisions) == precisions
    assert support.tile.of("fp16") == 8
    for precision in support.precisions:
        costs = found.costs("tensorrt", precision)
        assert costs is not None
        # What launching a kernel takes, which no thinner layer gets under: about 30 microseconds.
        assert 20 <= costs.operator_us <= 40
    if "int8" in precisions:
        assert support.tile.of("int8") == 32


def test_profiles_are_plain_json() -> None:
    document = to_builtins(profiles.load("pi4"))
    assert document["cost"]["tflite"]["fp32"]["fit"]["runtime"] == "xnnpack"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("pizero2", "raspberry-pi-zero-2w"), ("pi3", "raspberry-pi-3"), ("pi4", "raspberry-pi-4"),
        ("pi5", "raspberry-pi-5"), ("android", "android-mid-range"), ("jetson", "jetson-orin-nano"),
        ("xavier-nx", "jetson-xavier-nx"), ("orin-nano", "jetson-orin-nano"), ("agx-orin", "jetson-agx-orin"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert profiles.load(alias).name == name


def test_x86_picks_by_the_flags_of_the_cpu() -> None:
    assert profiles.aliases_here(machine("x86_64", flags="avx2 fma"))["x86"] == "x86-avx2"
    assert profiles.aliases_here(machine("x86_64", flags="avx2 fma avx512f avx512_vnni"))["x86"] == "x86-avx512-vnni"
    assert profiles.load("x86").name == profiles.aliases_here()["x86"]


def test_an_unknown_target_suggests_the_nearest_with_aliases() -> None:
    for wrong, near in (("pi44", "pi4"), ("raspbery-pi-5", "raspberry-pi-5"), ("jetsn", "jetson"), ("PI5", "pi5")):
        with pytest.raises(InputError, match=f"did you mean '{near}'"):
            profiles.load(wrong)


# ----------------------------------------------------------------------------------------------------- own profiles


def test_an_own_profile_by_name_and_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "device_profiles"
    folder.mkdir()
    (folder / "my-board.toml").write_text(PI4.read_text())
    assert profiles.load("my-board", content_dir=tmp_path).origin == "--content-dir"
    assert profiles.load(str(folder / "my-board.toml")).origin == "file"
    assert "my-board" in {p.name for p in profiles.all_profiles(content_dir=tmp_path)}


def test_an_own_profile_shadows_an_alias(tmp_path: Path) -> None:
    folder = tmp_path / "device_profiles"
    folder.mkdir()
    (folder / "pi4.toml").write_text(PI4.read_text().replace("Raspberry Pi 4 Model B", "mine", 1))
    assert profiles.load("pi4", content_dir=tmp_path).description == "mine"


# ------------------------------------------------------------------------------------------------------ strict keys


def all_keys(table: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key of every table."""
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        if isinstance(key, str):
            yield (*where, key)
        yield from all_keys(value, (*where, key))


@pytest.mark.parametrize("keys", list(all_keys(tomllib.loads(PI4.read_text()))), ids=str)
def test_a_misspelt_key_is_named_with_the_nearest(keys: tuple[str | int, ...], tmp_path: Path) -> None:
    document = copy.deepcopy(tomllib.loads(PI4.read_text()))
    table: Any = document
    for key in keys[:-1]:
        table = table[key]
    right = str(keys[-1])
    table[right + "z"] = table.pop(right)
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(document))
    dotted = ".".join(str(k) for k in keys[:-1] if isinstance(k, str))
    prefix = f"{dotted}." if dotted else ""
    refused(path, f"unknown key '{prefix}{right}z'", f"did you mean '{prefix}{right}'?")


def as_toml(document: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {inline(value)}" for key, value in document.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(inline(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cores = 4\n", 'cores = "four"\n', ("int", "$.cores")),
        ("cores = 4\n", "", ("cores",)),
        ("cores = 4\n", "cores = 0\n", ("cores must be above 0",)),
        ("threads = 4\n", "threads = 5\n", ("threads must be between 1 and cores",)),
        ("memory_bytes = 4_294_967_296\n", "memory_bytes = -1\n", ("memory_bytes must be above 0",)),
        ('"aarch64"', '"arm"', ("arm", "architecture")),
        ('name = "tflite"', 'name = "tflight"', ("tflight",)),
        ('["int8", "fp32", "fp16"]', '["int4"]', ("int4",)),
        ('["int8", "fp32", "fp16"]', "[]", ("tflite has no precisions",)),
        ("int8 = 8 }", "int8 = 0 }", ("tiles of tflite must be above 0",)),
        ("cores = 4\n", 'cores = 4\nname = "x"\n', ("unknown key 'name'",)),
        ("cores = 4\n", "cores = 4\ndefault_budget_ms = 0\n", ("default_budget_ms must be above 0",)),
        ('name = "tflite"', 'name = "onnxruntime"', ("[cost.onnxruntime.int8] is missing",)),
        ("memory_scaling = 0.31", "memory_scaling = 1.5", ("memory_scaling must be between 0 and 1",)),
        ("bandwidth_gb_s = 3.", "bandwidth_gb_s = -3.", ("bandwidth_gb_s must be above 0",)),
        ("interval_factor = 1.", "interval_factor = 0.", ("interval_factor must be above 1",)),
        ("cores = 4\n", "cores = \n", ("not a device profile",)),
    ],
)  # fmt: skip
def test_a_faulty_value_is_named(old: str, new: str, words: tuple[str, ...], tmp_path: Path) -> None:
    assert refused(changed(tmp_path, old, new), *words).exit_code == 2


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    refused(path, "not a device profile")


# ------------------------------------------------------------------------------------------------------- this machine


def test_boards_are_recognised_by_their_device_tree() -> None:
    pi4, zero = profiles.load("pi4"), profiles.load("pizero2")
    assert pi4.matches(machine(board="Raspberry Pi 4 Model B Rev 1.4"))
    assert not pi4.matches(machine(board="Raspberry Pi 5 Model B Rev 1.0"))
    assert not pi4.matches(machine("x86_64", board="Raspberry Pi 4 Model B Rev 1.4"))
    assert zero.matches(machine(board="Raspberry Pi Zero 2 W Rev 1.0"))
    nano, orin = profiles.load("jetson-nano"), profiles.load("jetson-orin-nano")
    board = machine(board="NVIDIA Jetson Orin Nano Developer Kit")
    assert orin.matches(board)
    assert not nano.matches(board)


def test_a_phone_is_never_this_machine() -> None:
    assert not profiles.load("pixel-4").matches(machine(flags="asimd asimddp"))


def test_x86_is_recognised_by_its_flags() -> None:
    avx2, vnni = profiles.load("x86-avx2"), profiles.load("x86-avx512-vnni")
    old = machine("x86_64", flags="sse4_1 avx2 fma")
    new = machine("x86_64", flags="sse4_1 avx2 fma avx512f avx512_vnni")
    assert [p.matches(m) for p in (avx2, vnni) for m in (old, new)] == [True, False, False, True]
    assert not avx2.matches(machine("x86_64", flags="sse4_1"))


def test_exactly_one_x86_profile_is_this_machine() -> None:
    here = profiles.this_machine()
    if here.architecture != "x86_64" or "avx2" not in here.cpu_flags:
        pytest.skip("this machine is no x86-64 with AVX2")
    assert [p.name for p in profiles.all_profiles() if p.matches_this_machine()] == [profiles.load("x86").name]


def test_reading_proc(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5 Model B\n"
    )
    found = profiles.this_machine(tmp_path)
    assert found.cpu_flags == {"fp", "asimd", "asimddp"}
    assert found.board == "Raspberry Pi 5 Model B"
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_text("Raspberry Pi 4 Model B Rev 1.1\0")
    assert profiles.this_machine(tmp_path).board == "Raspberry Pi 4 Model B Rev 1.1"
    assert profiles.this_machine(tmp_path / "nothing").cpu_flags == frozenset()


def test_use_cases() -> None:
    assert profiles.USE_CASES == {"video": 33, "voice": 100, "search": 50, "recommendation": 100}
