"""The models of series: a forecast of every step, and a label of the whole."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ...cells import LTC, CfC
from ...core.layer import Layer
from ...core.types import Carry, Inputs, Params
from ...core.unroll_spec import UnrollSpec
from ...decoding import rollout
from ...initializers import LecunNormal
from ...layers import concat, dropout, inference, stack
from ...layers.compose import output_size
from ...sequences import last_output
from ...unrolling import unroll, unroll_part
from .cell_registry import make_cell
from .own_cell import CellLike
from .readout import read_out, with_bias

# The recurrent part of a forecast begins small beside the last value.
SMALL = 0.1


@dataclasses.dataclass(frozen=True)
class Timed(Layer):
    """A cell of continuous time whose elapsed time is the last of its features."""

    cell: CfC | LTC

    @property
    def feature_ndim(self) -> Any:  # type: ignore[override]
        """The feature axes: 1, unlike those of the cell."""
        return 1

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw the parameters of the cell."""
        return self.cell.init(key, input_size, dtype)

    def check(self, params: Params) -> None:
        """Check the parameters of the cell."""
        self.cell.check(params)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return the carry of the cell."""
        return self.cell.initial_carry(params, batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        """Apply the cell to features and elapsed times."""
        return unroll_part(self.cell, params, carry, (xs, xs[..., -1]), spec)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        """Return the output of the cell."""
        return self.cell.output(params, carry, (x, x[..., -1]))

    def output_features(self, params: Params, input_size: int) -> int | None:
        """Return the number of output features."""
        return self.cell.output_features(params, input_size)


def takes_elapsed_time(spec: CellLike, hidden: int) -> bool:
    """Return whether a cell takes the time since the sample before."""
    return isinstance(make_cell(spec, hidden, 1), (CfC, LTC))


def series_layer(
    spec: CellLike, hidden: int, layers: int, rate: float, length: int, timed: bool
) -> Layer:
    """Return recurrent layers with dropout after each.

    Args:
        spec: the cell.
        hidden: the number of units.
        layers: the number of recurrent layers.
        rate: the dropout rate; 0 for none.
        length: the number of steps, for chrono biases.
        timed: whether the first layer, a `CfC` or an `LTC`, takes the last feature as
            the elapsed time.
    """
    parts: list[Any] = []
    for number in range(layers):
        cell = make_cell(spec, hidden, length)
        if timed and number == 0 and isinstance(cell, (CfC, LTC)):
            cell = Timed(dataclasses.replace(cell, irregular=True))
        parts += [cell, dropout(rate)] if rate else [cell]
    return stack(*parts)


@dataclasses.dataclass(frozen=True)
class Forecaster:
    """The forecast of the next H samples after every step::

        f_t = [x_t ; h_t] W + b,    (H, K) values

    where h are the outputs of the recurrent layers over the inputs x. W begins as the
    naive forecast: it hands the last values on, and the outputs of the layers begin
    small. Parameters: ``{"rnn": the layers', "readout": {"kernel": W, "bias": b}}``.

    Args:
        layer: the recurrent layers.
        input_size: the number of features of a step.
        horizon: H.
        targets: which of the inputs are the K values that are forecast.
    """

    layer: Layer
    input_size: int
    horizon: int
    targets: tuple[int, ...]

    @property
    def with_inputs(self) -> Layer:
        """The recurrent layers with their inputs beside their outputs."""
        return concat(self.layer)

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        k_rnn, k_readout = jax.random.split(key)
        rnn = self.layer.init(k_rnn, self.input_size)
        hidden = output_size(self.layer, rnn, self.input_size)
        count = len(self.targets)
        dtype = jnp.result_type(float)
        passed = jnp.zeros((self.input_size, self.horizon, count), dtype)
        number = jnp.arange(count)
        passed = passed.at[jnp.array(self.targets), :, number].set(1)
        passed = passed.reshape(self.input_size, self.horizon * count)
        drawn = LecunNormal()(k_readout, (hidden, self.horizon * count), dtype)
        kernel = jnp.concatenate([passed, SMALL * drawn])
        return {"rnn": rnn, "readout": with_bias(kernel)}

    def __call__(
        self,
        params: Params,
        inputs: Float[Array, "T *B F"],
        mask: Bool[Array, "T *B"],
        key: Array | None = None,
    ) -> Float[Array, "T *B H K"]:
        """Return the forecasts after every step; with a key, under dropout."""
        layer = self.with_inputs if key is not None else inference(self.with_inputs)
        key = key if layer.requires_key else None
        ys = unroll(layer, params["rnn"], inputs, mask=mask, key=key)[1]
        return self.read(params, ys)

    def read(self, params: Params, ys: Float[Array, "*TB O"]) -> Any:
        """Apply the readout to inputs and outputs of the layers."""
        flat = read_out(params["readout"], ys)
        return flat.reshape(*ys.shape[:-1], self.horizon, len(self.targets))


@dataclasses.dataclass(frozen=True)
class SeriesClassifier:
    """The label of a series, where h are the outputs of the recurrent layers::

        logits = [mean over t of h_t ; last h_t] W + b

    Parameters: ``{"rnn": the layers', "readout": {"kernel": W, "bias": b}}``.

    Args:
        layer: the recurrent layers.
        input_size: the number of features of a step.
        classes: the number of labels.
    """

    layer: Layer
    input_size: int
    classes: int

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        k_rnn, k_readout = jax.random.split(key)
        rnn = self.layer.init(k_rnn, self.input_size)
        hidden = output_size(self.layer, rnn, self.input_size)
        dtype = jnp.result_type(float)
        kernel = LecunNormal()(k_readout, (2 * hidden, self.classes), dtype)
        return {"rnn": rnn, "readout": with_bias(kernel)}

    def __call__(
        self,
        params: Params,
        inputs: Float[Array, "T B F"],
        mask: Bool[Array, "T B"],
        key: Array | None = None,
    ) -> Float[Array, "B C"]:
        """Return the logits of each series; with a key, under dropout."""
        layer = self.layer if key is not None else inference(self.layer)
        key = key if layer.requires_key else None
        ys = unroll(layer, params["rnn"], inputs, mask=mask, key=key)[1]
        length = jnp.maximum(mask.sum(0), 1)
        # The outputs at masked steps are zero, and padding is at the end.
        mean = ys.sum(0) / length[:, None].astype(ys.dtype)
        last = ys[length - 1, jnp.arange(ys.shape[1])]
        pooled = jnp.concatenate([mean, last], axis=-1)
        return read_out(params["readout"], pooled)


@functools.partial(jax.jit, static_argnums=0)
def last_forecast(
    model: Forecaster, params: Params, inputs: Array, mask: Array
) -> Array:
    """Return the forecast after the last valid step of each row, ``(B, H, K)``."""
    layer = inference(model.with_inputs)
    _, y = last_output(layer, params["rnn"], inputs, mask=mask)
    return model.read(params, y)


@functools.partial(jax.jit, static_argnums=(0, 4))
def rolled_out(
    model: Forecaster, params: Params, inputs: Array, rest: Array, steps: int
) -> Array:
    """Return forecasts of more than H samples of one series, ``(H + steps, K)``.

    Beyond the horizon the model reads its own forecasts of the next sample.
    """
    layer = inference(model.with_inputs)
    carry, ys, *_ = unroll(layer, params["rnn"], inputs)

    def feed(y: Array) -> Array:
        return jnp.concatenate([model.read(params, y)[0], rest])

    first = model.read(params, ys[-1])
    rolled = rollout(layer, params["rnn"], carry, feed(ys[-1]), steps, feed=feed)
    return jnp.concatenate([first, model.read(params, rolled.outputs)[:, -1]])
