"""Layers that draw random numbers: dropout, recurrent dropout, zoneout, state noise.

Every layer here requires a key in `unroll`. `inference(layer)` returns the
deterministic layer with the same parameters, so nobody trains without dropout, or
evaluates with it, by forgetting a flag.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from ..core.arrays import is_array
from ..core.cell import (
    Cell,
    bind_context,
)
from ..core.layer import Layer, check_cell
from ..core.records import fields_of
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_one_array, describe_tree
from ..unrolling import unroll_unchecked
from .compose import init_in
from .stochastic_cells import (
    Averaged,
    MaskedRecurrence,
    Noisy,
    NoisyLinear,
    ZonedOut,
    drop,
    has_affine,
    hidden_of,
    is_real,
)


def dropout(rate: float, *, variational: bool = False) -> Dropout:
    """Zero each feature with probability ``rate``; divide the others by ``1 - rate``.

    Use it between the layers of a `stack`. It has no parameters, and an empty carry.

    Args:
        rate: the probability, in [0, 1).
        variational: if True, draw one mask for a whole unroll and use it at every step
            (Gal & Ghahramani 2016); if False, draw a new one for each step. With
            `TBPTT` an unroll is a window, and in streaming calls it is a step.

    Returns:
        A layer for `stack` that requires a key.

    Raises:
        ValueError: if ``rate`` is not a number in [0, 1).

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.dropout(0.2), jaxrnn.GRU(4))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs, key = jax.numpy.ones((5, 2, 3)), jax.random.key(1)
        >>> jaxrnn.unroll(layer, params, xs, key=key)[1].shape
        (5, 2, 4)
    """
    return Dropout(_check_rate("dropout", rate), variational)


def recurrent_dropout(cell: Cell, rate: float) -> RecurrentDropout:
    """Apply variational dropout to h where it is multiplied by the recurrent kernel::

        h_{t-1} U   becomes   (h_{t-1} * m / (1 - rate)) U,     m ~ Bernoulli(1 - rate)

    Gal & Ghahramani (2016, arXiv:1512.05287). The mask m is drawn once for an unroll
    and is the same at every step. The carry itself is not changed, also in a GRU, so
    memories are not erased. Parameters and carry are those of ``cell``.

    Args:
        cell: a cell whose ``step`` takes ``recurrent_h``, as those of the built-in
            cells with recurrent weights do.
        rate: the probability that a unit of h is dropped, in [0, 1).

    Returns:
        A layer for `unroll` and `stack` that requires a key.

    Raises:
        TypeError: if ``cell`` is no cell, or if its step does not take ``recurrent_h``.
        ValueError: if ``rate`` is not a number in [0, 1).

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.recurrent_dropout(jaxrnn.LSTM(4), 0.25)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs, key = jax.numpy.ones((5, 2, 3)), jax.random.key(1)
        >>> jaxrnn.unroll(layer, params, xs, key=key)[1].shape
        (5, 2, 4)
    """
    check_cell(cell)
    if (
        not isinstance(cell, Cell)
        or "recurrent_h" not in inspect.signature(cell.step).parameters
    ):
        raise TypeError(
            f"recurrent_dropout: {type(cell).__name__} is not a cell whose step takes "
            f"recurrent_h, so it is unknown where its state is multiplied by the "
            f"recurrent weights. Wrap a cell (inside a stack), or write step(self, "
            f"params, carry, z, *, recurrent_h=None) and use recurrent_h in place of h "
            f"before the recurrent kernel"
        )
    return RecurrentDropout(cell, _check_rate("recurrent_dropout", rate))


def zoneout(cell: Cell, rate: float | tuple[float, ...]) -> Zoneout:
    """Let each unit of the carry keep its old value with probability ``rate``::

        s_t = m_t * s_{t-1} + (1 - m_t) * step(s_{t-1}, x_t),   m_t ~ Bernoulli(rate)

    Krueger et al. (2017, arXiv:1606.01305). `inference` uses the expectation instead of
    a draw: ``rate * s_{t-1} + (1 - rate) * step(...)``. Integers, flags and keys in the
    carry, which have no expectation, are taken from the step in both cases. Parameters
    and carry are those of ``cell``.

    Args:
        cell: a cell.
        rate: the probability, in [0, 1): one number for every floating-point leaf of
            the carry, or a tuple with one for each of them, (h, c) for an LSTM. For
            `SLSTM` and `MLSTM` only h may have a rate other than 0.

    Returns:
        A layer for `unroll` and `stack` that requires a key.

    Raises:
        TypeError: if ``cell`` is no cell.
        ValueError: if a rate is not a number in [0, 1), or not allowed for the cell.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.zoneout(jaxrnn.LSTM(4), (0.05, 0.5))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs, key = jax.numpy.ones((5, 2, 3)), jax.random.key(1)
        >>> jaxrnn.unroll(layer, params, xs, key=key)[1].shape
        (5, 2, 4)
    """
    check_cell(cell)
    if not isinstance(cell, Cell):
        raise TypeError(
            f"zoneout wraps a cell, but got the layer {type(cell).__name__}: wrap the "
            f"cells inside it"
        )
    rates = rate if isinstance(rate, tuple) else (rate,)
    if not rates:
        raise ValueError(
            "zoneout: the rate is an empty tuple; give one rate, or one for each part "
            "of the carry"
        )
    for one_rate in rates:
        _check_rate("zoneout", one_rate)
    if cell.shares_scale and (len(rates) == 1 or any(rates[1:])):
        raise ValueError(
            f"zoneout: the memory, n and m of {type(cell).__name__} share a scale, so "
            f"only h may keep old values: give h alone a rate, (0.1, 0.0, 0.0, 0.0)"
        )
    return Zoneout(cell, rates)


def state_noise(cell: Cell, std: float) -> StateNoise:
    """Add Gaussian noise to the state after each step::

        h_t = (h of step(s_{t-1}, x_t)) + std * e_t,    e_t ~ N(0, 1)

    The noise enters h, or a carry that is one array, so the next step and the output
    see it, and it accumulates as the cell lets it. Every unit, sequence and step has a
    draw of its own; a complex h has ``E|e|^2 = 1``. A masked step holds the carry and
    adds nothing, and neither does a reset to the initial carry. `inference` is the cell
    without noise. Parameters and carry are those of ``cell``.

    For the `jaxrnn.cells.CTRNN` of Song, Yang & Wang (2016), whose currents have the
    standard deviation sigma without input, ``std = sqrt(2 dt / tau) * sigma``.

    Args:
        cell: a cell with a part h of its carry, or a carry that is one array.
        std: the standard deviation of the noise, at least 0.

    Returns:
        A layer for `unroll` and `stack` that requires a key. If the cell is linear in
        its state, so is the noisy one, and `jaxrnn.Associative` runs it.

    Raises:
        TypeError: if ``cell`` is no cell; in `unroll`, if its carry has no
            floating-point h.
        ValueError: if ``std`` is not a finite number of at least 0.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.state_noise(jaxrnn.cells.CTRNN(4), 0.1)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs, key = jax.numpy.ones((5, 2, 3)), jax.random.key(1)
        >>> jaxrnn.unroll(layer, params, xs, key=key)[1].shape
        (5, 2, 4)
    """
    check_cell(cell)
    if not isinstance(cell, Cell):
        raise TypeError(
            f"state_noise wraps a cell, but got the layer {type(cell).__name__}: wrap "
            f"the cells inside it"
        )
    if (
        isinstance(std, bool)
        or not isinstance(std, numbers.Real)
        or not 0 <= float(std) < math.inf
    ):
        raise ValueError(
            f"state_noise: std must be a finite number of at least 0, the standard "
            f"deviation of the noise, but it is {std!r}"
        )
    return StateNoise(cell, float(std))


def inference(layer: Cell | Layer) -> Cell | Layer:
    """Return the deterministic version of a cell or layer, with the same parameters.

    Dropout becomes the identity, zoneout its expectation, and state noise zero. Use it
    to evaluate what was trained with noise; the result does not take a key.

    Args:
        layer: a cell or layer; a cell is returned as it is.

    Returns:
        The layer without randomness, which has the same parameters.

    Raises:
        TypeError: if ``layer`` is no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.dropout(0.2))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> model = jaxrnn.inference(layer)
        >>> jaxrnn.unroll(model, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 4)
    """
    check_cell(layer)

    def convert(value):
        if isinstance(value, tuple):
            return tuple(convert(v) for v in value)
        return inference(value) if isinstance(value, (Cell, Layer)) else value

    if isinstance(layer, Cell):
        return layer
    changed: Any = layer
    changes = {name: convert(value) for name, value in fields_of(layer).items()}
    if isinstance(layer, StochasticLayer):
        changes["drawing"] = False
    return dataclasses.replace(changed, **changes)


def _check_rate(what: str, rate: Any) -> float:
    """Convert a rate to float, and check that it is in [0, 1)."""
    if (
        isinstance(rate, bool)
        or not isinstance(rate, numbers.Real)
        or not 0 <= float(rate) < 1
    ):
        raise ValueError(
            f"{what}: the rate must be a number in [0, 1), the share that is dropped, "
            f"but it is {rate!r}"
        )
    return float(rate)


class StochasticLayer(Layer):
    """A layer that draws random numbers while its field ``drawing`` is True."""

    drawing: bool
    # Dropout only multiplies its inputs, and the products become zero at masked steps.
    reads_inputs: ClassVar[bool] = False

    @property
    def requires_key(self) -> bool:
        return self.drawing


@dataclasses.dataclass(frozen=True)
class Dropout(StochasticLayer):
    """The layer that `dropout` builds; it has no parameters and no carry.

    Attributes:
        rate: the probability that a feature is zeroed.
        variational: whether one mask is used at every step.
        drawing: whether random numbers are drawn; `inference` sets it to False.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.dropout(0.5, variational=True)
        >>> _, ys = jaxrnn.unroll(layer, {}, jnp.ones((4, 16)), key=jax.random.key(0))
        >>> bool((ys == ys[:1]).all()), sorted(set(ys[0].tolist()))
        (True, [0.0, 2.0])
        >>> layer.requires_key, jaxrnn.inference(layer).requires_key
        (True, False)
    """

    rate: float
    variational: bool = False
    drawing: bool = True
    # It takes inputs of any kind.
    feature_ndim: ClassVar[None] = None  # type: ignore[assignment]

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        return {}

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> tuple[()]:
        return ()

    def unroll(
        self,
        params: Params,
        carry: tuple[()],
        xs: Inputs,
        spec: UnrollSpec,
    ):
        if not self.drawing:
            return (), xs, ()
        check_one_array("dropout", xs)
        shape = xs.shape[1:] if self.variational else xs.shape
        key = spec.key if self.variational else spec.key_of_steps
        return (), drop(key, self.rate, xs, shape), ()

    def output_features(self, params: Params, input_size: int) -> int | None:
        return input_size

    def output(self, params: Params, carry: tuple[()], x: Inputs) -> Array:
        if self.drawing:
            raise ValueError(
                "dropout draws random numbers, so its output is not a function of its "
                "carry; use jaxrnn.inference"
            )
        return x


@dataclasses.dataclass(frozen=True)
class StochasticCellLayer(StochasticLayer):
    """Noise inside a cell's recurrence, with the parameters and carry of the cell."""

    cell: Cell

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        return init_in(self.cell, key, input_size, dtype)

    def check(self, params: Params) -> None:
        self.cell.check(params)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.cell.initial_carry(params, batch_shape, dtype)

    def output_features(self, params: Params, input_size: int) -> int | None:
        return self.cell.output_features(params, input_size)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return self.cell.output(params, carry, x)


