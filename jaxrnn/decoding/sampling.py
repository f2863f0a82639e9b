"""Sampling of sequences by one-step calls of a model inside one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from ..core.arrays import is_array
from ..core.exported import register_for_export
from ..core.types import Carry
from ..core.validation import check_carry, describe
from ..core.weak_scalars import Number, Size, as_number, as_size


@register_for_export
class Generated(NamedTuple):
    """The result of `generate`.

    Attributes:
        tokens: ``(N, *B)``, the tokens written.
        logits: ``(N, *B, V)``, those from which each was drawn, before temperature and
            top-k.
        carry: the state after the last token that was read; the last one generated has
            not been read yet.

    Example:
        >>> import jax
        >>> def step(carry, token):  # a model that counts modulo 5
        ...     return carry, jax.nn.one_hot((token + 1) % 5, 5)
        >>> result = generate(step, (), jax.numpy.array([[2]]), 4, temperature=0)
        >>> result.logits.shape
        (4, 1, 5)
        >>> bool((result.logits.argmax(-1) == result.tokens).all())
        True
    """

    tokens: Integer[Array, "N *B"]
    logits: Float[Array, "N *B V"]
    carry: Carry


def generate(
    step: Callable[[Carry, Integer[Array, "*B"]], tuple[Carry, Float[Array, "*B V"]]],
    carry: Carry,
    prompt: Integer[Array, "P *B"],
    length: Size,
    *,
    temperature: Number = 1.0,
    top_k: Size | None = None,
    key: Array | None = None,
) -> Generated:
    """Read ``prompt``, then write ``length`` tokens, each the input of the next step.

    A token is drawn from ``softmax(logits / temperature)`` over the ``top_k`` likeliest
    symbols (default: all). For the likeliest sequence instead of a random one, use
    `beam_search`.

    Args:
        step: one streaming step of a model, ``step(carry, token) -> (carry, logits)``
            with tokens ``(*B)`` and logits ``(*B, V)``.
        carry: the state before the prompt.
        prompt: ``(P, *B)`` integers, P >= 1.
        length: N, the number of tokens to write.
        temperature: 0 takes the likeliest symbol at each step and needs no key. The
            temperature may be traced, as an argument of a compiled function; then a key
            is required, and 0 takes the likeliest symbol all the same.
        top_k: the number of the likeliest symbols that may be drawn (default: V).
        key: a `jax.random` key, required if the temperature is above 0.

    Returns:
        `Generated` (tokens, logits, carry).

    Raises:
        TypeError, ValueError: for an empty or non-integer prompt, a negative
            temperature, a top_k outside [1, V], a missing or an unused key.

    Example::

        >>> import jax
        >>> def step(carry, token):  # a model that counts modulo 5
        ...     return carry, jax.nn.one_hot((token + 1) % 5, 5)
        >>> prompt = jax.numpy.array([[2]])
        >>> generate(step, (), prompt, 4, temperature=0).tokens[:, 0].tolist()
        [3, 4, 0, 1]
    """
    length, temperature = (
        as_size("generate", "length", length),
        as_number("generate", "temperature", temperature),
    )
    top_k = None if top_k is None else as_size("generate", "top_k", top_k)
    is_static = not isinstance(temperature, jax.core.Tracer)
    _check(prompt, temperature if is_static else 1.0, top_k, key)
    P, prompt = prompt.shape[0], jnp.asarray(prompt, jnp.int32)

    # One scan over the prompt and the generated tokens: steps 0 to P - 1 read the
    # prompt, later ones the token of the step before. Step P - 1 writes the first token
    # that is returned.
    def body(scan_carry, inputs):
        carry, last_token = scan_carry
        index, prompt_token, key = inputs
        carry, logits = step(carry, jnp.where(index < P, prompt_token, last_token))
        token = _choose_token(logits, key, temperature, top_k)
        return (carry, token), (token, logits)

    new = jax.eval_shape(lambda c: step(c, prompt[0])[0], carry)
    check_carry(
        "generate",
        new,
        jax.eval_shape(lambda c: c, carry),
        "the carry that step returns",
    )
    steps = P + length - 1
    keys = None if key is None else jax.random.split(key, steps)
    padded_prompt = jnp.concatenate(
        [prompt, jnp.zeros((length - 1, *prompt.shape[1:]), prompt.dtype)]
    )
    (carry, _), (tokens, logits) = jax.lax.scan(
        body, (carry, prompt[0]), (jnp.arange(steps), padded_prompt, keys)
    )
    return Generated(tokens[P - 1 :], logits[P - 1 :], carry)


def _choose_token(
    logits: Float[Array, "*B V"],
    key: Any,
    temperature: Number,
    top_k: int | None,
) -> Integer[Array, "*B"]:
    """Take the likeliest token at temperature 0, and draw one otherwise."""
    least = 1e-30  # a smaller temperature could round to 0 in float32
    if not isinstance(temperature, jax.core.Tracer):
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _draw_token(logits, key, max(temperature, least), top_k)
    # A traced temperature decides at run time, so both results are computed.
    traced = jnp.maximum(jnp.asarray(temperature, logits.dtype), least)
    drawn = _draw_token(logits, key, traced, top_k)
    likeliest = jnp.argmax(logits, axis=-1).astype(drawn.dtype)
    return jnp.where(temperature == 0, likeliest, drawn)


def _draw_token(
    logits: Float[Array, "*B V"],
    key: Any,
    temperature: Number,
    top_k: int | None,
) -> Integer[Array, "*B"]:
    """Draw from ``softmax(logits / temperature)`` over the ``top_k`` likeliest tokens.

    The largest logit is subtracted before the division, which could otherwise overflow
    at a small temperature.
    """
    if top_k is None:
        centered = logits - logits.max(-1, keepdims=True)
        drawn = jax.random.categorical(key, centered / temperature, axis=-1)
        return drawn.astype(jnp.int32)
    if top_k > logits.shape[-1]:
        raise ValueError(
            f"generate: top_k = {top_k} is more than the {logits.shape[-1]} symbols "
            "there are"
        )
    likeliest, tokens = jax.lax.top_k(logits, top_k)
    drawn = jax.random.categorical(
        key, (likeliest - likeliest[..., :1]) / temperature, axis=-1
    )
    token = jnp.take_along_axis(tokens, drawn[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32)


def _check(prompt, temperature, top_k, key):
    """Check the prompt, and that top_k and key fit the temperature."""
    if (
        not is_array(prompt)
        or not jnp.issubdtype(prompt.dtype, jnp.integer)
        or prompt.ndim < 1
    ):
        raise TypeError(
            f"generate: the prompt must be an integer array (P, *B), but it is "
            f"{describe(prompt)}"
        )
    if prompt.shape[0] < 1:
        raise ValueError(
            "generate: the prompt is empty; give at least one token to begin from"
        )
    if temperature == 0 and top_k is not None:
        raise ValueError(
            "generate: at temperature 0 nothing is drawn, so leave top_k out"
        )
    if temperature > 0 and key is None:
        raise ValueError(
            "generate: drawing at a temperature above 0 needs key=jax.random.key(...)"
        )
    if temperature == 0 and key is not None:
        raise ValueError(
            "generate: at temperature 0 nothing is drawn, so leave the key out"
        )
