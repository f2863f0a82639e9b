"""Many small arrays in one small file: names, shapes, and their numbers in a row.

A file of numpy's own with an entry for each array would be mostly headers.
"""

import json
import pathlib

import numpy as np

COMPLEX = ("complex128", "complex64")


def save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of numbers or flags; each number is kept as a float64, exactly."""
    index, parts = {}, []
    for name, array in arrays.items():
        array = np.asarray(array)
        flat = np.ascontiguousarray(array).reshape(-1)
        flat = flat.astype("complex128").view("float64") if is_complex(array) else flat
        index[name] = [str(array.dtype), list(array.shape)]
        parts.append(flat.astype("float64"))
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(path, index=text, numbers=np.concatenate(parts))


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What `save` was given."""
    with np.load(path) as file:
        index, numbers = json.loads(file["index"].tobytes()), file["numbers"]
    arrays, begin = {}, 0
    for name, (dtype, shape) in index.items():
        size = int(np.prod(shape)) * (2 if dtype in COMPLEX else 1)
        part, begin = numbers[begin : begin + size], begin + size
        whole = part.view("complex128") if dtype in COMPLEX else part
        arrays[name] = whole.astype(dtype).reshape(shape)
    return arrays


def is_complex(array: np.ndarray) -> bool:
    return str(array.dtype) in COMPLEX
