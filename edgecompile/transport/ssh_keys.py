"""Who is there, and who we are: the check of host keys, and logging in. Secrets stay in memory and are never shown."""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgecompile.errors import DeviceError
from edgecompile.transport.ssh_config import Endpoint

if TYPE_CHECKING:
    import paramiko

Login: TypeAlias = "Callable[[paramiko.Transport], None]"
_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")


def ask(prompt: str) -> str | None:
    """A secret typed on the terminal, unseen; ``None`` where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return getpass.getpass(prompt, stream=sys.stderr)


# ---------------------------------------------------------------------------------------------------- host keys


def fingerprint(key: paramiko.PKey) -> str:
    """``SHA256:...`` as ssh prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def known_keys(endpoint: Endpoint) -> tuple[list[paramiko.PKey], list[paramiko.PKey]]:
    """The keys that the ``known_hosts`` files give for the machine, and those that they revoke."""
    from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

    good, revoked = HostKeys(), HostKeys()
    for path in endpoint.known_hosts:
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                table = revoked if line.startswith("@revoked") else good
                with contextlib.suppress(InvalidHostKey):
                    entry = HostKeyEntry.from_line(line.removeprefix("@revoked").strip())
                    if entry is not None and entry.key is not None:
                        table._entries.append(entry)
    return _of(good, endpoint.known_as), _of(revoked, endpoint.known_as)


def _of(table: paramiko.HostKeys, name: str) -> list[paramiko.PKey]:
    return [entry.key for entry in table._entries if table._hostname_matches(name, entry)]


def prefer_known_types(transport: paramiko.Transport, known: list[paramiko.PKey]) -> None:
    """Ask the machine for a key of a type that is known; otherwise it would show another, which cannot be compared."""
    names = {key.get_name() for key in known}
    options = transport.get_security_options()
    first = [t for t in options.key_types if t in names or (t.startswith("rsa-") and "ssh-rsa" in names)]
    options.key_types = (*first, *(t for t in options.key_types if t not in first))


def check_host_key(endpoint: Endpoint, key: paramiko.PKey) -> None:
    """Raise `DeviceError` unless ``key`` is known for the machine. Nothing is ever accepted or written here."""
    known, revoked = known_keys(endpoint)
    shown = f"{key.get_name()} {fingerprint(key)}"
    if key in revoked:
        raise DeviceError(
            f"REFUSED: {endpoint.name} shows a host key that is marked as revoked: {shown}",
            remedy="somebody may be pretending to be the machine; give it a new host key",
        )
    if key in known:
        return
    if known:
        raise DeviceError(
            f"REFUSED: THE HOST KEY OF {endpoint.name} HAS CHANGED. It shows {shown}, but known is "
            + ", ".join(f"{k.get_name()} {fingerprint(k)}" for k in known),
            remedy="either the machine was set up anew, or somebody stands between you and it. Compare the fingerprint "
            "at the machine itself (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub); only if it is the same, forget "
            f"the old key with: ssh-keygen -R '{endpoint.known_as}'",
        )
    port = f"-p {endpoint.port} " if endpoint.port != 22 else ""
    raise DeviceError(
        f"the host key of {endpoint.name} is not known: {shown}",
        remedy=f"compare the fingerprint at the machine itself, then accept it once with: ssh {port}"
        f"{endpoint.user}@{endpoint.host} (or: ssh-keyscan {port}{endpoint.host} >> {endpoint.known_hosts[0]})",
    )


# ------------------------------------------------------------------------------------------------------ logging in


class Authenticator:
    """Logs in at one endpoint; what worked is remembered for the next connection, so that nobody is asked twice."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._worked: Login | None = None
        self._tried: list[str] = []

    def __call__(self, transport: paramiko.Transport) -> None:
        """Log in. Raises `DeviceError` naming what was tried, or paramiko's errors when the connection is lost."""
        import paramiko

        if self._worked is not None:
            self._worked(transport)
            return
        self._tried = []
        for login in self._logins():
            try:
                login(transport)
            except (paramiko.AuthenticationException, paramiko.SSHException, EOFError) as exc:
                if not transport.is_active():
                    raise self._refused("it closed the connection") from exc
            else:
                if transport.is_authenticated():
                    self._worked = login
                    return
        raise self._refused(None)

    def _logins(self) -> Iterator[Login]:
        """The ways in, the cheap ones first; a secret is asked for when its turn comes."""
        locked: list[Path] = []
        for path in self._endpoint.identities:
            yield from self._with_file(path, locked)
        yield from self._with_agent()
        if not (self._endpoint.identities and self._endpoint.only_identities):
            for name in _DEFAULT_IDENTITIES:
                yield from self._with_file(Path.home() / ".ssh" / name, locked)
        for path in locked:
            yield from self._with_locked_file(path)
        yield from self._with_password()

    def _with_file(self, path: Path, locked: list[Path]) -> Iterator[Login]:
        import paramiko

        if not path.is_file():
            return
        try:
            key = load_key(path, None)
        except paramiko.PasswordRequiredException:
            locked.append(path)
            return
        if key is None:
            self._tried.append(f"the key {path} (which cannot be read)")
            return
        self._tried.append(f"the key {path}")
        yield self._by_key(key)

    def _with_locked_file(self, path: Path) -> Iterator[Login]:
        passphrase = ask(f"Passphrase of {path}: ")
        if passphrase is None:
            self._tried.append(f"the key {path} (which needs a passphrase, and there is no terminal to ask on)")
            return
        key = load_key(path, passphrase)
        if key is None:
            self._tried.append(f"the key {path} (the passphrase was wrong)")
            return
        self._tried.append(f"the key {path}")
        yield self._by_key(key)

    def _with_agent(self) -> Iterator[Login]:
        import paramiko

        if self._endpoint.only_identities:
            return
        try:
            agent = paramiko.Agent()
        except (paramiko.SSHException, OSError):
            return
        try:
            for key in agent.get_keys():
                self._tried.append(f"the agent's key {key.comment or fingerprint(key)}")
                yield self._by_key(key)
        finally:
            agent.close()

    def _with_password(self) -> Iterator[Login]:
        user, name = self._endpoint.user, self._endpoint.name
        password = ask(f"Password of {user} on {name}: ")
        if password is None:
            return
        self._tried.append("a password")
        secret = password

        def login(transport: paramiko.Transport) -> None:
            transport.auth_password(user, secret)

        yield login

    def _by_key(self, key: paramiko.PKey) -> Login:
        def login(transport: paramiko.Transport) -> None:
            transport.auth_publickey(self._endpoint.user, key)

        return login

    def _refused(self, why: str | None) -> DeviceError:
        tried = "; tried: " + ", ".join(self._tried) if self._tried else "; there was no key to try"
        point = self._endpoint
        port = f"-p {point.port} " if point.port != 22 else ""
        return DeviceError(
            f"{point.name} does not let {point.user} log in{f' ({why})' if why else ''}{tried}",
            remedy=f"put your key there with: ssh-copy-id {port}{point.user}@{point.host} (or name one with "
            "IdentityFile in ~/.ssh/config, or add it to the agent with ssh-add)",
        )


def load_key(path: Path, passphrase: str | None) -> paramiko.PKey | None:
    """A private key, or ``None`` if it is none that can be read (with a passphrase: if that is wrong).

    Raises ``paramiko.PasswordRequiredException`` when it is encrypted and no passphrase is given.
    """
    import paramiko

    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key_file(str(path), password=passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, OSError):
            continue
    return None


__all__ = ["Authenticator", "ask", "check_host_key", "fingerprint", "known_keys", "load_key", "prefer_known_types"]
