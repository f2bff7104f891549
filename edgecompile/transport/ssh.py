"""A machine that is reached by SSH. See `edgecompile.transport.shell` for what is done there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgecompile.errors import DeviceError
from edgecompile.transport.connection import Connection, Dropped
from edgecompile.transport.shell import Patience, ShellTransport
from edgecompile.transport.ssh_config import Endpoint, parse_address, resolve
from edgecompile.transport.ssh_connection import connect
from edgecompile.transport.ssh_keys import Authenticator


class SSHTransport(ShellTransport):
    """Runs on a machine reached by SSH. ``where`` is ``ssh://user@host:port``; ``host`` may stand in ~/.ssh/config.

    An `Endpoint` in place of the address is taken as it is, and no configuration is read.

    ``identity`` is a private key to try first, ``known_hosts`` takes the place of the user's file of known hosts,
    ``waiting`` is told once when another build has the machine. Raises `InputError` when ``where`` is no address.
    """

    def __init__(
        self,
        where: str | Endpoint,
        *,
        identity: Path | None = None,
        known_hosts: Path | None = None,
        patience: Patience | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(where, Endpoint):
            where = resolve(parse_address(where), identity=identity, known_hosts=known_hosts)
        self._endpoint: Endpoint = where
        self._logins: dict[Endpoint, Authenticator] = {}
        super().__init__(patience=patience, waiting=waiting)

    @property
    def description(self) -> str:
        """The address, as it was given."""
        return self._endpoint.name

    @property
    def address(self) -> str:
        """What ``--on`` takes to come here again."""
        return f"ssh://{self._endpoint.name}"

    def _new_connection(self) -> Connection:
        patience = self._patience
        return connect(self._endpoint, self._logins, timeout_s=patience.connect_s, silence_s=patience.silence_s)

    def _cannot_reach(self, exc: Dropped) -> DeviceError:
        point = self._endpoint
        return DeviceError(
            f"cannot reach {self.description} ({point.host} port {point.port}): {exc}",
            remedy="see that it is switched on, in the network, and runs an SSH server on that port",
        )


__all__ = ["Patience", "SSHTransport"]
