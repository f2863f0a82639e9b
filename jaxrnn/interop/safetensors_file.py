"""Files of torch weights in the safetensors format, read and written as NumPy arrays (bfloat16 by way of ml_dtypes)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need the package of that name: pip install 'jaxrnn[safetensors]'") from error
    return safetensors


def read(path: str | os.PathLike, prefix: str) -> dict[str, Any]:
    """The tensors whose names begin with ``prefix``; no other is read from the disk, but all names are kept, with None."""
    with _package().safe_open(os.fspath(path), framework="numpy") as file:
        return {name: file.get_tensor(name) if name.startswith(prefix) else None for name in file.keys()}  # noqa: SIM118


def write(path: str | os.PathLike, arrays: dict[str, Any]) -> None:
    """A new file, marked as torch's. One that exists may hold the rest of a model, so it is never written over."""
    package = _package()
    if os.path.exists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists, and may hold the rest of a model: name another file, or remove this one first"
        )
    package.numpy.save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()}, os.fspath(path), metadata={"format": "pt"}
    )
