"""Puts the weights of a checkpoint into a module: read in a child, without unpickling objects, and fitted by name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompile import sandbox
from edgecompile.errors import InputError, MissingExtraError

SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
#: Where training scripts put the weights among the other things of a checkpoint, the usual first.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "weights", "params")
#: What DataParallel, torch.compile and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_TIMEOUT_S = 300.0
_NAMES_SHOWN = 5


def load(module: Any, path: Path, *, what: str) -> None:
    """Load the checkpoint ``path`` into ``module``, a ``torch.nn.Module`` that the messages call ``what``.

    Raises `InputError` if the file is missing, damaged or holds anything but weights, or if they do not fit.
    """
    own = module.state_dict()
    state = _without_prefixes(read(path), tuple(own))
    complex_ones = [k for k, v in state.items() if k in own and v.is_complex() and not own[k].is_complex()]
    if complex_ones:
        # torch would drop the imaginary parts with no more than a warning.
        raise InputError(
            f"the weights in {path} do not fit {what}: {len(complex_ones)} are complex numbers: {_first(complex_ones)}",
            remedy="save the weights as real numbers, in float32",
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as exc:
        raise InputError(
            f"the weights in {path} do not fit {what}: {_misfit(own, state) or exc}",
            remedy="give the weights of this very architecture, or the factory that they were trained with",
        ) from exc


def read(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint by name, on the CPU; raises `InputError`."""
    if path.is_dir():
        raise InputError(f"the weights {path} are a folder", remedy=f"give one file: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no such file with weights: {path}", remedy="check --weights")
    if path.stat().st_size == 0:
        raise InputError(f"the file with weights {path} is empty", remedy="copy or download it again")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"weights in {path} cannot be read", remedy=f"give a file that ends in {', '.join(SUFFIXES)}")
    try:
        from safetensors.torch import load_file
    except ImportError as exc:
        raise MissingExtraError(exc.name or "safetensors", "build") from exc
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        plain = Path(folder) / "weights.safetensors"
        names = sandbox.call(
            "edgecompile.model.weights:convert_in_child",
            {"file": str(path.resolve()), "name": str(path), "out": str(plain)},
            memory_bytes=sandbox.DEFAULT_MEMORY_BYTES,
            timeout_s=_TIMEOUT_S,
            what=f"the file with weights {path}",
        )
        # The child wrote this file: whatever the checkpoint was, it is plain numbers now. Cloned, since the
        # tensors of load_file lie in the file, which is about to go.
        tensors = load_file(plain)
        return {name: tensors[str(number)].clone() for number, name in enumerate(names)}


# ----------------------------------------------------------------------------------------------- in the child


def convert_in_child(argument: dict[str, str]) -> list[str]:
    """Read any checkpoint and write its tensors, by number, as safetensors; returns their names.

    By number, since a checkpoint may use names that safetensors keeps for itself, such as ``__metadata__``.
    """
    from safetensors.torch import save_file

    file, name = Path(argument["file"]), argument["name"]
    content = _safetensors(file, name) if file.suffix.lower() == ".safetensors" else _torch_file(file, name)
    tensors = _tensors(content)
    if not tensors:
        raise InputError(f"{name} holds no weights", remedy="give a file that holds a state dict")
    try:
        # Cloned: tied weights share memory, which safetensors refuses.
        plain = {str(i): tensor.detach().contiguous().clone() for i, tensor in enumerate(tensors.values())}
        save_file(plain, argument["out"])
    except (RuntimeError, KeyError, ValueError, NotImplementedError) as exc:
        raise InputError(f"{name} holds tensors of an unusual kind: {exc}", remedy="save it in float32") from exc
    return list(tensors)


def _safetensors(file: Path, name: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as exc:
        raise InputError(f"{name} is not a safetensors file, or is damaged: {exc}", remedy="copy it again") from exc


def _torch_file(file: Path, name: str) -> Any:
    import pickle

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as exc:
        raise _not_weights(name, str(exc)) from exc
    except (
        Exception
    ) as exc:  # torch's readers raise whatever the damage leads to: EOFError, KeyError, struct.error, ...
        text = str(exc).strip()
        if "TorchScript" in text:
            raise InputError(
                f"{name} is a TorchScript program, not weights", remedy="give it as the model, with --trust"
            ) from exc
        why = text.splitlines()[0] if text else type(exc).__name__
        raise InputError(f"{name} is not a PyTorch checkpoint, or is damaged: {why}", remedy="copy it again") from exc


def _not_weights(name: str, text: str) -> InputError:
    """What torch's restricted unpickler means, in one line."""
    for mark in (
        "Unsupported global: GLOBAL ",
        "Trying to load unsupported GLOBAL ",
        "Trying to instantiate unsupported ",
    ):
        if mark in text:
            culprit = text.split(mark, 1)[1].split()[0].rstrip(".")
            return InputError(
                f"{name} holds the Python object {culprit!r}, not only weights; nothing of it was run",
                remedy="save plain weights with torch.save(model.state_dict(), ...) or as safetensors",
            )
    _, found, rest = text.partition("WeightsUnpickler error:")
    reason = rest.strip().splitlines()[0] if found and rest.strip() else "it is no pickle of tensors"
    return InputError(
        f"{name} is not a PyTorch checkpoint, is damaged, or holds more than weights ({reason}); nothing of it was run",
        remedy="save plain weights with torch.save(model.state_dict(), ...) or as safetensors",
    )


def _tensors(content: Any, depth: int = 3) -> dict[str, Any]:
    """The state dict in a checkpoint: itself, or under one of the usual keys."""
    import torch

    if not isinstance(content, Mapping):
        return {}
    for key in _NESTS if depth else ():
        if isinstance(content.get(key), Mapping):
            found = _tensors(content[key], depth - 1)
            if found:
                return found
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


# ---------------------------------------------------------------------------------------------------- fitting


def _without_prefixes(state: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Take off what wrappers put before every name, unless the module's own names begin so."""
    while True:
        for prefix in _PREFIXES:
            if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in wanted):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                break
        else:
            return state


def _misfit(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    missing = [k for k in wanted if k not in found and not k.endswith(".num_batches_tracked")]
    unexpected = [k for k in found if k not in wanted]
    misshapen = [
        f"{k} (file {list(found[k].shape)}, model {list(wanted[k].shape)})"
        for k in wanted
        if k in found and found[k].shape != wanted[k].shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return "; ".join(f"{len(names)} {word}: {_first(names)}" for word, names in parts if names)


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
