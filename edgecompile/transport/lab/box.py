"""Emulated boards that run on this machine: starting, finding and ending them.

A board is an SSH server of its own in namespaces of its own (user, mount, process, host name), in which the kernel
gives programs for 64-bit Arm to QEMU. All of it belongs to the user who started it; nothing of the machine is changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgecompile.errors import DeviceError
from edgecompile.progress import Progress, Silent
from edgecompile.store import write_atomically
from edgecompile.transport.lab import cores, image
from edgecompile.transport.lab.cores import Core
from edgecompile.transport.lab.places import Deadline, locked, program, root

USER = "pi"
_TRIES = 3
_START_S = 60.0
_END_S = 5.0
_LOCK_S = 30.0
_LIST_S = 0.5
#: What `clean` removes: the lab's folder may be one of the user's, who named it.
_OURS = re.compile(r"(image|apt|plugin|wheels)-[0-9a-f]{12}(\.part)?")
#: Any program for 64-bit Arm, by the head of its file (linux/Documentation/admin-guide/binfmt-misc.rst); F: the
#: interpreter is opened now, so that it is found from within the board's file system.
_FORMAT = (
    r":edgecompile-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)
#: What the first process of the board does. Its last act is to become the SSH server, as a user without rights.
_INIT = """
read -r go || exit  # whoever started this is gone before it wrote down that it did
exec </dev/null
root=$1 box=$2 plugin=$3 name=$4 cpu=$5 format=$6
fail() { echo "edgecompile-fault $1"; exit 1; }
formats=/proc/sys/fs/binfmt_misc
cd /
mount --bind "$root" "$root" || fail mount
mount -t proc proc "$root/proc" || fail proc
if mount -t binfmt_misc binfmt_misc "$formats" 2>/dev/null; then
  printf "%s" "$format$root/usr/bin/qemu-aarch64:F" > "$formats/register" || fail binfmt
else
  grep -q "^enabled" "$formats/qemu-aarch64" 2>/dev/null && grep -q "^flags:.*F" "$formats/qemu-aarch64" || fail binfmt
fi
hostname "$name" 2>/dev/null
mount --bind "$box/cpuinfo" "$root/proc/cpuinfo" || fail mount
mount --bind "$box/sys" "$root/sys" || fail mount
mount --bind "$box/ssh" "$root/etc/ssh" || fail mount
mount --bind "$box/tmp" "$root/tmp" || fail mount
mount --bind "$box/home" "$root/home/pi" || fail mount
mount --bind "$plugin" "$root/opt/edgecompile" || fail mount
mount -t tmpfs -o mode=755 tmpfs "$root/run" || fail mount
mkdir "$root/run/sshd"
mount -t tmpfs -o mode=755 tmpfs "$root/dev" || fail mount
for one in null zero full random urandom tty; do
  : > "$root/dev/$one" && mount --bind "/dev/$one" "$root/dev/$one" || fail mount
done
mkdir -m 1777 "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
# Where the disk has other flags that are locked the file system stays writable, which does no harm.
mount -o remount,bind,ro "$root" 2>/dev/null
export QEMU_CPU="$cpu" PATH=/usr/bin:/usr/sbin:/bin:/sbin
unset LD_PRELOAD LD_LIBRARY_PATH
exec unshare --user --map-user=1000 --map-group=1000 --root="$root" --wd=/ \
  /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config
"""
_REMEDIES = {
    "binfmt": "programs for Arm cannot be given to an emulator of one's own here: that needs Linux 6.7 or later; on an "
    "older one, let the machine's owner do it for all: sudo apt install qemu-user-static binfmt-support",
    "proc": "this looks like a container that hides parts of /proc: start it with --security-opt "
    "systempaths=unconfined (Docker, Podman), or run outside of it",
    "mount": "file systems cannot be mounted in a user namespace here; in a container, start it with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined, or run outside of it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A running emulated board. ``started`` is when process ``pid`` was born, in clock ticks since boot.

    Boards of the same ``image`` count the same: it is the hash of the packages and wheels in their file system.
    """

    name: str
    core: str
    port: int
    pid: int
    started: int
    folder: Path
    image: str = ""

    @property
    def identity(self) -> Path:
        """The private key to log in with."""
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        """A file with the board's host key."""
        return self.folder / "known_hosts"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return _born(self.pid) == self.started


