"""Observers, which see every run of an engine while `jaxrnn.explain` traces."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jax.experimental.xla_metadata import set_xla_metadata

from ..core.cell import Cell
from ..core.engine import AbstractEngine, AbstractNetworkEngine
from ..core.types import Carry, Params


@runtime_checkable
class Observer(Protocol):
    """What runs in place of every engine while `jaxrnn.explain` traces.

    It records the calls. Its results need only have the shapes of the engine's.
    """

    def run(
        self,
        engine: AbstractEngine,
        why: str,
        all_carries: bool,
        cell: Cell,
        *args: Any,
    ) -> tuple[Carry, Carry]:
        """Record ``engine.run(cell, *args)``.

        ``why`` says why this engine runs; ``all_carries``, whether the whole carry
        after every step is asked for.
        """

    def run_network(
        self, engine: AbstractNetworkEngine, params: Params, carries: list, *args: Any
    ) -> tuple[list, Any]:
        """Record ``engine.run_network(params, carries, *args)``."""


_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "jaxrnn_observer", default=None
)


_OBSERVATIONS = itertools.count()


@contextlib.contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Put an observer in the place of every engine, inside layers too.

    The XLA metadata are part of the key of jit's cache: a compiled function in a
    layer's code is traced anew for every observation, and what was traced for an
    observation is never run.
    """
    metadata = set_xla_metadata(jaxrnn_observation=str(next(_OBSERVATIONS)))
    with observer_set_to(observer), metadata:
        yield


@contextlib.contextmanager
def observer_set_to(observer: Observer | None) -> Iterator[None]:
    """Set the observer. None lets engines run as they are: in a cell's step, and where
    an observer traces.
    """
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def current_observer() -> Observer | None:
    """Return the observer of the `jaxrnn.explain` that is tracing, or None."""
    return _OBSERVER.get()


def run_network(
    engine: AbstractNetworkEngine, params: Params, carries: list, *args: Any
) -> tuple[list, Any]:
    """Run several cells in one call of an engine, so that `jaxrnn.explain` sees it.

    Args:
        engine: the engine.
        params: the parameters of the network.
        carries: the carry of every cell.
        args: what else `AbstractNetworkEngine.run_network` takes.

    Returns:
        The last carries, and the outputs of the last layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.extending import AbstractNetworkEngine, run_network
        >>> class Same(AbstractNetworkEngine):  # whose cells do nothing
        ...     def run(self, cell, params, carry, xs, *sequence):
        ...         return carry, xs
        ...
        ...     def refusal(self, *arguments):
        ...         return None
        ...
        ...     def run_network(self, params, carries, xs, *sequence):
        ...         return carries, xs
        >>> carries, xs = [jnp.zeros((2, 3))], jnp.ones((5, 2, 3))
        >>> last, ys = run_network(Same(), {}, carries, xs, None, False, False)
        >>> ys.shape
        (5, 2, 3)
    """
    observer = current_observer()
    if observer is None:
        return engine.run_network(params, carries, *args)
    with observer_set_to(None):
        return observer.run_network(engine, params, carries, *args)
