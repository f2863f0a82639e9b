"""cuDNN's LSTM as JAX primitives with rules of their own.

``jax.experimental.rnn`` has no batching rule, and no errors that say what it does not
support. Here are three primitives:

    lstm       x, h, c, weights, lengths -> y, last h, last c. With ``keep`` it also
               returns ``reserve``, what cuDNN saves for the backward pass.
    tangent    the tangent of lstm. It is linear, and has only a transpose: adjoint.
    adjoint    the cotangents of x, h, c and weights, from those of y and of the last
               h and c.

``vmap`` of ``lstm`` folds the mapped axis into the batch, before anything is
differentiated. Everything else raises an error: mapped weights, ``vmap`` of a gradient,
forward mode, second derivatives, and every platform but CUDA.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ...core.contraction import check_one_device
from ...core.types import Inputs

KNOWN = 7  # residuals of the backward pass: x, h, c, weights, lengths, y, reserve
USE_SCAN = "use engine=jaxrnn.Scan()"
SIGNATURES = {
    "lstm_fwd": (
        "x h_0 c_0 w seq_lengths input_size hidden_size num_layers dropout "
        "bidirectional precision"
    ),
    "lstm_bwd": (
        "input_size hidden_size num_layers dropout bidirectional precision residuals "
        "gradients"
    ),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """The static arguments of cuDNN.

    ``tf32`` says whether float32 matmuls may round their factors to 10 bits.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    tf32: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return the arguments under their names in ``jax.experimental.rnn``."""
        precision = jax.lax.Precision.HIGH if self.tf32 else jax.lax.Precision.HIGHEST
        sizes = {
            name: vars(self)[name]
            for name in ("input_size", "hidden_size", "num_layers", "bidirectional")
        }
        return {**sizes, "dropout": 0.0, "precision": precision}


@dataclasses.dataclass(frozen=True)
class Library:
    """cuDNN as called by ``jax.experimental.rnn``.

    The tests replace it by a pure JAX implementation with the same methods.
    """

    dtype: str = "float32"

    def check_here(self) -> None:
        """Check that this version of jax has the functions that are called here.

        Raises:
            ValueError: if a function is missing, or takes other arguments.
        """
        rnn = _experimental_rnn()
        for name, expected in SIGNATURES.items():
            function = vars(rnn).get(name)
            if (
                function is None
                or " ".join(inspect.signature(function).parameters) != expected
            ):
                raise ValueError(
                    f"CuDNN: jax.experimental.rnn.{name} of jax {jax.__version__} is "
                    f"missing, or takes other arguments than "
                    f"({', '.join(expected.split())}), which jax 0.10 to 0.12 have: "
                    f"{USE_SCAN}, or such a jax"
                )

    def check_platform(self, platform: str | None) -> None:
        """Raise an error if a program is lowered for anything but an NVIDIA GPU."""
        if platform != "cuda":
            where = platform or "another platform"
            raise ValueError(
                f"CuDNN: needs an NVIDIA GPU with cuDNN, lowering for {where}: "
                f"{USE_SCAN}"
            )

    def reserve_size(self, network: Network, *inputs: object) -> int:
        """Return how many numbers cuDNN saves for the backward pass.

        Only cuDNN knows, so a GPU is needed.
        """
        return jax.eval_shape(
            lambda *values: self.forward(network, *values)[3], *inputs
        ).shape[0]

    def forward(self, network: Network, *inputs: object) -> tuple[Any, Any, Any, Any]:
        """``(y, last h, last c, reserve)`` of x (B, T, D), h and c (layers, B, H),
        weights and lengths.
        """
        rnn, arguments = _experimental_rnn(), network.arguments()
        (y, h, c), residuals = _asked(lambda: rnn.lstm_fwd(*inputs, **arguments))
        batch, steps, features = y.shape
        if (
            residuals[-1].size < 4 * batch * steps * features * network.num_layers
        ):  # not even the gates would fit
            raise ValueError(
                f"CuDNN: for {batch} sequences of {steps} steps and "
                f"{network.hidden_size} units jax says that cuDNN keeps "
                f"{residuals[-1].size:,} numbers, which is too few: jax counts the "
                f"bytes in 32 bits, and more than 2 GiB are "
                f"needed. Split the batch, truncate (window=), or {USE_SCAN}"
            )
        return y, h, c, residuals[-1]

    def backward(
        self, network: Network, known: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        """Return the cotangents of x, h, c and weights."""
        rnn, arguments = _experimental_rnn(), network.arguments()
        return _asked(
            lambda: rnn.lstm_bwd(
                **arguments, residuals=tuple(known), gradients=tuple(cotangents)
            )
        )[:4]


def _experimental_rnn() -> Any:
    try:
        from jax.experimental import rnn
    except ImportError as error:
        raise ValueError(
            f"CuDNN: jax {jax.__version__} has no jax.experimental.rnn ({error}): "
            f"{USE_SCAN}"
        ) from None
    return rnn


def _asked(call: Callable[[], Any]) -> Any:
    """Return ``call()``, which queries cuDNN for sizes while it is traced."""
    try:
        return call()
    except (
        AttributeError,
        RuntimeError,
    ) as error:  # no CUDA plugin; or one without a GPU, or without cuDNN
        raise ValueError(
            "CuDNN: needs an NVIDIA GPU with cuDNN where it is traced, for cuDNN is "
            "asked how much memory it takes, and here "
            f"that fails ({type(error).__name__}: {error}): {USE_SCAN}, or install jax "
            f"with CUDA (pip install 'jax[cuda13]')"
        ) from error


# --------------------------------------------------------------------------------------
# The primitives


def lstm(
    network: Network,
    library: Library,
    x: Inputs,
    h: Array,
    c: Array,
    weights: Array,
    lengths: Array,
) -> tuple[Any, Any, Any]:
    """Run cuDNN's LSTM.

    Args:
        network: the sizes.
        library: cuDNN.
        x: the inputs, ``(B, T, D)``.
        h: the first h, ``(layers directions, B, H)``.
        c: the first c, likewise.
        weights: the flat weights, ``(N,)``; see `pack_lstm`.
        lengths: the lengths of the sequences, ``(B,)`` int32, at least 1.

    Returns:
        The outputs ``(B, T, directions H)``, and the last h and c. Outputs beyond a
        sequence's length are undefined.
    """
    y, h, c = lstm_p.bind(
        x, h, c, weights, lengths, network=network, library=library, keep=False
    )
    return y, h, c


def _lstm(
    *inputs, network: Network, library: Library, keep: bool, platform: str | None
):
    library.check_platform(platform)
    y, h, c, reserve = library.forward(network, *inputs)
    return [y, h, c, reserve] if keep else [y, h, c]


def _adjoint(*flat, network: Network, library: Library, platform: str | None):
    library.check_platform(platform)
    return list(library.backward(network, flat[:KNOWN], flat[KNOWN:]))


def _tangent(*flat, network: Network, library: Library, platform: str | None):
    raise ValueError(
        f"CuDNN: forward mode (jvp, jacfwd, linearize; of a gradient too): it has "
        f"reverse mode only: {USE_SCAN}"
    )


def _define(name: str, function: Callable, abstract: Callable) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def compiled(params):
        return jax.jit(lambda *args: primitive.bind(*args, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(params.items()))(*args))
    primitive.def_abstract_eval(abstract)
    for platform in (None, "cpu", "tpu", "cuda", "rocm"):
        mlir.register_lowering(
            primitive, functools.partial(_lower, function, platform), platform=platform
        )
    return primitive


def _lower(
    function: Callable, platform: str | None, ctx: Any, *args: Any, **params: Any
) -> Any:
    if platform == "cuda":
        check_one_device("CuDNN", ctx)
    return mlir.lower_fun(
        functools.partial(function, platform=platform), multiple_results=True
    )(ctx, *args, **params)


def _avals_of_lstm(
    x, h, c, weights, lengths, *, network: Network, library: Library, keep: bool
):
    directions = 2 if network.bidirectional else 1
    out = [x.update(shape=(*x.shape[:2], directions * network.hidden_size)), h, c]
    if keep:
        inputs = [
            jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, h, c, weights, lengths)
        ]
        out.append(x.update(shape=(library.reserve_size(network, *inputs),)))
    return out


lstm_p = _define("jaxrnn_cudnn", _lstm, _avals_of_lstm)
tangent_p = _define(
    "jaxrnn_cudnn_tangent", _tangent, lambda *avals, **_: [avals[5], avals[1], avals[2]]
)
adjoint_p = _define(
    "jaxrnn_cudnn_adjoint", _adjoint, lambda *avals, **_: list(avals[:4])
)


# --------------------------------------------------------------------------------------
# Their rules


def _lstm_jvp(primals, tangents, *, network: Network, library: Library, keep: bool):
    out = lstm_p.bind(*primals, network=network, library=library, keep=True)
    zeros = [ad.Zero(jax.typeof(a).to_tangent_aval()) for a in out]
    shown = len(out) if keep else 3
    if all(type(t) is ad.Zero for t in tangents[:4]):
        return out[:shown], zeros[:shown]
    moving = [ad.instantiate_zeros(t) for t in tangents[:4]]
    y, *_, reserve = out
    moved = tangent_p.bind(
        *primals, y, reserve, *moving, network=network, library=library
    )
    return out[:shown], [*moved, *zeros[3:shown]]


def _tangent_transpose(cotangents, *args, network: Network, library: Library):
    if all(type(g) is ad.Zero for g in cotangents):
        return [None] * len(args)
    given = [ad.instantiate_zeros(g) for g in cotangents]
    return [None] * KNOWN + list(
        adjoint_p.bind(*args[:KNOWN], *given, network=network, library=library)
    )


def _fold(
    args: Sequence[Any],
    dims: Sequence[Any],
    *,
    network: Network,
    library: Library,
    keep: bool,
):
    """Fold a mapped axis into the batch: the batching rule of ``lstm``."""
    if keep:
        return _refuse_vmap(args, dims)
    if all(d is None for d in dims):
        out = lstm_p.bind(*args, network=network, library=library, keep=keep)
        return out, [None] * len(out)
    if dims[3] is not None:
        raise ValueError(
            f"CuDNN: vmap over parameters: cuDNN has one set of weights a call: "
            f"{USE_SCAN}, or jax.lax.map"
        )
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)

    def beside(a, d, axis):
        a = (
            jnp.broadcast_to(
                jnp.expand_dims(a, axis), (*a.shape[:axis], size, *a.shape[axis:])
            )
            if d is None
            else a
        )
        a = a if d is None else jnp.moveaxis(a, d, axis)
        return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

    (x, h, c, weights, lengths), (d_x, d_h, d_c, _, d_lengths) = args, dims
    batch = x.shape[0] if d_x is None else jnp.moveaxis(x, d_x, 0).shape[1]
    folded = (
        beside(x, d_x, 0),
        beside(h, d_h, 1),
        beside(c, d_c, 1),
        weights,
        beside(lengths, d_lengths, 0),
    )
    y, h, c = lstm_p.bind(*folded, network=network, library=library, keep=keep)
    out = [
        y.reshape(size, batch, *y.shape[1:]),
        *(a.reshape(-1, size, batch, a.shape[-1]) for a in (h, c)),
    ]
    return out, [0, 1, 1]


def _refuse_vmap(args, dims, **_):
    raise ValueError(
        "CuDNN: vmap of a gradient (per-example gradients, jacrev): cuDNN sums the "
        "gradients of its weights over the batch: "
        f"take the gradient of the vmapped loss, or {USE_SCAN}"
    )


def _refuse_second(primals, tangents, **_):
    raise ValueError(
        f"CuDNN: second derivatives: cuDNN's backward pass has no derivative: "
        f"{USE_SCAN}"
    )


ad.primitive_jvps[lstm_p] = _lstm_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
for _linear in (tangent_p, adjoint_p):
    ad.primitive_jvps[_linear] = _refuse_second
    batching.primitive_batchers[_linear] = _refuse_vmap
batching.primitive_batchers[lstm_p] = _fold
