"""Conversion of weights from and to PyTorch: nn.RNN, LSTM, GRU and their Cells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Params
from ..core.validation import describe
from . import safetensors_file
from .arithmetic import (
    check_concrete,
    check_dtypes,
    check_no_biases,
    check_shapes,
    fold_biases,
    on_device,
    unfold_biases,
    zero_biases,
)
from .structure import check_same, checked_cell_params, set_cell_params
from .torch_spec import Module, Spec, plain, spec_of_arrays, spec_of_layer

MODULES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


def from_torch(
    source: Any,
    *,
    prefix: str = "",
    nonlinearity: str | None = None,
    dropout: float | None = None,
) -> tuple[Cell | Layer, Params]:
    """Convert the weights of a torch RNN, LSTM or GRU to a jaxrnn layer and parameters.

    The Cells of these are supported, too. Kernels are transposed, and the two biases of
    a gate are added (a GRU's candidate keeps both: `GRU`'s ``recurrent_bias``); a
    module without biases gets zeros. Layers become a `stack`, directions a
    `bidirectional`, and torch's dropout between layers a `dropout`, even of a module in
    eval mode: `inference(layer)` draws nothing. Sequences are ``(T, *B, D)`` whatever
    ``batch_first`` is. The dtype is kept: kernels convert exactly, and the sum of two
    biases is rounded to it. Results in half precision differ from torch's by rounding,
    because c and a GRU's h are accumulated in float32.

    Args:
        source: the module; or its state_dict, of tensors or of plain arrays (also
            traced ones, so that the conversion can be differentiated); or the path of a
            safetensors file (package ``safetensors``).
        prefix: the place of the module in a larger model: what precedes
            ``weight_ih_l0``, such as ``"encoder."``.
        nonlinearity: ``"tanh"`` or ``"relu"`` of an nn.RNN, which its weights do not
            tell; required for such weights only.
        dropout: the rate between layers, of which there must be at least two. Weights
            do not tell it, a module does. The default is 0.

    Returns:
        ``(layer, params)``.

    Raises:
        TypeError: for quantized weights, mixed dtypes, float64 without
            ``jax_enable_x64``, or an object that is none of these.
        ValueError: for missing, unexpected or wrongly shaped weights.

    Example::

        >>> import numpy as np, jaxrnn
        >>> weights = {"weight_ih": np.zeros((6, 3)), "weight_hh": np.zeros((6, 2))}
        >>> weights = {name: array.astype("float32") for name, array in weights.items()}
        >>> layer, params = jaxrnn.interop.from_torch(weights)
        >>> print(type(layer).__name__, params["input_kernel"].shape)
        GRU (3, 6)
    """
    where = "from_torch"
    is_module = isinstance(source, Module)
    if is_module:
        module = _inside(where, source, prefix) if prefix else source
        if nonlinearity is not None or dropout is not None:
            raise ValueError(
                f"{where}: the module determines its nonlinearity and dropout: leave "
                f"them out"
            )
        _check_module(where, module)
        arrays, noted = dict(module.state_dict()), ""
        nonlinearity, dropout = _options_of(module)
    elif isinstance(source, (str, os.PathLike)):
        arrays, noted = _under(prefix, safetensors_file.read(source, prefix))
    elif isinstance(source, Mapping):
        arrays, noted = _under(prefix, source)
    else:
        raise TypeError(
            f"{where}: expected a torch module, a state_dict or the path of a "
            f"safetensors file, but it is {describe(source)}"
        )
    arrays = {name: plain(where, name, value) for name, value in arrays.items()}
    spec = spec_of_arrays(where, arrays, nonlinearity, dropout or 0.0, noted)
    if dropout and spec.layers == 1 and not is_module:
        raise ValueError(
            f"{where}: dropout is applied between layers, but these are the weights of "
            f"one: leave it out"
        )
    check_dtypes(where, arrays)
    check_shapes(
        where, arrays, spec.shapes(arrays[f"weight_ih{spec.suffixes()[0]}"].shape[1])
    )
    return spec.layer(), set_cell_params(
        spec.layer(),
        [_read(where, spec, arrays, suffix) for suffix in spec.suffixes()],
        where,
    )


def to_torch(
    layer: Cell | Layer,
    params: Params,
    *,
    into: Any = None,
    prefix: str = "",
    bias: bool | None = None,
    cell: bool = False,
) -> Any:
    """Convert the parameters of a layer to torch's layout: inverse of `from_torch`.

    The bias becomes ``bias_ih``; ``bias_hh`` is zero except for a GRU's
    ``recurrent_bias``.

    Args:
        layer: `Elman` (tanh or relu), `LSTM` (also with a projection) or `GRU` (with
            reset_after), a `bidirectional` of two equal ones, or a stack of equal ones
            with equal dropout between them, or none.
        params: the parameters of ``layer``.
        into: None returns a dict of NumPy arrays, a state_dict except for
            ``torch.from_numpy`` (which does not support bfloat16). A torch module of
            the same sizes is loaded and returned. A path writes a new safetensors file
            and returns the path.
        prefix: put before every name of the dict or the file.
        bias: False leaves out both biases, which must then be zero. Not allowed with a
            module, which determines it.
        cell: use the names of nn.LSTMCell and the other Cells, without ``_l0``.

    Returns:
        The dict of arrays, or ``into``.

    Raises:
        TypeError, ValueError: if torch has no such module, or ``into`` does not fit.
        FileExistsError: if the file exists.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.Elman(2)
        >>> arrays = jaxrnn.interop.to_torch(cell, cell.init(jax.random.key(0), 3))
        >>> print(sorted(arrays))
        ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    where = "to_torch"
    check_concrete(where, params)
    module: Any = into if isinstance(into, Module) else None
    if module is not None:
        _check_module(where, module)
        if prefix or cell or bias is not None:
            raise ValueError(
                f"{where}: the module to load determines its names: leave out prefix, "
                f"bias and cell"
            )
        bias, cell = module.bias, _is_cell(module)
    elif into is not None and not isinstance(into, (str, os.PathLike)):
        raise TypeError(
            f"{where}: into must be a torch module or the path of a new file, but it "
            f"is {describe(into)}"
        )
    spec = spec_of_layer(where, layer, bias is not False, not cell)
    arrays: dict[str, Any] = {}
    for suffix, (_, own) in zip(
        spec.suffixes(), checked_cell_params(layer, params, where), strict=True
    ):
        arrays |= {
            name: np.array(value)
            for name, value in _write(where, spec, own, suffix).items()
        }
    check_dtypes(where, arrays)
    if module is not None:
        return _load(where, module, layer, arrays)
    arrays = {prefix + name: value for name, value in arrays.items()}
    if into is None:
        return arrays
    safetensors_file.write(into, arrays)
    return into


