"""What lies in one ``--data`` or ``--eval``, before it is split."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompile.calibration.samples import Source, TruthKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """All samples of one folder or file, in a fixed order: names, content hashes, labels.

    ``labels`` are indices into ``class_names`` (or plain class indices where there are no names). The
    ``hashes`` are over what is fed; ``truth_sha256`` is over boxes or masks. ``exclude`` are samples that take no part.
    """

    origin: str
    source: Source
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    truths: TruthKind = "none"
    notes: tuple[str, ...] = ()
    truth_sha256: str = ""
    exclude: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.names)