def up(board: str, *, progress: Progress | None = None, timeout_s: float = 900.0) -> Box:
    """The emulated board ``pi3``, ``pi4`` or ``pi5``, started if it does not run yet.

    The first time fetches about 100 MB from Debian's mirrors and PyPI (400 MB on the disk). Raises `InputError` for
    another name, `DeviceError` naming the program or the permission that is missing, or when time is up.
    """
    core = cores.find(board)
    watcher, deadline = progress or Silent(), Deadline(timeout_s)

    def tell() -> None:
        watcher.note(f"waiting for another process that starts or ends {board}")

    with locked(_lock(board), deadline, waiting=tell):
        found = _read(board)
        if found is not None and found.alive and _answers(found.port):
            return found
        _end(board)
        unshare = program("unshare", "util-linux", "puts the board into namespaces of its own")
        system = image.prepare(watcher, deadline)
        plugin = image.plugin_folder(deadline)
        with watcher.stage(f"Start {board} ({core.name}, emulated)"):
            return _start(unshare, core, system, plugin, deadline)


def boxes() -> tuple[Box, ...]:
    """The boards that run; what is left of others (after a restart of this machine, say) is removed.

    One that another process is just starting or ending is not among them.
    """
    found = []
    for board in cores.CORES:
        with contextlib.suppress(DeviceError), locked(_lock(board), Deadline(_LIST_S)):
            box = _read(board)
            if box is not None and box.alive:
                found.append(box)
            else:
                _end(board)
    return tuple(found)


def down(board: str) -> bool:
    """End a board and remove what lies in it; whether it ran. Raises `InputError` for a name that there is not."""
    cores.find(board)
    with locked(_lock(board), Deadline(_LOCK_S)):
        return _end(board)


def clean() -> int:
    """End all boards and remove the lab's folder; the bytes that were freed. The next start fetches all of it again."""
    size = disk_bytes()
    for board in cores.CORES:
        down(board)
    with locked(root() / "image.lock", Deadline(_LOCK_S)):
        for folder in root().iterdir():
            if _OURS.fullmatch(folder.name):
                shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            (root() / "boxes").rmdir()
    return size - disk_bytes()


def disk_bytes() -> int:
    """What the lab's folder takes on the disk."""
    total = 0
    for folder, _, files in os.walk(root()):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _lock(board: str) -> Path:
    return root() / f"{board}.lock"


# ----------------------------------------------------------------------------------------------------- starting


