"""The blocks of published networks, as compositions of cells and layers."""

from __future__ import annotations

import math

import jax

from ..cells import RGLRU, RWKV7, SLSTM, GatedDeltaNet, Mamba, Mamba2, MLSTMMixer
from ..core.layer import Layer
from ..core.validation import check_int
from ..initializers import FixedNormal
from .compose import Stack, stack
from .convolution import causal_conv
from .pointwise import dense, group_norm, layer_norm
from .pre_norm import gated_mlp, pre_norm_block
from .rwkv import heads_of_64, rwkv_channel_mix
from .skip import concat, multiply


def gated_delta_net_block(
    width: int,
    num_heads: int = 1,
    *,
    key_size: int | None = None,
    conv: int | None = 4,
    allow_negative: bool = False,
    mlp: Layer | None = None,
) -> Stack:
    """Build a block of Gated DeltaNet, a `jaxrnn.cells.GatedDeltaNet` and an MLP::

        u = e + GatedDeltaNet(norm(e))
        y = u + mlp(norm(u))                                    if there is an ``mlp``

    Yang, Kautz & Hatamizadeh (2024, arXiv:2412.06464). Its heads have twice as many
    values as key features. Parameters and carry: see `pre_norm_block`. Output:
    ``(T, *B, width)``.

    Args:
        width: the number of features between blocks.
        num_heads: of the cell.
        key_size: features of a key (default: three quarters of ``width``, divided among
            the heads, as in the paper's models).
        conv: the width of the cell's convolution, or None for none.
        allow_negative: see `jaxrnn.cells.GatedDeltaNet`.
        mlp: such as ``gated_mlp(width, 4 * width)`` (default: none).

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, and for a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.gated_delta_net_block(8, num_heads=2)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    _check("gated_delta_net_block", width=width, num_heads=num_heads)
    keys = max(3 * width // (4 * num_heads), 1) if key_size is None else key_size
    cell = GatedDeltaNet(
        2 * keys * num_heads,
        num_heads=num_heads,
        key_size=keys,
        conv=conv,
        allow_negative=allow_negative,
    )
    return pre_norm_block(cell, width, mlp=mlp)


def mamba2_block(
    width: int,
    num_heads: int | None = None,
    *,
    expansion: int = 2,
    state_size: int = 128,
    conv: int | None = 4,
) -> Stack:
    """Build the block of Mamba-2, ``y = e + Mamba2(norm(e))``.

    Dao & Gu (2024, arXiv:2405.21060). There is no MLP: the cell is gated. Parameters
    and carry: see `pre_norm_block`. Output: ``(T, *B, width)``.

    Args:
        width: the number of features between blocks.
        num_heads: of the cell, a divisor of ``expansion * width`` (default: heads of 64
            values, or one).
        expansion: how many times as many values the heads have together as there are
            features.
        state_size: the ``key_size`` of the cell.
        conv: the width of the cell's convolution, or None for none.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, if ``num_heads`` does not divide, and for a
            ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.mamba2_block(8, num_heads=2, state_size=16)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    _check("mamba2_block", width=width, expansion=expansion)
    inner = expansion * width
    heads = heads_of_64(inner) if num_heads is None else num_heads
    cell = Mamba2(inner, num_heads=heads, key_size=state_size, conv=conv)
    return pre_norm_block(cell, width)


