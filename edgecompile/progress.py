"""How long work tells where it is: a protocol, so that what computes does not know who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Somebody who watches a build."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Announce a stage of ``total`` steps (unknown when ``None``); call the result with the steps done since."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know, but need not act on."""
        ...

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        ...


class Silent:
    """A `Progress` that nobody watches."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda steps: None

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""
