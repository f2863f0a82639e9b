"""The model of every task whose sequences start anew with each batch: recurrent
layers and a linear readout of each step.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num

from ...cells.ops import along, dense
from ...core.cell import Cell, Layer, Params
from ...initializers import LecunNormal
from ...layers.compose import output_size
from ...unrolling import truncated_unroll, unroll


class Batch(NamedTuple):
    """Sequences with what is wanted of them at each step; time leads.

    ``counts`` marks the steps whose loss counts, ``answers`` those whose answers are
    scored (None: the same steps), ``mask`` the steps that are no padding (None: all).
    ``targets`` are class numbers, or values.
    """

    inputs: Float[Array, "T *B D"]
    targets: Num[Array, "T *B"]
    counts: Bool[Array, "T *B"]
    answers: Bool[Array, "T *B"] | None = None
    mask: Bool[Array, "T *B"] | None = None


class Scores(NamedTuple):
    """Sums over a batch, for means over several; ``right`` is 0 where values, not
    classes, are wanted.
    """

    loss: Float[Array, ""]
    losses: Int[Array, ""]
    right: Int[Array, ""]
    answers: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class SequenceModel:
    """``y_t = readout(layer(x)_t)``: logits of ``classes``, or for ``classes = 0`` one
    value.

    Parameters: ``{"rnn": the layer's, "readout": {"kernel": (H, O), "bias": (O,)}}``.

    Args:
        layer: a cell or layer that draws nothing.
        input_size: features of the inputs.
        classes: 0 trains by squared error, else by cross-entropy (nats).
        truncate: gradients stop at the ends of windows of so many steps; 0: full BPTT.
        pooled: the mean of the layer's outputs over all steps that are no padding is
            read, at every step the same.
    """

    layer: Cell | Layer
    input_size: int
    classes: int
    truncate: int = 0
    pooled: bool = False

    def init(self, key: Array) -> Params:
        """Draw parameters."""
        k_rnn, k_readout = jax.random.split(key)
        rnn = self.layer.init(k_rnn, self.input_size)
        shape = (output_size(self.layer, rnn, self.input_size), self.classes or 1)
        kernel = LecunNormal()(k_readout, shape, jnp.result_type(float))
        return {
            "rnn": rnn,
            "readout": {"kernel": kernel, "bias": jnp.zeros_like(kernel[0])},
        }

    def __call__(
        self,
        params: Params,
        xs: Float[Array, "T *B D"],
        mask: Bool[Array, "T *B"] | None = None,
    ) -> Float[Array, "T *B O"]:
        """The outputs of every step."""
        if self.truncate:
            walked = truncated_unroll(
                self.layer, params["rnn"], xs, window=self.truncate, mask=mask
            )
        else:
            walked = unroll(self.layer, params["rnn"], xs, mask=mask)
        ys = walked[1]
        if self.pooled:  # padding puts out zeros
            steps = (
                ys.shape[0]
                if mask is None
                else jnp.maximum(mask.sum(0), 1)[..., None].astype(ys.dtype)
            )
            ys = jnp.broadcast_to((ys.sum(0) / steps)[None], ys.shape)
        return self.read(params, ys)

    def read(self, params: Params, ys: Float[Array, "*TB H"]) -> Float[Array, "*TB O"]:
        """The readout of the layer's outputs."""
        outputs = dense(ys, params["readout"]["kernel"])
        return outputs + along(params["readout"]["bias"], outputs)

    def losses(
        self, outputs: Float[Array, "*TB O"], targets: Num[Array, "*TB"]
    ) -> Float[Array, "*TB"]:
        """Squared errors, or cross-entropies in nats."""
        if self.classes:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return jnp.square(outputs[..., 0] - targets)

    def loss(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """The sum of the losses that count, and their number, as
        `jaxrnn.training.make_batch_step` wants them.
        """
        scores = self.scores(params, batch)
        return scores.loss, scores.losses

    def scores(self, params: Params, batch: Batch) -> Scores:
        """Sums over the steps that count, and over those whose answers are scored."""
        outputs = self(params, batch.inputs, batch.mask)
        loss = jnp.where(batch.counts, self.losses(outputs, batch.targets), 0).sum()
        asked = batch.counts if batch.answers is None else batch.answers
        right = (
            asked & (outputs.argmax(-1) == batch.targets)
            if self.classes
            else jnp.zeros_like(asked)
        )
        return Scores(loss, batch.counts.sum(), right.sum(), asked.sum())
