"""Pictures as another hand or typeface might have drawn them: strokes, serifs and
shape distorted, all drawn by a key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pictures = Float[Array, "B S S 1"]


def augmented(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Pictures, bright on dark, with other strokes, some with serifs, and warped; at
    strength 0 as they were.
    """
    k_strokes, k_serifs, k_warp = jax.random.split(key, 3)
    drawn = with_serifs(k_serifs, with_strokes(k_strokes, pictures, strength), strength)
    return warped(k_warp, drawn, strength)


def with_strokes(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Thicker here and thinner there, along either axis for itself: upright and
    level strokes of unlike weight.
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
    """A short level line at the ends of upright strokes, in three pictures of five,
    fainter in some places.
    """
    k_amount, k_which, k_local = jax.random.split(key, 3)
    n, size = pictures.shape[:2]
    amount = strength * jax.random.uniform(k_amount, (n, 1, 1, 1), pictures.dtype)
    amount = jnp.where(
        jax.random.bernoulli(k_which, 0.6, amount.shape), amount, jnp.zeros_like(amount)
    )
    amount = amount * jnp.clip(1 + smooth(k_local, n, size, 4, 1), 0.0, 1.0)
    found = pictures
    for down in (1, -1):  # strokes that end below, and above
        along = [jnp.roll(pictures, down * step, 1) for step in range(4)]
        beyond = jnp.maximum(
            jnp.roll(pictures, -down, 1), jnp.roll(pictures, -2 * down, 1)
        )
        ends = jnp.maximum(jnp.stack(along).min(0) - beyond, 0.0)
        line = jnp.stack([jnp.roll(ends, step, 2) for step in range(-2, 3)]).max(0)
        found = jnp.maximum(found, amount * line)
    return found


def warped(key: Array, pictures: Pictures, strength: float) -> Pictures:
    """Scaled, sheared, shifted and bent: bilinear interpolation, 0 outside the picture.

    At strength 1: scales in [.85, 1.15] for each axis, a shear of up to .15, shifts of
    up to a sixteenth of the side, and a smooth field that moves each place by about a
    pixel.
    """
    k_whole, k_local = jax.random.split(key)
    n, size = pictures.shape[:2]
    centre = (size - 1) / 2
    tall, wide, slant, lean, down, right = strength * jax.random.uniform(
        k_whole, (6, n, 1, 1), pictures.dtype, -1.0, 1.0
    )
    rows, columns = (
        jax.lax.broadcasted_iota(pictures.dtype, (n, size, size), axis) - centre
        for axis in (1, 2)
    )
    bend = 1.2 * strength * smooth(k_local, n, size, 5, 2)
    at_rows = (
        (1 + 0.15 * tall) * rows
        + 0.05 * lean * columns
        + centre
        + size / 16 * down
        + bend[..., 0]
    )
    at_columns = (
        (1 + 0.15 * wide) * columns
        + 0.15 * slant * rows
        + centre
        + size / 16 * right
        + bend[..., 1]
    )

    def read(picture: Array, *at: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(picture, at, order=1, mode="constant")

    return jax.vmap(read)(pictures[..., 0], at_rows, at_columns)[..., None]


def smooth(
    key: Array, n: int, size: int, points: int, fields: int
) -> Float[Array, "B S S F"]:
    """Random fields, mostly in [-1, 1], that change slowly: ``points`` along a side,
    and cubic interpolation between.
    """
    drawn = jax.random.uniform(
        key, (n, points, points, fields), minval=-1.0, maxval=1.0
    )
    return jax.image.resize(drawn, (n, size, size, fields), "cubic")
