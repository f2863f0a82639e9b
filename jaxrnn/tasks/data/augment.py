"""Random distortion of images: as of another typeface, or a slight one of the shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pictures = Float[Array, "B S S 1"]


def augmented(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Distort images as another typeface does: strokes, serifs and shapes.

    The images are bright on dark; a strength of 0 leaves them unchanged.
    """
    k_strokes, k_serifs, k_warp = jax.random.split(key, 3)
    # XLA would fuse the parts and compute each pixel again for everything that reads
    # it: on a CPU the barriers make the whole three times as fast.
    apart = jax.lax.optimization_barrier
    drawn = apart(with_strokes(k_strokes, pictures, strength))
    drawn = apart(with_serifs(k_serifs, drawn, strength))
    return warped(k_warp, drawn, strength)


def half_warped(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Warp each image slightly, or leave it sharp, as a coin decides.

    Images that are all drawn alike are learned faster so: interpolation blurs lines,
    and those to be captioned are sharp.
    """
    k_coin, k_warp = jax.random.split(key)
    chosen = jax.random.bernoulli(k_coin, 0.5, (pictures.shape[0], 1, 1, 1))
    return jnp.where(chosen, warped(k_warp, pictures, 0.4 * strength), pictures)


def with_strokes(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Make strokes thicker in some places and thinner in others.

    Each axis has its own change, so that vertical and horizontal strokes differ in
    weight.
    """
    k_whole, k_local = jax.random.split(key)
    n, size = pictures.shape[:2]
    whole = jax.random.uniform(k_whole, (n, 1, 1, 2), pictures.dtype, -1.0, 1.0)
    shares = (
        0.8 * strength * jnp.clip(whole + smooth(k_local, n, size, 4, 2), -1.0, 1.0)
    )
    for axis, share in ((2, shares[..., :1]), (1, shares[..., 1:])):
        beside = jnp.roll(pictures, 1, axis), jnp.roll(pictures, -1, axis)
        thick = jnp.maximum(pictures, jnp.maximum(*beside))
        thin = jnp.minimum(pictures, jnp.minimum(*beside))
        change = jnp.where(
            share > 0, share * (thick - pictures), -0.75 * share * (thin - pictures)
        )
        pictures = pictures + change
    return pictures


def with_serifs(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Add short horizontal lines at the ends of vertical strokes.

    Three of five images get them, with varying brightness.
    """
    k_amount, k_which, k_local = jax.random.split(key, 3)
    n, size = pictures.shape[:2]
    amount = strength * jax.random.uniform(k_amount, (n, 1, 1, 1), pictures.dtype)
    amount = jnp.where(
        jax.random.bernoulli(k_which, 0.6, amount.shape), amount, jnp.zeros_like(amount)
    )
    amount = amount * jnp.clip(1 + smooth(k_local, n, size, 4, 1), 0.0, 1.0)
    drawn = pictures
    for down in (1, -1):  # strokes that end at their bottom, and at their top
        along = [jnp.roll(pictures, down * step, 1) for step in range(4)]
        beyond = jnp.maximum(
            jnp.roll(pictures, -down, 1), jnp.roll(pictures, -2 * down, 1)
        )
        ends = jnp.maximum(jnp.stack(along).min(0) - beyond, 0.0)
        line = jnp.stack([jnp.roll(ends, step, 2) for step in range(-2, 3)]).max(0)
        drawn = jnp.maximum(drawn, amount * line)
    return drawn


def warped(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Scale, shear, shift and bend images by bilinear interpolation; 0 outside.

    At strength 1, the scale of each axis is in [.85, 1.15], the shear is up to .15, the
    shift up to a sixteenth of the side, and a smooth field moves each pixel by about
    one pixel.
    """
    k_whole, k_local = jax.random.split(key)
    n, size = pictures.shape[:2]
    center = (size - 1) / 2
    tall, wide, slant, lean, down, right = strength * jax.random.uniform(
        k_whole, (6, n, 1, 1), pictures.dtype, -1.0, 1.0
    )
    rows, columns = (
        jax.lax.broadcasted_iota(pictures.dtype, (n, size, size), axis) - center
        for axis in (1, 2)
    )
    bend = 1.2 * strength * smooth(k_local, n, size, 5, 2)
    at_rows = (
        (1 + 0.15 * tall) * rows
        + 0.05 * lean * columns
        + center
        + size / 16 * down
        + bend[..., 0]
    )
    at_columns = (
        (1 + 0.15 * wide) * columns
        + 0.15 * slant * rows
        + center
        + size / 16 * right
        + bend[..., 1]
    )

    def read(picture: Array, *at: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(picture, at, order=1, mode="constant")

    return jax.vmap(read)(pictures[..., 0], at_rows, at_columns)[..., None]


def smooth(
    key: Array, n: int, size: int, points: int, fields: int
) -> Float[Array, "B S S F"]:
    """Return slowly changing random fields, mostly in [-1, 1].

    They interpolate ``points`` random values along each side by cubic interpolation.
    """
    drawn = jax.random.uniform(
        key, (n, points, points, fields), minval=-1.0, maxval=1.0
    )
    return jax.image.resize(drawn, (n, size, size, fields), "cubic")
