"""Gets a trained model in, safely: from a file or a factory to a static, checked, shape-inferred ONNX file."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgecompile import __version__, sandbox
from edgecompile.errors import InputError, MissingExtraError, TrustError
from edgecompile.model import prepare, torch_program, weights
from edgecompile.store import write_atomically
from edgecompile.types import Model, TensorSpec, digest, encode, file_sha256

log = logging.getLogger(__name__)

Shapes = torch_program.Shapes
Kind = Literal["onnx", "pt2", "factory", "torchscript"]

_CACHE = "prepared.json"
_EXPORTED = "exported.onnx"
_FORMAT = 1  # raised when what is prepared, or how, changes
#: Address space for reading a model: the libraries, and some copies of the file.
_BASE_MEMORY_BYTES, _COPIES = 6 << 30, 8
_READ_TIMEOUT_S = 300.0
_FINISH_TIMEOUT_S = 300.0
_SUPPORTED = "give an .onnx file, a .pt2 file, a TorchScript file, or MODULE:FACTORY with --weights"
_TORCHSCRIPT = (".ts", ".torchscript")
#: What people have that is no model for us, and what to do with it.
_FOREIGN = {
    ".h5": "a Keras file: convert it with tf2onnx first",
    ".keras": "a Keras file: convert it with tf2onnx first",
    ".pb": "a TensorFlow file: convert it with tf2onnx first",
    ".tflite": "already a TFLite file: measure it with 'edgecompile bench', or give the model that it was made from",
    ".engine": "a TensorRT engine, which is tied to one GPU: give the model that it was made from",
    ".plan": "a TensorRT engine, which is tied to one GPU: give the model that it was made from",
    ".mlmodel": "a Core ML file: give the model that it was made from",
}


def load(
    ref: str, workdir: Path, *, weights: Path | None = None, input_shapes: Shapes = None, trust: bool = False
) -> Model:
    """The model that ``ref`` stands for, prepared in ``workdir``: ``model.onnx`` and ``original.onnx``.

    ``ref`` is an ``.onnx`` file, or, with ``trust``, since they run code: a ``.pt2``, a TorchScript file, or
    ``MODULE:FACTORY`` with ``weights``. ``input_shapes`` are by input name, or one for the only input. Raises
    `InputError`, `TrustError` or `UnsupportedModelError`.
    """
    kind = _kind_of(ref)
    if weights is not None and kind != "factory":
        raise InputError(f"{ref} holds its own weights", remedy="leave --weights out; it goes with MODULE:FACTORY")
    if kind != "onnx" and not trust:
        raise _untrusted(ref, kind)
    workdir.mkdir(parents=True, exist_ok=True)
    if kind == "onnx":
        prepared = _prepared(Path(ref), workdir, input_shapes, ref)
        return _model(prepared, workdir, name=Path(ref).stem, source=ref, kind=kind, module=None)
    return _from_torch(ref, kind, workdir, weights, input_shapes)


# ----------------------------------------------------------------------------------------------- what it is


def _kind_of(ref: str) -> Kind:
    path = Path(ref)
    if ":" in ref and not path.exists() and path.suffix.lower() not in (".onnx", ".pt2", ".pt"):
        module, _, name = ref.rpartition(":")
        if module and name:
            return "factory"
    suffix = path.suffix.lower()
    if suffix in _FOREIGN:
        raise InputError(f"{ref} is {_FOREIGN[suffix]}", remedy=_SUPPORTED)
    if path.is_dir():
        raise InputError(f"{ref} is a folder, not a model", remedy=_SUPPORTED)
    if not path.is_file():
        raise InputError(f"no such model file: {ref}", remedy=f"check the path, or {_SUPPORTED}")
    if path.stat().st_size == 0:
        raise InputError(f"the model file {ref} is empty", remedy="export or copy it again")
    if suffix == ".onnx":
        return "onnx"
    if suffix == ".pt2":
        return "pt2"
    if suffix in _TORCHSCRIPT:
        return "torchscript"
    if suffix in weights.SUFFIXES:
        return _kind_of_checkpoint(path)
    raise InputError(f"{ref} is not a model that can be read", remedy=_SUPPORTED)


def _kind_of_checkpoint(path: Path) -> Kind:
    """A ``.pt`` may be TorchScript, a saved program, or only weights: told by the names in the archive, unopened."""
    inside: set[str] = set()
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                inside = {name.partition("/")[2] for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError, ValueError) as exc:
            raise InputError(f"{path} is damaged: {exc}", remedy="copy it again") from exc
    if any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "archive_format" in inside:
        return "pt2"
    raise InputError(
        f"{path} holds weights and not a network",
        remedy=f"give the code that makes the network as MODULE:FACTORY, with --weights {path} and --trust",
    )


def _untrusted(ref: str, kind: Kind) -> TrustError:
    why = {
        "factory": "imports and runs Python code of that module",
        "pt2": "is opened by unpickling, which can run code hidden in it",
        "torchscript": "is a program, which opening may run",
    }
    return TrustError(
        f"{ref} {why[kind]}", remedy="give --trust if you trust where it comes from, or give an .onnx file"
    )


# ------------------------------------------------------------------------------------------- code of the user's


def _from_torch(ref: str, kind: Kind, workdir: Path, weights_file: Path | None, shapes: Shapes) -> Model:
    path, name = Path(ref), Path(ref).stem
    left: Shapes = None  # shapes that are still open after the export
    if kind == "factory":
        module, name = torch_program.from_factory(ref), ref.rpartition(":")[2]
        if weights_file is not None:
            weights.load(module, weights_file, what=ref)
        data = torch_program.export_module(module, shapes, ref)
    elif kind == "torchscript":
        module = torch_program.from_torchscript(path)
        data = torch_program.export_torchscript(module, shapes, ref)
    else:
        program = torch_program.from_pt2(path)
        data, left, module = torch_program.export_pt2(program, ref), shapes, program.module()
    exported = workdir / _EXPORTED
    write_atomically(exported, data)
    prepared = _prepared(exported, workdir, left, ref)
    exported.unlink()
    if kind == "pt2" and not torch_program.runs(module, prepared.inputs):
        module = None  # its ONNX export is what files are compared with then
    return _model(prepared, workdir, name=name, source=ref, kind=kind, module=module)


# ---------------------------------------------------------------------------------------------------- preparing


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside the prepared files, so that a second load does not prepare them again."""

    key: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    notes: tuple[str, ...]
    sha256: str
    original_sha256: str


