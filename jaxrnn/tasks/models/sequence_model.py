"""The model of tasks with independent sequences: recurrent layers and a readout."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Params
from ...initializers import FixedNormal, LecunNormal
from ...layers.compose import output_size
from ...unrolling import truncated_unroll, unroll
from .readout import read_out, with_bias


class Batch(NamedTuple):
    """Sequences and their targets, time first.

    Attributes:
        inputs: ``(T, *B, D)``, or numbers of tokens ``(T, *B)``.
        targets: class numbers or real values.
        counts: the steps whose loss counts.
        answers: the steps whose predictions are scored (None: as ``counts``).
        mask: the valid steps (None: all).
        part: the number of the part of the data that the prediction of a step belongs
            to, for scores of each part (None: there are no parts).
    """

    inputs: Num[Array, "*TBD"]
    targets: Num[Array, "T *B"]
    counts: Bool[Array, "T *B"]
    answers: Bool[Array, "T *B"] | None = None
    mask: Bool[Array, "T *B"] | None = None
    part: Int[Array, "T *B"] | None = None


class Scores(NamedTuple):
    """Sums over a batch, from which means over several batches are computed.

    ``right`` is 0 if the targets are values instead of classes.
    """

    loss: Float[Array, ""]
    losses: Int[Array, ""]
    right: Int[Array, ""]
    answers: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class SequenceModel:
    """The model ``y_t = readout(layer(x)_t)``.

    The outputs are logits of ``classes``, or if that is 0 one value, or a vector of
    ``values``. Parameters:
    ``{"rnn": the layer's, "readout": {"kernel": (H, O), "bias": (O,)}}``, and for
    inputs that are tokens ``"embedding": (tokens, D)``.

    Args:
        layer: a cell or layer without randomness.
        input_size: the number of input features.
        classes: the number of classes, trained by cross-entropy (nats); 0 for squared
            error.
        truncate: the length of the windows at whose ends gradients stop; 0 for full
            BPTT.
        pooled: the readout gets the mean of the layer's outputs over all valid steps,
            at every step the same.
        tokens: if it is not 0, the inputs are numbers below it, each of which has a
            vector of ``input_size`` features.
        values: the length of targets ``(T, *B, values)`` that are vectors; 0 for
            numbers.
    """

    layer: Cell | Layer
    input_size: int
    classes: int
    truncate: int = 0
    pooled: bool = False
    tokens: int = 0
    values: int = 0

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        k_rnn, k_readout = jax.random.split(key)
        rnn = self.layer.init(k_rnn, self.input_size)
        size = output_size(self.layer, rnn, self.input_size)
        shape = (size, self.classes or self.values or 1)
        kernel = LecunNormal()(k_readout, shape, jnp.result_type(float))
        params = {"rnn": rnn, "readout": with_bias(kernel)}
        if self.tokens:
            k_embedding, shape = (
                jax.random.fold_in(key, 2),
                (self.tokens, self.input_size),
            )
            params["embedding"] = FixedNormal(1.0)(k_embedding, shape, kernel.dtype)
        return params

    def embed(self, params: Params, xs: Num[Array, "*TB"]) -> Float[Array, "*TBD"]:
        """Return the vectors of tokens; other inputs as they are."""
        return params["embedding"][xs] if self.tokens else xs

    def __call__(
        self,
        params: Params,
        xs: Num[Array, "*TBD"],
        mask: Bool[Array, "T *B"] | None = None,
    ) -> Float[Array, "T *B O"]:
        """Return the outputs of every step."""
        xs = self.embed(params, xs)
        if self.truncate:
            result = truncated_unroll(
                self.layer, params["rnn"], xs, window=self.truncate, mask=mask
            )
        else:
            result = unroll(self.layer, params["rnn"], xs, mask=mask)
        ys = result[1]
        if self.pooled:  # the outputs of masked steps are zero
            steps = (
                ys.shape[0]
                if mask is None
                else jnp.maximum(mask.sum(0), 1)[..., None].astype(ys.dtype)
            )
            ys = jnp.broadcast_to((ys.sum(0) / steps)[None], ys.shape)
        return self.read(params, ys)

    def read(self, params: Params, ys: Float[Array, "*TB H"]) -> Float[Array, "*TB O"]:
        """Apply the readout to the layer's outputs."""
        return read_out(params["readout"], ys)

    def losses(
        self, outputs: Float[Array, "..."], targets: Num[Array, "*TBN"]
    ) -> Float[Array, "*TBN"]:
        """Return squared errors, or cross-entropies in nats."""
        if self.classes:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return jnp.square((outputs if self.values else outputs[..., 0]) - targets)

    def loss(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Return the sum and the number of the losses, for `make_batch_step`."""
        scores = self.scores(params, batch)
        return scores.loss, scores.losses

    def scores(self, params: Params, batch: Batch) -> Scores:
        """Return sums over the steps that count, and over the steps that are scored."""
        outputs = self(params, batch.inputs, batch.mask)
        loss = jnp.where(batch.counts, self.losses(outputs, batch.targets), 0).sum()
        right, scored = self._right(outputs, batch)
        return Scores(loss, batch.counts.sum(), right.sum(), scored.sum())

    def scores_of_parts(
        self, params: Params, batch: Batch, count: int
    ) -> tuple[Int[Array, " P"], Int[Array, " P"]]:
        """Return the numbers of right and of all answers in each of ``count`` parts."""
        if batch.part is None:
            raise TypeError("the batch has no parts")
        right, scored = self._right(self(params, batch.inputs, batch.mask), batch)
        of_part = jax.nn.one_hot(batch.part, count, dtype=bool)
        axes = tuple(range(right.ndim))
        return (
            (of_part & right[..., None]).sum(axes),
            (of_part & scored[..., None]).sum(axes),
        )

    def _right(
        self, outputs: Float[Array, "..."], batch: Batch
    ) -> tuple[Bool[Array, "T *B"], Bool[Array, "T *B"]]:
        """Return where an answer is right, and where one is scored."""
        scored = batch.counts if batch.answers is None else batch.answers
        if not self.classes:
            return jnp.zeros_like(scored), scored
        return scored & (outputs.argmax(-1) == batch.targets), scored
