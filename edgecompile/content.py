"""Finds named content: what came with edgecompile, or the user's own.

One rule for device profiles and calibration presets: a value with a path separator or ``.toml`` is exactly that
file; anything else is a name, searched in ``--content-dir``, ``$EDGECOMPILE_PATH``, the user's configuration folder,
then among the built-ins. The current folder is never searched.
"""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgecompile.errors import InputError

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["device_profiles", "calibration", "targets"]
_NOUN: dict[Kind, str] = {"device_profiles": "target", "calibration": "preset", "targets": "runner"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A piece of content: its name, its file, and where it was found (``built-in``, ``user``, ...)."""

    name: str
    path: Path
    origin: str


def builtin_root(kind: Kind) -> Path:
    """The folder of built-in content: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_content" / kind
    return installed if installed.is_dir() else package.parent / kind


def _roots(kind: Kind, content_dir: Path | None) -> list[tuple[str, Path]]:
    import click

    roots: list[tuple[str, Path]] = []
    if content_dir is not None:
        roots.append(("--content-dir", content_dir / kind))
    for entry in filter(None, os.environ.get("EDGECOMPILE_PATH", "").split(os.pathsep)):
        roots.append(("$EDGECOMPILE_PATH", Path(entry) / kind))
    roots.append(("user", Path(click.get_app_dir("edgecompile")) / kind))
    roots.append(("built-in", builtin_root(kind)))
    return roots


def names(kind: Kind, *, content_dir: Path | None = None) -> dict[str, Found]:
    """All TOML content of a kind by name; the first place in the search order wins, and shadowing is logged."""
    found: dict[str, Found] = {}
    for origin, root in _roots(kind, content_dir):
        for path in sorted(root.glob("*.toml")) if root.is_dir() else []:
            if path.stem not in found:
                found[path.stem] = Found(name=path.stem, path=path, origin=origin)
            elif origin == "built-in":
                log.info("%s shadows the built-in %s %r", found[path.stem].path, _NOUN[kind], path.stem)
    return found


def find(kind: Kind, ref: str, *, content_dir: Path | None = None) -> Found:
    """The TOML content that ``ref`` stands for. Raises `InputError` naming the nearest known name."""
    if os.sep in ref or ref.endswith(".toml"):
        path = Path(ref).expanduser()
        if not path.is_file():
            raise InputError(f"no such file: {ref}", remedy=f"give the path of a {_NOUN[kind]} file, or a name")
        return Found(name=path.stem, path=path, origin="file")
    known = names(kind, content_dir=content_dir)
    if ref in known:
        return known[ref]
    raise unknown_name(kind, ref, tuple(known))


def unknown_name(kind: Kind, ref: str, known: tuple[str, ...]) -> InputError:
    """The error for a name that nothing carries, with the nearest one that exists."""
    near = difflib.get_close_matches(ref.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {_NOUN[kind]} {ref!r}", remedy=f"{hint}known: {', '.join(sorted(known))}")
