"""Where an address leads: the host, user, port, keys and jumps that ``~/.ssh/config`` gives for it."""

from __future__ import annotations

import getpass
import glob
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile.errors import InputError

if TYPE_CHECKING:
    import paramiko

#: Names that could be taken for an option, or hold what no host or user name holds, are refused.
_NAME = re.compile(r"[A-Za-z0-9_.:%][A-Za-z0-9_.:%@+-]*")
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_INCLUDE_DEPTH = 16
#: What only a shell understands in a ProxyCommand.
_SHELL_ONLY = re.compile(r"[|&;<>`$()*?~\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a person wrote: ``ssh://user@host:port`` or ``user@host:port``. ``None``: the configuration decides."""

    host: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One machine to log in to, all questions answered. ``name`` is what a person calls it.

    ``known_hosts`` are looked through for ``known_as``; ``jumps`` are gone through in order; ``proxy`` is a program
    and its arguments whose standard input and output lead to the machine.
    """

    name: str
    host: str
    user: str
    port: int
    known_as: str
    known_hosts: tuple[Path, ...]
    identities: tuple[Path, ...] = ()
    only_identities: bool = False
    jumps: tuple[Address, ...] = ()
    proxy: tuple[str, ...] = ()


def parse_address(text: str) -> Address:
    """Read ``ssh://user@host:port`` or ``user@host:port``. Raises `InputError`, which never repeats a password."""
    user, _, place = text.removeprefix("ssh://").removesuffix("/").rpartition("@")
    remedy = "write it as ssh://user@host or ssh://user@host:port; host may be a Host of ~/.ssh/config"
    if ":" in user:
        raise InputError(
            "the SSH address holds a password, which other users of this machine can read",
            remedy="leave it out: it is asked for on the terminal; better, set up a key with ssh-copy-id",
        )
    # What follows the colon may be a password, where the machine was forgotten.
    shown = f"{user}@" * bool(user) + place.partition(":")[0] + ":..." * (":" in place)
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:/]+)(?::(\d+))?", place)
    if found is None:
        raise InputError(f"{shown!r} is no SSH address", remedy=remedy)
    host, port = found[1] or found[3], found[2] or found[4]
    if not _NAME.fullmatch(host) or (user and not _NAME.fullmatch(user)):
        raise InputError(f"{shown!r} is no SSH address", remedy=remedy)
    if port is not None and not 0 < int(port) < 65536:
        raise InputError(f"{text!r}: {port} is no port number", remedy=remedy)
    return Address(host=host, user=user or None, port=int(port) if port else None)


def resolve(address: Address, *, identity: Path | None = None, known_hosts: Path | None = None) -> Endpoint:
    """Everything needed to log in at ``address``; what it says itself goes before the configuration.

    ``identity`` is a private key to use before all others, ``known_hosts`` a file to use in place of the user's own.
    Raises `InputError` when the configuration cannot be read.
    """
    options = _lookup(address)
    host = _text(options, "hostname") or address.host
    port = address.port or int(_text(options, "port") or 22)
    files = _paths(options, "userknownhostsfile") or (Path.home() / ".ssh/known_hosts",)
    name = f"{address.user}@{address.host}" if address.user else address.host
    lookup_name = _text(options, "hostkeyalias") or (host.lower() if port == 22 else f"[{host.lower()}]:{port}")
    return Endpoint(
        name=f"{name}:{address.port}" if address.port else name,
        host=host,
        user=address.user or _text(options, "user") or getpass.getuser(),
        port=port,
        known_as=lookup_name,
        known_hosts=(known_hosts,) if known_hosts else (*files, _SYSTEM_KNOWN_HOSTS),
        identities=((identity,) if identity else ()) + _paths(options, "identityfile"),
        only_identities=(_text(options, "identitiesonly") or "no").lower() == "yes",
        jumps=_jumps(_text(options, "proxyjump")),
        proxy=_proxy(_text(options, "proxycommand")),
    )


def _lookup(address: Address) -> paramiko.SSHConfigDict:
    import paramiko

    text = _expanded(Path.home() / ".ssh/config")
    # The user's file goes first, and the first value found counts, as with ssh itself.
    text += "\nHost *\n" + _expanded(_SYSTEM_CONFIG)
    try:
        return paramiko.SSHConfig.from_text(text).lookup(address.host)
    except (paramiko.SSHException, ValueError, ImportError) as exc:
        raise InputError(
            f"cannot read the SSH configuration for {address.host}: {exc}", remedy="correct ~/.ssh/config"
        ) from exc


def _expanded(path: Path, depth: int = 0) -> str:
    """A configuration file with its ``Include`` lines replaced by what they name: paramiko passes over these."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", remedy="make it readable") from exc
    out: list[str] = []
    for line in lines:
        found = re.match(r"\s*include[\s=]+(.+)", line, re.IGNORECASE)
        if found is None:
            out.append(line)
        elif depth < _INCLUDE_DEPTH:
            for pattern in shlex.split(found[1]):
                names = sorted(glob.glob(str(path.parent / Path(pattern).expanduser())))
                out += [_expanded(Path(name), depth + 1) for name in names]
    return "\n".join(out)


def _text(options: paramiko.SSHConfigDict, key: str) -> str | None:
    value = options.get(key)
    return str(value) if value is not None and str(value).lower() != "none" else None


def _paths(options: paramiko.SSHConfigDict, key: str) -> tuple[Path, ...]:
    value = options.get(key) or ()
    names = shlex.split(value) if isinstance(value, str) else [str(name).strip('"') for name in value]
    return tuple(Path(name).expanduser() for name in names)


def _jumps(text: str | None) -> tuple[Address, ...]:
    return tuple(parse_address(part.strip()) for part in text.split(",")) if text else ()


def _proxy(text: str | None) -> tuple[str, ...]:
    """A ProxyCommand as a program and its arguments. No shell is ever started for one."""
    if not text:
        return ()
    words = shlex.split(text)
    if words[:1] == ["exec"]:
        words = words[1:]
    if not words or _SHELL_ONLY.search(text):
        raise InputError(
            f"the ProxyCommand {text!r} of ~/.ssh/config needs a shell, which is not started for it",
            remedy="use ProxyJump, or a ProxyCommand that is one program with its arguments",
        )
    return tuple(words)


__all__ = ["Address", "Endpoint", "parse_address", "resolve"]