def _inside(where: str, source: Any, prefix: str) -> Any:
    """Return the module at ``prefix``."""
    modules = dict(source.named_modules())
    if prefix.rstrip(".") not in modules:
        recurrent = sorted(
            f"{name}."
            for name, own in modules.items()
            if type(own).__name__ in MODULES and name
        )
        raise ValueError(
            f"{where}: {type(source).__name__} has no module at prefix={prefix!r}; "
            f"its recurrent modules are: "
            f"{', '.join(map(repr, recurrent)) or 'none'}"
        )
    return modules[prefix.rstrip(".")]


def _check_module(where: str, module: Any) -> None:
    """Check for one of torch's own six modules, unquantized and not parametrized."""
    kind = type(module)
    if "quantiz" in kind.__module__:
        raise TypeError(
            f"{where}: {kind.__module__}.{kind.__name__} is quantized: its integers do "
            f"not convert, use the float module"
        )
    if kind.__name__.startswith("Parametrized"):
        raise TypeError(
            f"{where}: the module is parametrized (weight_norm or the like): "
            f"torch.nn.utils.parametrize.remove_parametrizations"
            "(module, name) first"
        )
    if kind.__name__ not in MODULES or not kind.__module__.startswith("torch.nn."):
        raise TypeError(
            f"{where}: expected one of torch.nn.{', '.join(MODULES)}, but it is "
            f"{kind.__module__}.{kind.__name__}: name the "
            "one inside it (with prefix, or as model.encoder), or, for a class of your "
            "own that computes the same, pass state_dict()"
        )


