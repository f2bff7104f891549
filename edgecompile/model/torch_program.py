"""Opens what runs code of its own: a module made by the user's factory, a ``torch.export`` program, TorchScript.

Nothing here may be called before the user has said ``--trust``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError, MissingExtraError, UnsupportedModelError
from edgecompile.types import TensorSpec

Shapes = Mapping[str, tuple[int, ...]] | tuple[int, ...] | None
_OPSET = 18
_SHAPE_REMEDY = "give --input-shape, for example --input-shape 1,3,224,224"


# ---------------------------------------------------------------------------------------------------- opening


def from_factory(ref: str) -> Any:
    """What ``MODULE:FACTORY`` makes: a ``torch.nn.Module`` in eval mode on the CPU; raises `InputError`."""
    torch = _torch()
    module_name, _, name = ref.rpartition(":")
    if module_name.endswith(".py") or os.sep in module_name:
        raise InputError(
            f"{module_name} is a file, and a module's name is needed",
            remedy=f"start in its folder and give {Path(module_name).stem}:{name}",
        )
    made = _attribute(_imported(module_name, ref), name, ref)
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise InputError(f"{ref} is a {type(made).__name__}, not a function that makes a model")
        made = _called(made, ref)
    if not isinstance(made, torch.nn.Module):
        raise InputError(
            f"{ref} made a {type(made).__name__}, not a torch.nn.Module", remedy="let the factory return the module"
        )
    return made.eval().cpu()


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise MissingExtraError("torch", "build") from exc
    return torch


def _imported(module_name: str, ref: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module_name}.".startswith(f"{exc.name}."):
            raise InputError(
                f"no Python module {module_name!r} was found for {ref}",
                remedy="start in the folder where it lies, or install it; the form is MODULE:FACTORY",
            ) from exc
        raise _raised(f"importing {module_name!r}", exc) from exc
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        raise _raised(f"importing {module_name!r}", exc) from exc


def _attribute(module: Any, name: str, ref: str) -> Any:
    import difflib

    if not hasattr(module, name):
        known = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"{ref}: the module has no {name!r}", remedy=f"{hint}it has: {', '.join(known[:10]) or 'no functions'}"
        )
    return getattr(module, name)


def _called(factory: Any, ref: str) -> Any:
    try:
        return factory()
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        raise _raised(f"{ref}()", exc, "the factory is called without arguments") from exc


def _raised(what: str, exc: BaseException, remedy: str | None = None) -> InputError:
    return InputError(f"{what} raised {type(exc).__name__}: {_first_line(exc)}", remedy=remedy or "correct that first")


def _first_line(exc: BaseException) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), "without a message")


def from_pt2(path: Path) -> Any:
    """The ``torch.export.ExportedProgram`` in a file; raises `InputError`."""
    _torch()
    import torch.export

    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as exc:  # torch's readers raise whatever the damage leads to
        raise InputError(
            f"{path} is not a torch.export program, or is damaged: {_first_line(exc)}",
            remedy="save it again with torch.export.save, with this version of torch",
        ) from exc


def from_torchscript(path: Path) -> Any:
    """The TorchScript module in a file, in eval mode on the CPU; raises `InputError`."""
    torch = _torch()
    try:
        with _quiet():
            return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as exc:  # torch's readers raise whatever the damage leads to
        raise InputError(
            f"{path} is not a TorchScript program, or is damaged: {_first_line(exc)}", remedy="save it again"
        ) from exc


def runs(module: Any, inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether a module takes these inputs: an exported program may insist on sizes that its ONNX does not."""
    torch = _torch()
    arguments = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in inputs]
    try:
        with torch.no_grad(), _quiet():
            module(*arguments)
    except Exception:  # the program's own checks may raise anything
        return False
    return True


# --------------------------------------------------------------------------------------------------- exporting


def export_module(module: Any, shapes: Shapes, ref: str) -> bytes:
    """A module as ONNX for float32 inputs of the given shapes; raises `InputError` or `UnsupportedModelError`."""
    arguments = _arguments(module, shapes, ref)
    _try(module, arguments, ref)
    return _exported(module, arguments, ref, dynamo=True)


def export_torchscript(module: Any, shapes: Shapes, ref: str) -> bytes:
    """TorchScript as ONNX, by the exporter that reads TorchScript; raises `InputError` or `UnsupportedModelError`."""
    if isinstance(shapes, Mapping):
        shapes = next(iter(shapes.values())) if len(shapes) == 1 else None
    arguments = _arguments(module, shapes, ref)
    _try(module, arguments, ref)
    # The newer exporter does not take TorchScript; 17 is the last operator set that this one knows well.
    return _exported(module, arguments, ref, dynamo=False)


def export_pt2(program: Any, ref: str) -> bytes:
    """A ``torch.export`` program as ONNX; open dimensions stay open. Raises `UnsupportedModelError`."""
    return _exported(program, (), ref, dynamo=True)


def _arguments(module: Any, shapes: Shapes, ref: str) -> tuple[Any, ...]:
    torch = _torch()
    if not shapes:
        raise InputError(f"the input shape of {ref} is not known", remedy=_SHAPE_REMEDY)
    ordered = _in_order(module, shapes, ref) if isinstance(shapes, Mapping) else [tuple(shapes)]
    if any(size < 1 for shape in ordered for size in shape):
        raise InputError(f"every size of --input-shape must be at least 1, not {ordered}", remedy=_SHAPE_REMEDY)
    return tuple(torch.zeros(shape) for shape in ordered)


def _in_order(module: Any, shapes: Mapping[str, tuple[int, ...]], ref: str) -> list[tuple[int, ...]]:
    names = list(inspect.signature(module.forward).parameters)
    unknown = [name for name in shapes if name not in names]
    if unknown or set(shapes) != set(names[: len(shapes)]):
        raise InputError(
            f"{ref} takes {', '.join(names)}; --input-shape names {', '.join(shapes)}",
            remedy="give a shape for each input, from the first on",
        )
    return [shapes[name] for name in names[: len(shapes)]]


def _try(module: Any, arguments: tuple[Any, ...], ref: str) -> None:
    torch = _torch()
    try:
        with torch.no_grad(), _quiet():
            module(*arguments)
    except Exception as exc:  # the user's code may raise anything
        found = ", ".join(str(list(a.shape)) for a in arguments)
        raise InputError(
            f"{ref} cannot be run on an input of shape {found}: {_first_line(exc)}", remedy="correct --input-shape"
        ) from exc


def _exported(program: Any, arguments: tuple[Any, ...], ref: str, *, dynamo: bool) -> bytes:
    torch = _torch()
    options: dict[str, Any] = (
        {"dynamo": True, "opset_version": _OPSET} if dynamo else {"dynamo": False, "opset_version": 17}
    )
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        file = Path(folder) / "exported.onnx"
        try:
            with torch.no_grad(), _quiet():
                torch.onnx.export(program, arguments, str(file), external_data=False, verbose=False, **options)
        except ImportError as exc:
            raise MissingExtraError(exc.name or "onnxscript", "build") from exc
        except Exception as exc:  # the exporter raises kinds of its own, of torch.export, and of the user's code
            raise UnsupportedModelError(
                f"{ref} cannot be exported to ONNX: {_cause(exc)}",
                remedy="make its forward() free of what depends on the data, or export ONNX yourself and give that",
            ) from exc
        return file.read_bytes()


def _cause(exc: BaseException) -> str:
    """The innermost reason: the exporter wraps it in pages of advice."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {_first_line(exc)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks (``torchvision is not installed``) off the terminal."""
    remarks = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(before)
