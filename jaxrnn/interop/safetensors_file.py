"""Reading and writing torch weights in safetensors files, as NumPy arrays.

bfloat16 is represented by ml_dtypes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np


def _package() -> Any:
    """Import the optional package safetensors."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "safetensors files need the package safetensors: pip install "
            "'jaxrnn[safetensors]'"
        ) from error
    return safetensors


READABLE = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")


@dataclasses.dataclass(frozen=True)
class Unread:
    """A tensor of a dtype that NumPy lacks, such as float8.

    It is refused only if it is needed.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)


def _is_of_torch(path: str | os.PathLike) -> bool:
    """Whether a file begins as those of ``torch.save`` do."""
    try:
        with open(path, "rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02")
    except OSError:  # what is wrong with it is said where it is read
        return False


def read(path: str | os.PathLike, prefix: str) -> dict[str, Any]:
    """Read the tensors whose names begin with ``prefix``.

    Other tensors are not read from disk; their names are kept, with the value None.
    A model in several files is read through its index, ``NAME.safetensors.index.json``.
    """
    if os.fspath(path).endswith(".index.json"):
        return _read_parts(path, prefix)
    if _is_of_torch(path):
        raise ValueError(
            f"{os.fspath(path)} is a file of torch.save, not of safetensors: pass "
            f"torch.load(path, weights_only=True), or the state_dict in it"
        )
    package = _package()
    try:
        with package.safe_open(os.fspath(path), framework="numpy") as file:
            return {
                name: _tensor(file, name) if name.startswith(prefix) else None
                for name in file.keys()  # noqa: SIM118 (a file is not a mapping)
            }
    except package.SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} cannot be read as a safetensors file: it is damaged, "
            f"not whole, or another kind of file ({error})"
        ) from error


def _read_parts(path: str | os.PathLike, prefix: str) -> dict[str, Any]:
    """Read tensors of a model in several files, which stand beside their index."""
    with open(path, encoding="utf-8") as file:
        index = json.load(file)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise ValueError(
            f"{os.fspath(path)}: an index of safetensors files has an entry "
            f"weight_map, which says the file of every tensor, but this has none"
        )
    folder = os.path.dirname(os.fspath(path))
    needed = {file for name, file in places.items() if name.startswith(prefix)}
    tensors = dict.fromkeys(places)
    for file in sorted(needed):
        tensors |= read(os.path.join(folder, file), prefix)
    return tensors


def _tensor(file: Any, name: str) -> Any:
    """Read one tensor if NumPy has its dtype."""
    tensor = file.get_slice(name)
    readable = tensor.get_dtype() in READABLE
    return (
        file.get_tensor(name)
        if readable
        else Unread(tuple(tensor.get_shape()), tensor.get_dtype())
    )


def write(path: str | os.PathLike, arrays: dict[str, Any]) -> None:
    """Write a new file, marked as torch's.

    An existing file may hold the rest of a model, so it is never overwritten.
    """
    package = _package()
    if os.path.exists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists, and may hold the rest of a model: choose "
            f"another file, or remove this one first"
        )
    package.numpy.save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()},
        os.fspath(path),
        metadata={"format": "pt"},
    )
