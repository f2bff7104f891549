"""A device profile as the text of a TOML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgecompile.profiles import DeviceProfile

#: What a loaded profile knows, and its file does not say.
_HIDDEN = ("name", "origin")
_WIDE = 118


def text(profile: DeviceProfile, comment: Sequence[str] = ()) -> str:
    """The file of a profile; loading it gives the profile again."""
    lines = [f"# {line}".rstrip() for line in comment]
    lines += list(_table("", _fields(profile, _HIDDEN)))
    return "\n".join(lines).strip() + "\n"


def _fields(value: Any, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """A dataclass's fields; those that are ``None``, or what they are by default, are left out."""
    found = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.name in hidden or item is None:
            continue
        if field.default_factory is not dataclasses.MISSING and item == field.default_factory():
            continue
        if item == field.default and not isinstance(item, float):
            continue
        found[field.name] = item
    return found


def _table(path: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """Plain values first, then the tables below."""
    for key, value in fields.items():
        if not _is_table(value):
            yield from _assignment(_key(key), value)
    for key, value in fields.items():
        below = f"{path}.{_key(key)}" if path else _key(key)
        if not _is_table(value):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            inner = item if isinstance(item, dict) else _fields(item)
            if isinstance(value, tuple):
                yield from ("", f"[[{below}]]")
            elif any(not _is_table(one) for one in inner.values()):
                yield from ("", f"[{below}]")
            yield from _table(below, inner)


def _is_table(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and dataclasses.is_dataclass(value[0])
    return isinstance(value, dict) or dataclasses.is_dataclass(value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _assignment(key: str, value: Any) -> Iterator[str]:
    line = f"{key} = {_value(value)}"
    if len(line) <= _WIDE or not isinstance(value, tuple):
        yield line
        return
    yield f"{key} = ["
    row: list[str] = []
    for item in (f"{_value(one, inside=True)}," for one in value):
        if row and sum(map(len, row)) + len(row) + len(item) > _WIDE - 4:
            yield f"    {' '.join(row)}"
            row = []
        row.append(item)
    yield f"    {' '.join(row)}"
    yield "]"


def _value(value: Any, *, inside: bool = False) -> str:
    """A value; ``inside`` an array, whole numbers are written as such, since most of them count something."""
    if isinstance(value, tuple):
        return f"[{', '.join(_value(one, inside=True) for one in value)}]"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return f"{value:.0f}" if inside else f"{value:.1f}"
        return f"{value:.6g}"
    # JSON's strings, booleans and integers are TOML's.
    return json.dumps(value, ensure_ascii=False)
