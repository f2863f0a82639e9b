"""Cells, layers and engines as JSON, and back.

Every value of a frozen dataclass has one form in JSON::

    None, bool, int, float, str    themselves; floats that JSON lacks {"float": "inf"}
    a tuple                        a list
    a dataclass or NamedTuple      {"class": "module:Name", field: value, ...}
    a function or a type           {"function": "module:name"}
    a functools.partial            {"partial": function, "args": [], "keywords": {}}
    complex, dtype, enum           {"complex": [re, im]}, {"dtype": name},
                                   {"enum": "module:Name", "member": name}
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from .import_path import Trust, find, import_path_of, is_trusted
from .records import fields_of, is_namedtuple, is_namedtuple_class


def to_config(value: object) -> dict[str, Any]:
    """Return a frozen dataclass as JSON; see `jaxrnn.Cell.to_config`."""
    if not _is_record(value):
        raise TypeError(
            f"to_config takes a cell, layer or another frozen dataclass, but got "
            f"{value!r}"
        )
    return _encode(value, type(value).__name__)


def from_config(config: dict[str, Any], *, trust_code: Trust = False) -> Any:
    """Make a cell, a layer or an engine from what its ``to_config`` returned.

    Code outside jaxrnn is imported only if ``trust_code`` allows it, since an import
    runs code: a configuration may come from a stranger. The current folder is searched
    first.

    Args:
        config: the dict, which may have been written to JSON and read again.
        trust_code: True to import whatever the configuration names, or the import paths
            that may be imported, such as ``{"mine:Mine"}``.

    Returns:
        An object that equals the original.

    Raises:
        TypeError: if ``config`` is none.
        ValueError: if it names code outside jaxrnn that ``trust_code`` does not allow,
            or fields that the class does not have.
        ImportError: if a class or function cannot be imported.

    Example:
        >>> import json, jaxrnn
        >>> cell = jaxrnn.LSTM(4, forget_bias=jaxrnn.initializers.Chrono(100))
        >>> text = json.dumps(cell.to_config())
        >>> jaxrnn.from_config(json.loads(text)) == cell
        True
    """
    if not isinstance(config, dict) or "class" not in config:
        raise TypeError(
            f"from_config takes the dict that to_config returns, "
            f"{{'class': 'module:Name', ...}}, but got {config!r}"
        )
    if strangers := [p for p in paths_in(config) if not is_trusted(p, trust_code)]:
        raise ValueError(
            f"this configuration uses code outside jaxrnn: {', '.join(strangers)}; if "
            f"you trust it, pass trust_code=True, or the paths, {set(strangers)}"
        )
    return _decode(config, trust_code)


def paths_in(config: object) -> list[str]:
    """Return the import paths that a configuration names, each once, in order."""
    return list(dict.fromkeys(_paths(config)))


def _paths(config: Any) -> Iterator[str]:
    """Yield what `_decode` would import."""
    if isinstance(config, list):
        inside = config
    elif not isinstance(config, dict):
        return
    elif "class" in config:
        yield str(config["class"])
        inside = [value for name, value in config.items() if name != "class"]
    elif "function" in config or "enum" in config:
        yield str(config.get("function", config.get("enum")))
        return
    elif "partial" in config:
        keywords = config.get("keywords", {})
        inside = [config["partial"], config.get("args"), *keywords.values()]
    else:
        return
    for item in inside:
        yield from _paths(item)


def _is_record(value: object) -> bool:
    """Return whether a value is a dataclass instance or a NamedTuple."""
    if isinstance(value, type):
        return False
    return dataclasses.is_dataclass(value) or is_namedtuple(value)


def _encode(value: object, who: str) -> Any:
    """Return a value as JSON; ``who`` names it in errors."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        return {"enum": import_path_of(type(value), who), "member": value.name}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if _is_record(value):
        return {"class": import_path_of(type(value), who)} | {
            name: _encode(part, f"{type(value).__name__}: {name}")
            for name, part in _made_of(value).items()
        }
    if isinstance(value, tuple):
        return [_encode(item, who) for item in value]
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, functools.partial):
        return {
            "partial": _encode(value.func, who),
            "args": [_encode(item, who) for item in value.args],
            "keywords": {n: _encode(item, who) for n, item in value.keywords.items()},
        }
    if callable(value):
        return {"function": import_path_of(value, who)}
    raise TypeError(
        f"{who} is {value!r}, which cannot be written as a configuration: use numbers, "
        f"text, tuples, frozen dataclasses, and functions that a module holds"
    )


def _made_of(value: Any) -> dict[str, Any]:
    """Return the fields from which a dataclass or NamedTuple is made, by name."""
    if isinstance(value, tuple):
        return value._asdict()  # type: ignore[attr-defined]
    names = {field.name for field in dataclasses.fields(value) if field.init}
    return {name: part for name, part in fields_of(value).items() if name in names}


def _decode(config: Any, trust: Trust) -> Any:
    """Undo `_encode`."""
    if isinstance(config, list):
        return tuple(_decode(item, trust) for item in config)
    if not isinstance(config, dict):
        return config
    # First, because a field may have any of the names below, and none is "class".
    if "class" in config:
        return _decode_record(config, trust)
    if "function" in config:
        return find(config["function"], trust)
    if "enum" in config:
        return find(config["enum"], trust)[config["member"]]
    if "partial" in config:
        return functools.partial(
            _decode(config["partial"], trust),
            *_decode(config["args"], trust),
            **{name: _decode(v, trust) for name, v in config["keywords"].items()},
        )
    if "float" in config:
        return float(config["float"])
    if "complex" in config:
        return complex(*config["complex"])
    if "dtype" in config:
        return jnp.dtype(config["dtype"])
    raise ValueError(
        f"a configuration holds {config!r}, which is none of the forms of to_config"
    )


def _decode_record(config: dict[str, Any], trust: Trust) -> Any:
    """Make a dataclass or NamedTuple from its fields."""
    kind = find(config["class"], trust)
    fields = {
        name: _decode(value, trust) for name, value in config.items() if name != "class"
    }
    known: set[str] = set()
    if dataclasses.is_dataclass(kind):
        known = {field.name for field in dataclasses.fields(kind) if field.init}
    elif isinstance(kind, type) and is_namedtuple_class(kind):
        known = set(kind._fields)  # type: ignore[attr-defined]
    if strange := sorted(fields.keys() - known):
        raise ValueError(
            f"{config['class']} has no field {strange[0]!r}: the configuration was "
            f"written for another version of it; its fields are "
            f"{', '.join(sorted(known))}"
        )
    return kind(**fields)
