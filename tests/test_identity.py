"""What a machine is known by: another machine, or another runtime there, is never taken for the one before."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgecompile.errors import DeviceError
from edgecompile.transport import Completed, identity
from edgecompile.transport.local import LocalTransport


class Told(LocalTransport):
    """This machine, with other words before what its commands say, or in place of them."""

    def __init__(self, *, greeting: str = "", machine: str | None = None, runtimes: str | None = None) -> None:
        super().__init__()
        self.greeting, self.machine, self.runtimes = greeting, machine, runtimes

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        done = super().run(argv, timeout_s=timeout_s)
        said = self.machine if argv[0] == "sh" else self.runtimes
        out = done.out if said is None else "".join(f"{identity._MARK} {line}\n" for line in said.splitlines())
        return Completed(code=done.code, out=self.greeting + out, err=done.err)


class WithoutPython(Told):
    @property
    def python(self) -> str:  # type: ignore[override]
        raise DeviceError("there is no Python")


def known_by(transport: LocalTransport) -> str:
    with transport:
        return identity.of(transport)


def test_a_machine_is_known_again() -> None:
    assert known_by(LocalTransport()) == known_by(LocalTransport())


def test_a_greeting_does_not_make_another_machine() -> None:
    assert known_by(Told(greeting="Last login: today\n")) == known_by(Told(greeting="Last login: yesterday\n"))


def test_another_board_is_another_machine() -> None:
    assert known_by(Told(machine="pi aarch64\n10000000aaaa")) != known_by(Told(machine="pi aarch64\n10000000bbbb"))


@pytest.mark.parametrize("after", ["ai-edge-litert 2.2.0", "ai-edge-litert 2.1.0\nonnxruntime 1.23.0", ""])
def test_another_runtime_makes_other_figures(after: str) -> None:
    assert known_by(Told(runtimes="ai-edge-litert 2.1.0")) != known_by(Told(runtimes=after))


def test_a_machine_without_python_is_known_by_what_it_is() -> None:
    assert known_by(WithoutPython()) == known_by(WithoutPython())
    assert known_by(WithoutPython(machine="one")) != known_by(WithoutPython(machine="two"))


def test_a_machine_that_tells_nothing_is_never_known_again() -> None:
    assert known_by(Told(machine="")) != known_by(Told(machine=""))


def test_another_program_there_makes_other_figures(tmp_path: Path) -> None:
    program = tmp_path / "benchmark_model"
    program.write_text("#!/bin/sh\necho one\n")
    program.chmod(0o700)
    with LocalTransport() as there:
        first = identity.of(there, program=str(program))
        program.write_text("#!/bin/sh\necho two\n")
        assert identity.of(there, program=str(program)) not in (first, identity.of(there))


def test_nothing_that_tells_one_machine_from_others_is_logged() -> None:
    with LocalTransport() as there:
        said = there.run(["sh", "-c", identity._MACHINE, "sh", ""], timeout_s=30).out
    machine = Path("/etc/machine-id")
    assert said.startswith(identity._MARK)
    assert not machine.exists() or not machine.read_text().strip() or machine.read_text().strip() not in said
    assert platform.node() not in said