def _prepared(file: Path, workdir: Path, shapes: Shapes, ref: str) -> _Prepared:
    wanted: Any = list(shapes) if isinstance(shapes, tuple) else {k: list(v) for k, v in (shapes or {}).items()}
    hashes = _source_hashes(file, ref)
    key = digest(_FORMAT, _versions(), wanted, hashes)
    kept = _kept(workdir, key)
    if kept is not None:
        log.debug("%s was prepared before", ref)
        return kept
    began = time.monotonic()
    memory_bytes = min(sandbox.DEFAULT_MEMORY_BYTES, _BASE_MEMORY_BYTES + _COPIES * _size_bytes(file.parent, hashes))
    call = functools.partial(sandbox.call, memory_bytes=memory_bytes, what=f"the model {ref}")
    name = Path(ref).name
    read = call(
        "edgecompile.model.prepare:read_in_child",
        prepare.ReadRequest(file=str(file.resolve()), name=name, workdir=str(workdir.resolve()), shapes=wanted),
        timeout_s=_READ_TIMEOUT_S,
    )
    finish = functools.partial(call, "edgecompile.model.prepare:finish_in_child", timeout_s=_FINISH_TIMEOUT_S)
    request = prepare.FinishRequest(name=name, workdir=str(workdir.resolve()), simplify=True)
    notes = list(read["notes"])
    try:
        answer = finish(request)
    except InputError as exc:
        # A good model must not fail because simplifying it crashes; a bad one fails again here.
        answer = finish({**request, "simplify": False})
        notes.append(f"not simplified: {exc.message}")
    made = _Prepared(
        key=key,
        inputs=tuple(_spec(s) for s in answer["inputs"]),
        outputs=tuple(_spec(s) for s in answer["outputs"]),
        parameters=answer["parameters"],
        notes=tuple(notes + answer["notes"]),
        sha256=file_sha256(workdir / prepare.PREPARED),
        original_sha256=file_sha256(workdir / prepare.ORIGINAL),
    )
    write_atomically(workdir / _CACHE, encode(made))
    log.debug("%s was prepared in %.1f s", ref, time.monotonic() - began)
    return made


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=value["name"], shape=tuple(value["shape"]), dtype=value["dtype"])


def _versions() -> dict[str, str]:
    found = {"edgecompile": __version__}
    for package in ("onnx", "onnxsim", "onnxruntime"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as exc:
            raise MissingExtraError(package, "build") from exc
    return found


def _size_bytes(folder: Path, names: Iterable[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)


def _source_hashes(file: Path, ref: str) -> dict[str, str]:
    """The hashes of an ONNX file and of the files beside it that hold its weights, by their names."""
    hashes = {file.name: file_sha256(file)}
    if any(other for other in file.parent.iterdir() if other != file and other.is_file()) and _mentions_files(file):
        names = sandbox.call(
            "edgecompile.model.prepare:external_in_child",
            {"file": str(file.resolve()), "name": Path(ref).name},
            memory_bytes=sandbox.DEFAULT_MEMORY_BYTES,
            timeout_s=_READ_TIMEOUT_S,
            what=f"the model {ref}",
        )
        folder = file.parent.resolve()
        for name in names:
            path = (folder / name).resolve() if "\0" not in name else folder
            # What lies outside is refused when the model is read; it is not even looked at here.
            if path.is_relative_to(folder) and path.is_file():
                hashes[name] = file_sha256(path)
    return hashes


def _mentions_files(file: Path) -> bool:
    """Whether an ONNX file can have weights beside it: it then holds the word ``location``."""
    import mmap

    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"location") >= 0


def _kept(workdir: Path, key: str) -> _Prepared | None:
    try:
        kept = msgspec.json.decode((workdir / _CACHE).read_bytes(), type=_Prepared)
        same = (
            kept.key == key
            and kept.sha256 == file_sha256(workdir / prepare.PREPARED)
            and kept.original_sha256 == file_sha256(workdir / prepare.ORIGINAL)
        )
    except (OSError, msgspec.DecodeError):
        return None
    return kept if same else None


def _model(prepared: _Prepared, workdir: Path, *, name: str, source: str, kind: Kind, module: Any) -> Model:
    # The exporter folds batch norms away: a module's own count is the one that its user knows.
    own = sum(p.numel() for p in module.parameters()) if module is not None else 0
    return Model(
        name=name,
        path=workdir / prepare.PREPARED,
        original_path=workdir / prepare.ORIGINAL,
        inputs=prepared.inputs,
        outputs=prepared.outputs,
        source=source,
        kind=kind,
        sha256=prepared.sha256,
        parameters=own or prepared.parameters,
        notes=prepared.notes,
        module=module,
    )


__all__ = ["Shapes", "load"]