def mamba_block(
    width: int,
    *,
    expansion: int = 2,
    state_size: int = 16,
    conv: int | None = 4,
) -> Stack:
    """Build the block of Mamba, ``y = e + Mamba(norm(e))``.

    Gu & Dao (2023, arXiv:2312.00752, figure 3). There is no MLP: the cell is gated.
    Parameters and carry: see `pre_norm_block`. Output: ``(T, *B, width)``.

    Args:
        width: the number of features between blocks.
        expansion: how many times as many channels the cell has.
        state_size: the number of state variables of a channel.
        conv: the width of the cell's convolution, or None for none.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, and for a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.mamba_block(8)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    _check("mamba_block", width=width, expansion=expansion)
    cell = Mamba(expansion * width, state_size=state_size, conv=conv)
    return pre_norm_block(cell, width)


def griffin_block(
    width: int,
    *,
    recurrent_size: int | None = None,
    conv: int = 4,
    expansion: int = 3,
) -> Stack:
    """Build a block of Griffin, an RG-LRU behind a gate, and an MLP::

        r = RGLRU(conv(n W_r + b_r))                                     n = norm(e)
        u = e + (gelu(n W_g + b_g) * r) W_o + b_o
        y = u + (gelu(m W_1 + b_1) * (m W_2 + b_2)) W_3 + b_3            m = norm(u)

    De et al. (2024, arXiv:2402.19427, section 2). The gates of the RG-LRU have dense
    maps; those of RecurrentGemma are block-diagonal. Parameters and carry: see
    `pre_norm_block`. Output: ``(T, *B, width)``.

    Args:
        width: the number of features between blocks.
        recurrent_size: the number of units of the RG-LRU (default: ``width``; the
            paper's models have a third more).
        conv: the width of the convolution.
        expansion: how many times as many hidden units the MLP has.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, and for a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.griffin_block(8)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    units = width if recurrent_size is None else recurrent_size
    _check("griffin_block", width=width, recurrent_size=units, expansion=expansion)
    small = FixedNormal(math.sqrt(0.01 / conv)) if conv else None
    recurrent = stack(dense(units), causal_conv(conv, kernel_init=small), RGLRU(units))
    mixer = stack(multiply(dense(units, jax.nn.gelu), recurrent), dense(width))
    mlp = gated_mlp(width, expansion * width, jax.nn.gelu, use_bias=True)
    return pre_norm_block(mixer, width, mlp=mlp)


def rwkv_block(
    width: int,
    num_heads: int | None = None,
    *,
    expansion: int = 4,
    layer_index: int = 0,
    num_layers: int = 1,
) -> Stack:
    """Build a block of RWKV-7, a `jaxrnn.cells.RWKV7` and a `rwkv_channel_mix`::

        u = e + time_mix(norm(e))
        y = u + channel_mix(norm(u))

    Peng et al. (2025, arXiv:2503.14456). All norms are layer norms, and the first
    block normalizes e as well. `rwkv7` is a whole network, where values cross the
    layers too. A new block is the identity beyond that, because both mixes end in a
    zero matrix. Parameters and carry: see `pre_norm_block`. Output: ``(T, *B,
    width)``.

    Args:
        width: the number of features between blocks.
        num_heads: of the time mix (default: heads of 64 features, or one).
        expansion: how many times as many hidden units the channel mix has.
        layer_index: the number of the block in its network, from 0.
        num_layers: the number of blocks.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, if ``num_heads`` does not divide ``width``, or
            if ``layer_index`` is not below ``num_layers``.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.rwkv_block
        >>> blocks = [block(8, layer_index=i, num_layers=2) for i in range(2)]
        >>> layer = jaxrnn.stack(*blocks)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    _check("rwkv_block", width=width)
    heads = heads_of_64(width) if num_heads is None else num_heads
    time = RWKV7(width, num_heads=heads, layer_index=layer_index, num_layers=num_layers)
    channel = rwkv_channel_mix(
        expansion, layer_index=layer_index, num_layers=num_layers
    )
    block = pre_norm_block(time, width, mlp=channel, norm=layer_norm())
    if layer_index:
        return block
    fits, *rest = block.layers
    return stack(fits, layer_norm(), *rest)


def mlstm_block(
    width: int, num_heads: int = 4, *, expansion: int = 2, conv: int = 4
) -> Stack:
    """Build the mLSTM block of xLSTM, ``y = e + MLSTMMixer(norm(e))``.

    Beck et al. (2024, arXiv:2405.04517, figure 11): the up-projection is in the block,
    and there is no MLP. Parameters and carry: see `pre_norm_block`. Output: ``(T, *B,
    width)``.

    Args:
        width: the number of features between blocks.
        num_heads: of the cell, a divisor of ``expansion * width``.
        expansion: how many times as many values the heads have together as there are
            features.
        conv: the width of the convolution.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, if ``num_heads`` does not divide, and for a
            ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.mlstm_block(8)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    _check("mlstm_block", width=width, expansion=expansion)
    inner = expansion * width
    size = 4 if inner % 4 == 0 else 1
    cell = MLSTMMixer(inner, num_heads=num_heads, block_size=size, conv=conv)
    return pre_norm_block(cell, width, norm=layer_norm())


def slstm_block(width: int, num_heads: int = 4, *, conv: int = 4) -> Stack:
    """Build the sLSTM block of xLSTM, an sLSTM behind a convolution, and an MLP::

        c = silu(conv(n))                                                n = norm(e)
        u = e + GroupNorm(SLSTM([n ; c]))
        y = u + (gelu(m W_g) * (m W_v)) W_o                              m = norm(u)

    Beck et al. (2024, arXiv:2405.04517, figure 10). The MLP has 4/3 ``width`` hidden
    units, and a group of the norm is a head. All gates see both n and c, by dense maps;
    in the paper i and f see c, z and o see n, each head its own features. Parameters
    and carry: see `pre_norm_block`. Output: ``(T, *B, width)``.

    Args:
        width: the number of features between blocks, and of units.
        num_heads: of the cell, a divisor of ``width``.
        conv: the width of the convolution.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, if ``num_heads`` does not divide ``width``, and
            for a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> block = jaxrnn.layers.slstm_block(8)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    cell = SLSTM(width, num_heads=num_heads)
    inputs = concat(causal_conv(conv, jax.nn.silu))
    mixer = stack(inputs, cell, group_norm(num_heads))
    mlp = gated_mlp(width, math.ceil(4 * width / 3), jax.nn.gelu)
    return pre_norm_block(mixer, width, mlp=mlp, norm=layer_norm())


def _check(name: str, **sizes: object) -> None:
    """Check that every named size is an int of at least 1."""
    for size_name, size in sizes.items():
        check_int(name, size_name, size, 1, 2**31 - 1, "a number of features or heads")
