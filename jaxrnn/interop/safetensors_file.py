"""Files of torch weights in the safetensors format, read and written as NumPy arrays
(bfloat16 by way of ml_dtypes).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "safetensors files need the package of that name: pip install "
            "'jaxrnn[safetensors]'"
        ) from error
    return safetensors


READABLE = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")


@dataclasses.dataclass(frozen=True)
class Unread:
    """A tensor of a dtype that NumPy lacks, such as float8: refused where it is
    asked for, and no harm elsewhere.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        return len(self.shape)


def read(path: str | os.PathLike, prefix: str) -> dict[str, Any]:
    """The tensors whose names begin with ``prefix``; no other is read from the disk,
    but all names are kept, with None.
    """
    package = _package()
    with open(path, "rb") as begun:
        if begun.read(2) in (b"PK", b"\x80\x02"):
            raise ValueError(
                f"{os.fspath(path)} is a file of torch.save, not of safetensors: pass "
                f"torch.load(path, weights_only=True), or "
                "the state_dict in it"
            )
    with package.safe_open(os.fspath(path), framework="numpy") as file:
        return {
            name: _tensor(file, name) if name.startswith(prefix) else None
            for name in file
        }


def _tensor(file: Any, name: str) -> Any:
    part = file.get_slice(name)
    known = part.get_dtype() in READABLE
    return (
        file.get_tensor(name)
        if known
        else Unread(tuple(part.get_shape()), part.get_dtype())
    )


def write(path: str | os.PathLike, arrays: dict[str, Any]) -> None:
    """A new file, marked as torch's. One that exists may hold the rest of a model,
    so it is never written over.
    """
    package = _package()
    if os.path.exists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists, and may hold the rest of a model: name another "
            f"file, or remove this one first"
        )
    package.numpy.save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()},
        os.fspath(path),
        metadata={"format": "pt"},
    )