@dataclasses.dataclass(frozen=True)
class RecurrentDropout(StochasticCellLayer):
    """The layer that `recurrent_dropout` builds: dropout of what the recurrence reads.

    Attributes:
        cell: the cell.
        rate: the probability that a unit of h is dropped.
        drawing: whether random numbers are drawn; `inference` sets it to False.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.recurrent_dropout(jaxrnn.Elman(4), 0.25)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
        >>> _, ys = jaxrnn.unroll(jaxrnn.inference(layer), params, xs)
        >>> bool((ys == jaxrnn.unroll(layer.cell, params, xs)[1]).all())
        True
    """

    rate: float
    drawing: bool = True

    def unroll(self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec):
        if not self.drawing:
            return unroll_unchecked(self.cell, params, carry, xs, spec)
        cell, params = bind_context(self.cell, params, spec.context)
        h = hidden_of(carry)
        if not is_array(h) or not is_real(h):
            raise TypeError(
                f"recurrent_dropout: the carry of {type(self.cell).__name__} is "
                f"{describe_tree(carry)}, but the recurrent weights multiply its part "
                f"named h, or a carry that is one array: make it a NamedTuple with a "
                f"floating-point part h"
            )
        scale = drop(spec.key, self.rate, jnp.ones_like(h), h.shape)
        return unroll_unchecked(
            MaskedRecurrence(cell),
            (params, scale),
            carry,
            xs,
            spec.replace(key=None),
        )