def _is_cell(module: Any) -> bool:
    """Whether one of torch's six modules is a single step."""
    return type(module).__name__.endswith("Cell")


def _options_of(module: Any) -> tuple[str | None, float]:
    """Return the nonlinearity and the dropout of one of torch's six modules."""
    is_rnn = type(module).__name__.startswith("RNN")
    nonlinearity = module.nonlinearity if is_rnn else None
    return nonlinearity, 0.0 if _is_cell(module) else module.dropout


def _under(prefix: str, source: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Select the tensors under ``prefix`` (whose dot may be left out).

    Also returns a note for errors, on where other recurrent weights are.
    """
    if prefix and not any(name.startswith(f"{prefix}weight_") for name in source):
        prefix = prefix if prefix.endswith(".") else f"{prefix}."
    places = {
        name[: name.index("weight_ih")] for name in source if "weight_ih" in name
    } - {prefix}
    noted = (
        f". There are also recurrent weights under "
        f"prefix={', '.join(map(repr, sorted(places)))}"
        if places
        else ""
    )
    return {
        name.removeprefix(prefix): value
        for name, value in source.items()
        if name.startswith(prefix)
    }, noted


def _read(
    where: str, spec: Spec, arrays: Mapping[str, Any], suffix: str
) -> dict[str, Any]:
    """Convert the tensors of one cell to its parameters."""
    own = {name.removesuffix(suffix): arrays[name] for name in spec.names(suffix)}
    params = {
        "input_kernel": own["weight_ih"].T,
        "recurrent_kernel": own["weight_hh"].T,
    }
    if spec.bias:
        params |= fold_biases(where, spec.cell, own["bias_ih"], own["bias_hh"])
    else:
        params |= zero_biases(spec.cell, params["recurrent_kernel"])
    if "weight_hr" in own:
        params["projection_kernel"] = own["weight_hr"].T
    return on_device(params)


def _write(
    where: str, spec: Spec, params: Mapping[str, Any], suffix: str
) -> dict[str, Any]:
    """Convert the parameters of one cell to its tensors."""
    bias, recurrent_bias = unfold_biases(params)
    if not spec.bias:
        check_no_biases(where, params, "the torch module")
    own = {
        "weight_ih": params["input_kernel"].T,
        "weight_hh": params["recurrent_kernel"].T,
        "bias_ih": bias,
        "bias_hh": recurrent_bias,
        "weight_hr": params.get("projection_kernel", bias).T,
    }
    return {name: own[name.removesuffix(suffix)] for name in spec.names(suffix)}


def _load(
    where: str, module: Any, layer: Cell | Layer, arrays: Mapping[str, Any]
) -> Any:
    """Load the weights into ``module``, which must match the layer in kind and size."""
    state = module.state_dict()
    if any(value.is_meta for value in state.values()):
        raise TypeError(
            f"{where}: the module is on torch's meta device and holds nothing: "
            f"module.to_empty(device='cpu') first"
        )
    nonlinearity, rate = _options_of(module)
    spec = spec_of_arrays(where, state, nonlinearity, rate)
    check_same(where, layer, spec.layer())
    check_shapes(
        where,
        arrays,
        {name: tuple(value.shape) for name, value in state.items()},
        "The module's are the expected ones",
    )
    for name, value in arrays.items():
        dtype = str(state[name].dtype).removeprefix("torch.")
        if dtype != str(value.dtype):
            raise TypeError(
                f"{where}: the module is {dtype}, but the parameters are {value.dtype} "
                f"({name}): cast one of them"
            )
    wide = {
        name: value.astype("float32") if value.dtype == jnp.bfloat16 else value
        for name, value in arrays.items()
    }
    module.load_state_dict(
        {name: state[name].new_tensor(value) for name, value in wide.items()}
    )
    return module
