"""HGRN2: a decay for every channel of the keys, and keys that are what it forgets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.types import Params
from ..matrix import Terms
from .matrix_base import ProjectedMatrixCell, is_real, join_heads, rms_norm
from .ops import along


@dataclasses.dataclass(frozen=True)
class HGRN2(ProjectedMatrixCell):
    """HGRN2, a gated linear recurrence whose key is what the forget gate lets go::

        q, v = silu(x W_q) / sqrt(d_k), x W_v
        f = bound + (1 - bound) sigmoid(x W_f)
        S_t = Diag(f) S_{t-1} + (1 - f) v^T                             y_t = S_t^T q
        h_t = RMSNorm(y_t)                                              of all heads
        output = h_t W_o

    Qin et al. (2024, arXiv:2404.07904). Lower layers of a model forget more: the bound
    of the forget gates grows from layer to layer. In the paper it is a sum over the
    layers below, of a softmax over all layers; `layer_lower_bounds` returns that.

    Parameters: ``input_kernel (D, G)``, blocks q, f and v; ``norm_scale (H,)`` and
    ``output_kernel (H, O)``; with ``learned_lower_bound`` ``lower_bound (N d_k,)``.
    Carry: `MatrixState` (h, S). Output: ``(*B, O)``.

    The paper's models have a ``hidden_size`` of D, a ``key_size`` of 128, and as many
    heads as make up D with it.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads, each with a state.
        key_size: d_k (default: d_v).
        lower_bound: the bound of the forget gates, at least 0 and below 1.
        learned_lower_bound: if True, the bound is a parameter, one for each channel of
            the keys, which begins at ``lower_bound`` and counts as between 0 and 1.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``; for sizes below 1,
            and for a ``lower_bound`` outside of [0, 1).

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.HGRN2(8, num_heads=2, lower_bound=0.5)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    lower_bound: float = 0.0
    learned_lower_bound: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not is_real(self.lower_bound) or not 0 <= self.lower_bound < 1:
            raise ValueError(
                f"HGRN2: lower_bound, the least value of the forget gates, must be at "
                f"least 0 and below 1, but it is {self.lower_bound!r}"
            )

    @property
    def blocks(self) -> dict[str, int]:
        keys = self.num_heads * self.keys
        return {"q": keys, "f": keys, "v": self.hidden_size}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        params = {"norm_scale": jnp.ones((self.hidden_size,), dtype)}
        if self.learned_lower_bound:
            shape = (self.num_heads * self.keys,)
            params["lower_bound"] = jnp.full(shape, self.lower_bound, dtype)
        return params

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, 1 - f, v and log f."""
        part = self.split(z)
        q, f = jax.nn.silu(part["q"]), part["f"]
        log_f, k = jax.nn.log_sigmoid(f), jax.nn.sigmoid(-f)
        if self.learned_lower_bound or self.lower_bound:
            bound = self.bound(params, f)
            # f that rounds to zero counts as the least float, whose logarithm is finite
            least = jnp.asarray(jnp.finfo(f.dtype).tiny, f.dtype)
            f = bound + (1 - bound) * jax.nn.sigmoid(f)
            log_f, k = jnp.log(jnp.maximum(f, least)), (1 - bound) * k
        q, k, log_f = (self.split_key_heads(x) for x in (q, k, log_f))
        q = q * jnp.asarray(self.keys**-0.5, q.dtype)
        return Terms(q, k, self.split_heads(part["v"]), log_f)

    def bound(self, params: Params, z: Float[Array, "*TB F"]) -> Float[Array, "..."]:
        """Return the bound of the forget gates, to broadcast along z."""
        if self.learned_lower_bound:
            return jnp.clip(along(params["lower_bound"], z), 0, 1)
        return jnp.full((1,) * z.ndim, self.lower_bound, z.dtype)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the norm of all heads together."""
        return rms_norm(join_heads(y), params["norm_scale"])


def layer_lower_bounds(logits: Float[Array, "L F"]) -> Float[Array, "L F"]:
    """Return the lower bounds of the forget gates of all layers of an `HGRN2` model::

        bound_l = sum over m from 1 to l of softmax(logits)_m           bound_0 = 0

    The softmax is over the layers, so that the bound grows from 0 in the first to below
    1 in the last. Equal logits give ``l / L``. To learn the logits, have layers with
    ``learned_lower_bound``, and put row l at ``lower_bound`` of layer l's parameters
    where the loss is computed.

    Qin et al. (2024, arXiv:2404.07904).

    Args:
        logits: ``(L, F)``, for L layers and all channels of the keys.

    Returns:
        The bounds, ``(L, F)``.

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.cells.hgrn2 import layer_lower_bounds
        >>> layer_lower_bounds(jnp.zeros((4, 1))).ravel().tolist()
        [0.0, 0.25, 0.5, 0.75]
    """
    shares = jax.nn.softmax(logits, axis=0)
    return jnp.cumsum(shares.at[0].set(0), axis=0)
