"""The text about a board that its owner can send around: what is in it, and above all what is not."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.engines import facts
from tests.jetson.standin import Standin, known_to_us
from tests.test_cli import edgecompile

SECRET = """\
NV Power Mode: 15W
serial number: 1422823049382
Serial: 00000000a1b2c3d4
eth0 link/ether 48:b0:2d:dc:cc:a5 brd ff:ff:ff:ff:ff:ff inet 192.168.1.20/24 inet6 fe80:0:0:0:4ab0:2dff:fedc:cca5
inet6 fe80::4ab0:2dff:fedc:cca5%eth0 inet6 2001:db8::7/64
UUID=0fc63daf-8483-4772-8e79-3d69d8477de4 marie@example.org /home/marie/models/trtexec
marie@orin-kitchen:~$ hostname orin-kitchen.local
"""


def test_what_names_somebody_is_taken_out() -> None:
    text = facts.scrubbed(SECRET, ("orin-kitchen.local", "orin-kitchen", "/home/marie", "marie"))
    for word in (
        "1422823049382",
        "a1b2c3d4",
        "48:b0",
        "192.168",
        "4ab0",
        "db8",
        "8483",
        "marie",
        "kitchen",
        "example.org",
    ):
        assert word not in text, word
    assert text.startswith("NV Power Mode: 15W\n")


def test_what_is_known_of_a_board_stays() -> None:
    known = "RAM 2982/7620MB cpu@49.5C gpu@50.5C tj@51.25C VDD_IN 4946mW/4710mW GR3D_FREQ 0%@[624]"
    known += " nvinfer1::face::add\nR36 REVISION: 4.3"
    assert facts.scrubbed(known) == known
    assert facts.scrubbed("libnvinfer10 10.3.0.30-1+cuda12.5", versions=True) == "libnvinfer10 10.3.0.30-1+cuda12.5"


@given(
    address=st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts))),
    hardware=st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":")),
    before=st.sampled_from(["", " ", "(", "=", "/", "inet "]),
    after=st.sampled_from(["", " ", ")", ",", "/24", "\n"]),
)
def test_no_address_is_left_wherever_it_stands(address: str, hardware: str, before: str, after: str) -> None:
    text = facts.scrubbed(f"x {before}{address}{after} y {before}{hardware}{after} z")
    assert address not in text
    assert hardware not in text


@given(name=st.text(string.ascii_lowercase, min_size=3, max_size=12), text=st.text(max_size=60))
def test_a_name_is_taken_out_and_control_characters_too(name: str, text: str) -> None:
    found = facts.scrubbed(f"{text} {name}: {name}@board", (name,))
    assert f" {name}:" not in found
    assert all(c.isprintable() or c == "\n" for c in found)


def test_the_command_writes_a_text_without_secrets(
    board: Callable[[str], Standin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = board("8.2.1")
    assert host.server is not None
    known_to_us(host.server, tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    done = edgecompile("device", "report", "--on", host.where, "--out", tmp_path / "facts.txt")
    assert done.code == 0, done.err
    assert "nothing was sent" in done.out
    text = (tmp_path / "facts.txt").read_text()
    for known in ("Jetson Xavier NX", "TensorRT v8201", "R32 (release)", "NAME=MAXN", "tj@51.25C", "oc3_event"):
        assert known in text, known
    secrets = ["1422823049382", os.uname().nodename, "127.0.0.1"]
    assert [word for word in secrets if word in text] == []


def test_the_command_needs_a_place_to_write(tmp_path: Path) -> None:
    done = edgecompile("device", "report", "--on", "local", "--out", tmp_path / "no" / "facts.txt")
    assert done.code == 2
    assert "no such folder" in done.err