@dataclasses.dataclass(frozen=True)
class Zoneout(StochasticCellLayer):
    """The layer that `zoneout` builds: units that keep their old values at random.

    Attributes:
        cell: the cell.
        rates: one probability for all floating-point leaves of the carry, or one for
            each.
        drawing: whether random numbers are drawn; `inference` sets it to False.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.zoneout(jaxrnn.GRU(4), 0.25)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs = jax.random.normal(jax.random.key(1), (1, 2, 3))  # one step, from zero
        >>> mean, _ = jaxrnn.unroll(jaxrnn.inference(layer), params, xs)
        >>> new, _ = jaxrnn.unroll(layer.cell, params, xs)
        >>> layer.rates, bool(jnp.allclose(mean, 0.75 * new))
        ((0.25,), True)
    """

    rates: tuple[float, ...]
    drawing: bool = True

    def unroll(self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec):
        leaves = [leaf for leaf in jax.tree.leaves(carry) if is_real(leaf)]
        if len(self.rates) not in (1, len(leaves)):
            raise ValueError(
                f"zoneout: {len(self.rates)} rates were given, but the carry of "
                f"{type(self.cell).__name__} has {len(leaves)} floating-point parts: "
                f"give one rate, or one for each"
            )
        rates = self.rates * len(leaves) if len(self.rates) == 1 else self.rates
        cell, params = bind_context(self.cell, params, spec.context)
        if not self.drawing:
            return unroll_unchecked(Averaged(cell, rates), params, carry, xs, spec)
        steps = jax.tree.leaves(xs)[0].shape[0]
        keys = jax.random.split(spec.key, len(leaves))
        # Masks (T, *B, H) are drawn for all steps at once and enter as inputs.
        keep_old = [
            jax.random.bernoulli(k, r, (steps, *a.shape))
            for k, r, a in zip(keys, rates, leaves, strict=True)
        ]
        return unroll_unchecked(
            ZonedOut(cell),
            params,
            carry,
            (xs, tuple(keep_old)),
            spec.replace(key=None),
        )