def _start(unshare: str, core: Core, system: Path, plugin: Path, deadline: Deadline) -> Box:
    folder = _folder(core.board)
    for attempt in range(_TRIES):
        port = _free_port()
        _furnish(folder, core, port)
        command = [unshare, "--user", "--map-root-user", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        command += ["sh", "-c", _INIT, "edgecompile-lab", str(system), str(folder), str(plugin)]
        command += [core.host_name, core.qemu, _FORMAT]
        box = _launch(command, core, port, folder, image.identity(system))
        try:
            if _await(box, deadline):
                return box
        except BaseException:
            _end(core.board)
            raise
        said = (folder / "log").read_text(errors="replace")
        _end(core.board)
        if "Address already in use" not in said or attempt == _TRIES - 1:
            raise _fault(core, said)
    raise AssertionError("not reached")


def _launch(command: list[str], core: Core, port: int, folder: Path, identity: str) -> Box:
    """Start a board, and write down that it runs before it does anything: none runs that nobody knows of."""
    reading, writing = os.pipe()
    try:
        pid = _spawn(command, folder / "log", reading)
        started = _born(pid) or 0
        box = Box(name=core.board, core=core.name, port=port, pid=pid, started=started, folder=folder, image=identity)
        write_atomically(folder / "state.json", msgspec.json.encode(box, enc_hook=str))
        os.write(writing, b"go\n")
    finally:
        os.close(reading)
        os.close(writing)
    return box


def _furnish(folder: Path, core: Core, port: int) -> None:
    """The board's own files: keys, the server's configuration, and what the kernel says about its processor."""
    import paramiko

    for name in ("ssh", "tmp", "home", "sys/devices/system/cpu"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "cpuinfo").write_text(core.cpuinfo)
    for name in ("possible", "present", "online"):
        (folder / "sys/devices/system/cpu" / name).write_text(f"{core.cpus}\n")
    host, user = paramiko.ECDSAKey.generate(bits=256), paramiko.ECDSAKey.generate(bits=256)
    for path, key in ((folder / "ssh/host_key", host), (folder / "user_key", user)):
        path.unlink(missing_ok=True)
        key.write_private_key_file(str(path))
    (folder / "ssh/authorized_keys").write_text(f"{user.get_name()} {user.get_base64()}\n")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host.get_name()} {host.get_base64()}\n")
    lines = (
        f"Port {port}", "ListenAddress 127.0.0.1", "HostKey /etc/ssh/host_key", "PidFile none", "UsePAM no",
        "AuthorizedKeysFile /etc/ssh/authorized_keys", "AuthenticationMethods publickey", "StrictModes no",
        "PasswordAuthentication no", "AllowTcpForwarding no", "X11Forwarding no", "PrintMotd no", "PrintLastLog no",
        "MaxStartups 100", "LoginGraceTime 60", "Subsystem sftp internal-sftp",
        f'SetEnv "QEMU_CPU={core.qemu}" "TMPDIR=/tmp" "PYTHONDONTWRITEBYTECODE=1"',
    )  # fmt: skip
    (folder / "ssh/sshd_config").write_text("\n".join(lines) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(command: list[str], log: Path, given: int) -> int:
    """Start a process that outlives this one, in a session of its own, and reads from the file descriptor ``given``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = [
        (os.POSIX_SPAWN_DUP2, given, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], command, {**os.environ, "LC_ALL": "C"}, file_actions=files, setsid=True)


def _await(box: Box, deadline: Deadline) -> bool:
    """Wait until the board's server answers; ``False`` when it ended instead."""
    end = time.monotonic() + min(_START_S, deadline.left_s)
    while not _answers(box.port):
        if not box.alive:
            return False
        if time.monotonic() > end:
            raise deadline.passed()
        time.sleep(0.05)
    return box.alive


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as found:
        return found.recv(4) == b"SSH-"
    return False


def _fault(core: Core, said: str) -> DeviceError:
    """Why a board did not start, from what was printed."""
    kind = next((line.split()[1] for line in said.splitlines() if line.startswith("edgecompile-fault ")), None)
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    forbidden = "unshare failed" in said or "Operation not permitted" in said or "Permission denied" in said
    if forbidden and os.geteuid() != 0 and restricted.is_file() and restricted.read_text().strip() == "1":
        kind, remedy = "userns", f"allow user namespaces with: sudo sysctl -w kernel.{restricted.name}=0"
    elif kind is None and "unshare failed" in said:
        remedy = "allow user namespaces: sudo sysctl -w user.max_user_namespaces=10000 (on Debian also "
        remedy += "kernel.unprivileged_userns_clone=1); in a container, start it with --security-opt seccomp=unconfined"
    else:
        remedy = _REMEDIES.get(kind or "", "see that the cache folder lies on a disk without noexec")
    last = " ".join(line for line in said.strip().splitlines() if not line.startswith("edgecompile-fault"))[-300:]
    return DeviceError(
        f"the emulated {core.board} did not start{f' ({kind})' if kind else ''}: {last or 'it said nothing'}",
        remedy=remedy,
    )


# ------------------------------------------------------------------------------------------- finding and ending


def _folder(board: str) -> Path:
    return root() / "boxes" / board


def _read(board: str) -> Box | None:
    try:
        return msgspec.json.decode((_folder(board) / "state.json").read_bytes(), type=Box, dec_hook=_decoded)
    except (OSError, msgspec.DecodeError):
        return None


def _decoded(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the program's name; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(pid: int) -> int | None:
    """When a process was born, in clock ticks since boot; ``None`` when there is none, or it has ended."""
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def _end(board: str) -> bool:
    """End what runs and remove the board's files; whether anything ran. The lock must be held."""
    box = _read(board)
    ran = box is not None and box.alive
    if box is not None and ran:
        # The first process of the board's process namespace takes all others with it. Its parent, which started it,
        # waits for it and then ends by itself: in this order no zombie is left where nobody else would reap it.
        for pids in (_children(box.pid), [box.pid]):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + _END_S
            while box.alive and time.monotonic() < end:
                time.sleep(0.02)
            if not box.alive:
                break
    if box is not None and not box.alive:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(box.pid, os.WNOHANG)  # where this very process started it
    shutil.rmtree(_folder(board), ignore_errors=True)
    return ran


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


__all__ = ["USER", "Box", "boxes", "clean", "disk_bytes", "down", "up"]
