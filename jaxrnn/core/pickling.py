"""Pickling and copying of static configuration whose fields may hold functions.

``jnp.tanh`` and ``jax.nn.relu`` are objects that wrap functions. Pickle looks at the
wrapped function and refuses it, because its module holds another object under that
name; a deep copy of the wrapper is another object, which compares unequal. So functions
are pickled by the name under which a module holds them, and copies are the object
itself.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from typing import Any

from .config import to_config
from .import_path import PUBLIC, held, own_place
from .records import fields_of
from .written import written


class Static:
    """A base class for frozen dataclasses that survive ``pickle`` and ``copy``.

    The result equals the original, whichever functions its fields hold. They print as
    one would write them, without fields that have their defaults.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # The decorator ``dataclass``, which comes later, replaces an inherited
        # ``__repr__``, but none that stands in the class itself. Plain dataclasses
        # among the bases know their own fields only.
        if "__repr__" not in vars(cls):
            cls.__repr__ = next(  # type: ignore[method-assign]
                vars(base)["__repr__"]
                for base in cls.__mro__
                if "__repr__" in vars(base)
                and (issubclass(base, Static) or not dataclasses.is_dataclass(base))
            )

    def __repr__(self) -> str:
        return written(self)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the configuration as JSON, from which `from_config` makes it again.

        Returns:
            ``{"class": "module:Name", field: value, ...}`` with every field. Tuples
            are lists; cells, layers and initializers inside are such dicts, too;
            functions are ``{"function": "module:name"}``.

        Raises:
            TypeError: for a class, function or value that cannot be written down.

        Example:
            >>> import jaxrnn
            >>> config = jaxrnn.stack(jaxrnn.IndRNN(4), jaxrnn.MinGRU(2)).to_config()
            >>> config["class"], config["layers"][1]["hidden_size"]
            ('jaxrnn.layers:Stack', 2)
            >>> jaxrnn.from_config(config).layers[1] == jaxrnn.MinGRU(2)
            True
        """
        return to_config(self)

    def __reduce__(self) -> Any:
        fields = fields_of(self) if dataclasses.is_dataclass(self) else vars(self)
        state = {
            name: _by_name(value, f"{type(self).__name__}: {name}")
            for name, value in sorted(fields.items())
        }
        return _made_again, (type(self), state)


def _made_again(kind: type, state: dict[str, Any]) -> Any:
    """Rebuild an object from its class and pickled fields."""
    instance: Any = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(instance, name, _found(value))
    return instance


@dataclasses.dataclass(frozen=True)
class _Name:
    """A reference to the object that ``module`` holds under the dotted ``name``."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class _Partial:
    """A ``functools.partial`` as its function, arguments and keyword arguments."""

    parts: tuple[Any, tuple[Any, ...], dict[str, Any]]


def _by_name(value: object, who: str) -> Any:
    """Replace every function in ``value`` by a `_Name`, also in tuples and partials.

    Raises:
        TypeError: for a function that no module holds under its name.
    """
    if type(value) is tuple:
        return tuple(_by_name(item, who) for item in value)
    if isinstance(value, functools.partial):
        keywords = {name: _by_name(arg, who) for name, arg in value.keywords.items()}
        return _Partial(
            (_by_name(value.func, who), _by_name(value.args, who), keywords)
        )
    if isinstance(value, (type, types.MethodType)) or not callable(value):
        return value
    wraps = inspect.unwrap(value) is not value  # as jax.jit and functools.wraps do
    if not isinstance(value, types.FunctionType) and not wraps:
        return value
    own, name = own_place(value)
    for module in (*PUBLIC, own):
        try:
            if module and held(module, name) is value:
                return _Name(module, name)
        except (ImportError, AttributeError):
            continue
    raise TypeError(
        f"{who} is {value!r}, which cannot be pickled: no module holds it under its "
        f"name, {name!r}. Use a function that is defined at the top level of a module, "
        f"rather than a lambda or a function inside another"
    )


def _found(value: object) -> Any:
    """Undo `_by_name`: import the functions that ``value`` refers to."""
    if type(value) is tuple:
        return tuple(map(_found, value))
    if isinstance(value, _Partial):
        function, args, keywords = value.parts
        return functools.partial(
            _found(function),
            *_found(args),
            **{name: _found(arg) for name, arg in keywords.items()},
        )
    return held(value.module, value.name) if isinstance(value, _Name) else value
