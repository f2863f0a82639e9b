"""One to many: a convolutional network reads a picture, and a recurrent decoder writes the words (Vinyals et al. 2015)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..beam import Beams
from ..cell import Carry, Cell, Layer
from ..unroll import mask_from_lengths
from .attention import Memory
from .decoder import Bridge, Decoder, layers_of, shifted, total_loss


class Batch(NamedTuple):
    """Pictures and their captions as numbers; a caption ends with the boundary symbol, which its length counts."""

    pictures: Float[Array, "B S S 1"]
    captions: Int[Array, "B T"]
    lengths: Int[Array, " B"]


class PictureEncoder(nnx.Module):
    """Three times convolution, normalisation and pooling, and a dense layer: cells of an eighth of the picture's side, and
    features of the whole.
    """

    def __init__(self, size: int, channels: int, features: int, *, rngs: nnx.Rngs):
        widths = (1, channels, 2 * channels, 4 * channels)
        pairs = list(itertools.pairwise(widths))
        self.convolutions = nnx.List([nnx.Conv(a, b, (3, 3), padding="SAME", rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.GroupNorm(b, num_groups=1, rngs=rngs) for b in widths[1:]])
        self.cell_size, self.features = widths[-1], features
        self.dense = nnx.Linear((size // 8) ** 2 * widths[-1], features, rngs=rngs)

    def __call__(self, pictures: Float[Array, "B S S 1"]) -> tuple[Float[Array, "B C D"], Float[Array, "B F"]]:
        """Cells, row by row, and features."""
        x = pictures
        for convolve, normalise in zip(self.convolutions, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(normalise(convolve(x))), (2, 2), strides=(2, 2))
        cells = x.reshape(x.shape[0], -1, x.shape[-1])
        return cells, nnx.relu(self.dense(cells.reshape(x.shape[0], -1)))


class Captioner(nnx.Module):
    """The picture's features are the decoder's first carry; with attention the decoder looks at the cells too."""

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
        rngs: nnx.Rngs,
    ):
        self.boundary = symbols - 1
        self.encoder = PictureEncoder(picture_size, channels, features, rngs=rngs)
        layer = layers_of(cell, layers, dropout)
        self.decoder = Decoder(symbols, layer, embed, size, attention, self.encoder.cell_size, rngs=rngs)
        self.bridge = Bridge(features, self.decoder, rngs=rngs)

    def encode(self, pictures: Float[Array, "B S S 1"]) -> tuple[Carry, Memory | None]:
        """The decoder's first carry, and what its attention looks at."""
        cells, features = self.encoder(pictures)
        return self.bridge(features), self.decoder.memory(cells, jnp.ones(cells.shape[:2], bool))

    def loss(self, batch: Batch, rngs: nnx.Rngs | None = None) -> tuple[Array, Array]:
        """The summed cross-entropy (nats) of the captions, and the number of their words."""
        mask = mask_from_lengths(batch.lengths, batch.captions.shape[1]).T
        carry, memory = self.encode(batch.pictures)
        logits, _ = self.decoder(carry, shifted(batch.captions, self.boundary), memory, mask, rngs)
        return total_loss(logits, batch.captions, mask)

    def write(self, pictures: Float[Array, "B S S 1"], width: int, length: int, length_penalty: float) -> Beams:
        """The likeliest captions, by beam search."""
        carry, memory = self.encode(pictures)
        return self.decoder.write(carry, memory, self.boundary, width, length, length_penalty)


def augmented(key: Array, pictures: Float[Array, "B S S 1"], strength: float) -> Float[Array, "B S S 1"]:
    """Each picture scaled, sheared and shifted a little, its strokes thinner or bolder, all drawn by ``key``.

    At strength 1: scales in [.85, 1.15] for each axis, a shear of up to .15, shifts of up to a sixteenth of the side.
    """
    k_warp, k_bold, k_blend = jax.random.split(key, 3)
    size, n = pictures.shape[1], pictures.shape[0]
    draws = strength * jax.random.uniform(k_warp, (n, 6), pictures.dtype, -1.0, 1.0)
    warped = jax.vmap(lambda picture, draw: _warp(picture, draw, size))(pictures[..., 0], draws)[..., None]
    bold = nnx.max_pool(warped, (3, 3), padding="SAME")
    thin = -nnx.max_pool(-warped, (3, 3), padding="SAME")
    share = strength * jax.random.uniform(k_blend, (n, 1, 1, 1), pictures.dtype, 0.0, 0.6)
    other = jnp.where(jax.random.bernoulli(k_bold, 0.5, (n, 1, 1, 1)), bold, thin)
    return (1 - share) * warped + share * other


def _warp(picture: Float[Array, "S S"], draw: Float[Array, " 6"], size: int) -> Float[Array, "S S"]:
    """Bilinear interpolation at ``M (place - centre) + centre + shift``, 0 outside the picture."""
    centre = (size - 1) / 2
    rows, columns = (jax.lax.broadcasted_iota(picture.dtype, picture.shape, axis) - centre for axis in (0, 1))
    tall, wide, slant, lean, down, right = draw
    at_rows = (1 + 0.15 * tall) * rows + 0.05 * lean * columns + centre + size / 16 * down
    at_columns = (1 + 0.15 * wide) * columns + 0.15 * slant * rows + centre + size / 16 * right
    return jax.scipy.ndimage.map_coordinates(picture, [at_rows, at_columns], order=1, mode="constant")