@dataclasses.dataclass(frozen=True)
class StateNoise(StochasticCellLayer):
    """The layer that `state_noise` builds: a cell with Gaussian noise on its state.

    Attributes:
        cell: the cell.
        std: the standard deviation of the noise.
        drawing: whether random numbers are drawn; `inference` sets it to False.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.state_noise(jaxrnn.MinGRU(500), 0.1)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs = jax.random.normal(jax.random.key(1), (1, 3))  # one step
        >>> noisy, _ = jaxrnn.unroll(layer, params, xs, key=jax.random.key(2))
        >>> quiet, _ = jaxrnn.unroll(jaxrnn.inference(layer), params, xs)
        >>> f"{(noisy - quiet).std():.1f}"
        '0.1'
    """

    std: float
    drawing: bool = True

    def unroll(self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec):
        if not self.drawing:
            return unroll_unchecked(self.cell, params, carry, xs, spec)
        h = hidden_of(carry)
        if not is_array(h) or not is_real(h):
            raise TypeError(
                f"state_noise: the carry of {type(self.cell).__name__} is "
                f"{describe_tree(carry)}, but noise is added to its part named h, or "
                f"to a carry that is one array: make it a NamedTuple with a "
                f"floating-point part h"
            )
        cell, params = bind_context(self.cell, params, spec.context)
        noisy = NoisyLinear if has_affine(cell) else Noisy
        # Noise (T, *B, H) is drawn for all steps at once and enters as an input.
        shape = (jax.tree.leaves(xs)[0].shape[0], *h.shape)
        noise = self.std * jax.random.normal(spec.key_of_steps, shape, h.dtype)
        return unroll_unchecked(
            noisy(cell), params, carry, (xs, noise), spec.replace(key=None)
        )
