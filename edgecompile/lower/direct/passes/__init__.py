"""The passes, in their order."""

from __future__ import annotations

__all__: list[str] = []
