"""An image captioner: a convolutional encoder and a recurrent decoder.

The design follows Vinyals et al. 2015.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Carry
from ...decoding.beam_search import Beams
from ...unrolling import mask_from_lengths
from .attention import Memory
from .decoder import Bridge, Decoder, layers_of, shifted, total_loss


class Batch(NamedTuple):
    """Images and their captions as numbers.

    A caption ends with the boundary token, which is part of its length.
    """

    pictures: Float[Array, "B S S 1"]
    captions: Int[Array, "B T"]
    lengths: Int[Array, " B"]


class Block(nnx.Module):
    """A convolution with normalization: ``relu(normalize(convolve(x)))``.

    x is added if input and output have the same shape. Each kernel is
    standardized to mean 0 and norm 1 (Qiao et al. 2019): with group normalization this
    learns about as fast as batch normalization, and the output of an example does not
    depend on other examples.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int = 3,
        stride: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        shape = (side, side, inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.normalize = nnx.GroupNorm(outputs, num_groups=1, rngs=rngs)
        self.strides = (stride, stride)
        self.residual = inputs == outputs and stride == 1

    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B R R D"]:
        """Apply the block."""
        kernel = self.kernel[...] - self.kernel[...].mean((0, 1, 2), keepdims=True)
        kernel = kernel / jnp.sqrt((kernel**2).sum((0, 1, 2), keepdims=True) + 1e-6)
        y = jax.lax.conv_general_dilated(
            x, kernel, self.strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = nnx.relu(self.normalize(y))
        return x + y if self.residual else y


class Plan(NamedTuple):
    """The convolutions of an encoder.

    Each is the side of its kernel, its stride and its width as a multiple of
    ``channels``. After those of ``halved_after`` max pooling follows. Attention reads
    the outputs of ``read_after``, at a quarter of the side of the image, which is fine
    enough to tell one diacritic from another.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    halved_after: tuple[int, ...]
    read_after: int


# At full resolution a convolution costs as much as several later ones together.
PLANS = {
    "strided": Plan(((5, 2, 2), (3, 1, 4), (3, 1, 4), (3, 1, 8), (3, 1, 8)), (0, 2), 2),
    "full": Plan(tuple((3, 1, n) for n in (1, 2, 2, 4, 4, 8)), (0, 2, 4), 4),
}


class PictureEncoder(nnx.Module):
    """Convolutions that halve the side three times, and a dense layer.

    The outputs are the features of the whole image, and those of positions in it.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        features: int,
        plan: Plan = PLANS["strided"],
        *,
        rngs: nnx.Rngs,
    ):
        widths = [1, *(channels * times for *_, times in plan.convolutions)]
        self.blocks = nnx.List(
            [
                Block(*sizes, side, stride, rngs=rngs)
                for sizes, (side, stride, _) in zip(
                    itertools.pairwise(widths), plan.convolutions, strict=True
                )
            ]
        )
        self.halved_after, self.read_after = plan.halved_after, plan.read_after
        self.cell_size, self.features = widths[plan.read_after + 1], features
        self.dense = nnx.Linear((size // 8) ** 2 * widths[-1], features, rngs=rngs)

    def __call__(
        self, pictures: Float[Array, "B S S 1"]
    ) -> tuple[Float[Array, "B C D"], Float[Array, "B F"]]:
        """Return the features of the positions, row by row, and of the image."""
        x = cells = pictures
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.read_after:
                cells = x
            if i in self.halved_after:
                x = halved(x)
        features = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return cells.reshape(x.shape[0], -1, cells.shape[-1]), features


def halved(x: Float[Array, "B S S C"]) -> Float[Array, "B H H C"]:
    """Apply max pooling over 2x2, by slices.

    The gradient of `nnx.max_pool` is several times slower on a CPU.
    """
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


class Captioner(nnx.Module):
    """An encoder whose image features become the decoder's initial carry.

    With attention the decoder also reads the features of the positions.
    """

    def __init__(
        self,
        symbols: int,
        cell: Cell | Layer,
        *,
        picture_size: int = 32,
        channels: int = 16,
        features: int = 256,
        embed: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        attention: str = "none",
        size: int = 256,
        encoder: str = "strided",
        rngs: nnx.Rngs,
    ):
        self.boundary = symbols - 1
        self.encoder = PictureEncoder(
            picture_size, channels, features, PLANS[encoder], rngs=rngs
        )
        layer = layers_of(cell, layers, dropout)
        self.decoder = Decoder(
            symbols, layer, embed, size, attention, self.encoder.cell_size, rngs=rngs
        )
        self.bridge = Bridge(features, self.decoder, rngs=rngs)

    def encode(self, pictures: Float[Array, "B S S 1"]) -> tuple[Carry, Memory | None]:
        """Return the decoder's initial carry, and the memory of its attention."""
        cells, features = self.encoder(pictures)
        return self.bridge(features), self.decoder.memory(
            cells, jnp.ones(cells.shape[:2], bool)
        )

    def loss(self, batch: Batch, rngs: nnx.Rngs | None = None) -> tuple[Array, Array]:
        """Return the summed loss (nats) of the captions, and the number of words."""
        mask = mask_from_lengths(batch.lengths, batch.captions.shape[1]).T
        carry, memory = self.encode(batch.pictures)
        logits, _ = self.decoder(
            carry, shifted(batch.captions, self.boundary), memory, mask, rngs
        )
        return total_loss(logits, batch.captions, mask)

    def write(
        self,
        pictures: Float[Array, "B S S 1"],
        width: int,
        length: int,
        length_penalty: float,
    ) -> Beams:
        """Return the most probable captions, by beam search."""
        carry, memory = self.encode(pictures)
        return self.decoder.write(
            carry, memory, self.boundary, width, length, length_penalty
        )
