"""Static configuration that pickles and copies: functions among its fields go by their
name.

``jnp.tanh`` and ``jax.nn.relu`` are objects that JAX made of functions. Pickle finds
the function in them and then that it is not what its module holds under that name; a
deep copy of one is another object, which compares unequal.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
from typing import Any

PUBLIC = (
    "jax.numpy",
    "jax.nn",
    "jax.lax",
    "jax.scipy.special",
)  # looked in first: other versions have these too


class Static:
    """A frozen dataclass that equals what comes back of ``pickle`` and ``copy``,
    whichever functions it holds.
    """

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        fields = (
            {f.name for f in dataclasses.fields(self)}
            if dataclasses.is_dataclass(self)
            else set(vars(self))
        )  # type: ignore[arg-type]
        state = {
            name: _by_name(getattr(self, name), f"{type(self).__name__}: {name}")
            for name in sorted(fields)
        }
        return _made_again, (type(self), state)


def _made_again(kind: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(made, name, _found(value))
    return made


@dataclasses.dataclass(frozen=True)
class _Name:
    """What ``module`` holds under the dotted ``name``."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class _Partial:
    """A ``functools.partial``."""

    parts: tuple[Any, tuple[Any, ...], dict[str, Any]]


def _by_name(value: Any, who: str) -> Any:
    """``value`` with a `_Name` in place of every function, however deep in tuples and
    partials.

    Raises:
        TypeError: for a function that has no name to be found by.
    """
    if type(value) is tuple:
        return tuple(_by_name(each, who) for each in value)
    if isinstance(value, functools.partial):
        words = {name: _by_name(each, who) for name, each in value.keywords.items()}
        return _Partial((_by_name(value.func, who), _by_name(value.args, who), words))
    is_function = isinstance(value, types.FunctionType) or hasattr(value, "__wrapped__")
    if isinstance(value, (type, types.MethodType)) or not (
        callable(value) and is_function
    ):
        return value
    name = getattr(value, "__qualname__", "")
    for module in (*PUBLIC, getattr(value, "__module__", None)):
        try:
            if module and _held(module, name) is value:
                return _Name(module, name)
        except (ImportError, AttributeError):
            continue
    raise TypeError(
        f"{who} is {value!r}, which cannot be pickled: it is not to be found under its "
        f"name, {name!r}, in a module. Give a "
        "function that is defined at the top of a module, rather than a lambda or a "
        "function inside another"
    )


def _found(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_found, value))
    if isinstance(value, _Partial):
        function, args, words = value.parts
        return functools.partial(
            _found(function),
            *_found(args),
            **{name: _found(each) for name, each in words.items()},
        )
    return _held(value.module, value.name) if isinstance(value, _Name) else value


def _held(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))
