"""The newer cells at every door: `explain`, nnx, ``--cell``, ONNX, the converters of
weights, and half precision. Each runs, or is refused in words.

The laws run on them by their rows in tests/helpers/subjects.py. Their values in half
precision are in test_cells.py, and what ONNX Runtime makes of those that it can hold in
tests/interop/test_onnx.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matrix_cells import MATRIX_CELLS
from subjects import PLAIN, B, D, T, assert_same, draw, spatial_axes

import jaxrnn
from jaxrnn import interop
from jaxrnn.cells import (
    CTRNN,
    GDN2,
    KDA,
    LTC,
    MGU,
    RTU,
    RWKV7,
    CfC,
    ConvGRU,
    ConvLSTM,
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    Mamba,
    MLSTMMixer,
    NonlinearRTU,
    OrthogonalRNN,
)
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.training import InputError

# The rows of the table of subjects, with the class.
NEW = {
    "mgu": MGU,
    "ctrnn": CTRNN,
    "ctrnn_dale": CTRNN,
    "orthogonal": OrthogonalRNN,
    "orthogonal_tanh": OrthogonalRNN,
    "rtu": RTU,
    "nonlinear_rtu": NonlinearRTU,
    "conv_lstm": ConvLSTM,
    "conv_gru": ConvGRU,
    "ltc": LTC,
    "cfc": CfC,
    "cfc_no_gate": CfC,
    "cfc_pure": CfC,
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "delta_product": DeltaProduct,
    "kda": KDA,
    "gdn2": GDN2,
    "mamba": Mamba,
    "rwkv7": RWKV7,
    "mlstm_mixer": MLSTMMixer,
}
STATE_NOISE = jaxrnn.layers.state_noise(jaxrnn.GRU(4), 0.1)
KEY = jax.random.key(0)


def test_the_table_is_that_of_the_cells_that_are_not_at_the_top():
    assert {type(PLAIN[name]) for name in NEW} == set(NEW.values())
    kinds = [value for value in vars(jaxrnn.cells).values() if isinstance(value, type)]
    cells = {
        kind
        for kind in kinds
        if issubclass(kind, jaxrnn.Cell) and kind.__name__ not in vars(jaxrnn)
    }
    of_matrices = {kind for kind in cells if issubclass(kind, jaxrnn.MatrixCell)}
    assert of_matrices <= {type(cell) for cell in MATRIX_CELLS.values()}
    assert cells - of_matrices <= set(NEW.values()) <= cells


@pytest.mark.parametrize("name", NEW)
def test_explain_shows_it(name):
    cell, inputs = PLAIN[name], draw(name, 0)
    told = jaxrnn.explain(cell, inputs.params, inputs.xs, mask=inputs.mask)
    assert told.rows
    assert all(row.error is None for row in told.rows)
    assert NEW[name].__name__ in str(told)


@pytest.mark.parametrize("name", NEW)
def test_nnx_runs_it(name, x64):
    """Batch first, a ragged batch; values, and gradients of the parameters."""
    cell, inputs = PLAIN[name], draw(name, 0)
    rnn = jaxrnn.nnx.RNN(cell, D, rngs=nnx.Rngs(0))
    batch_first = jnp.swapaxes(inputs.xs, 0, 1)
    lengths = jnp.array([T, 2, 0])

    def loss(rnn):
        carry, ys = rnn(batch_first, seq_lengths=lengths, return_carry=True)
        return jnp.sin(ys).sum(), (carry, jnp.swapaxes(ys, 0, 1))

    def same(params):
        mask = jaxrnn.mask_from_lengths(lengths, T)
        last, ys = jaxrnn.unroll(cell, params, inputs.xs, mask=mask)
        return jnp.sin(ys).sum(), (last, ys)

    gradient, found = nnx.jit(nnx.grad(loss, has_aux=True))(rnn)
    expected, values = jax.jit(jax.grad(same, has_aux=True))(rnn.values())
    assert_same(found, values)
    plain = nnx.to_pure_dict(gradient)["params"]
    assert_same(plain, expected)
    assert rnn.output_size == values[1].shape[-1]
    assert found[1].shape == (T, B, *spatial_axes(cell), rnn.output_size)


NAMES = {
    "mgu": MGU(8),
    "ctrnn": CTRNN(8),
    "orthogonal": OrthogonalRNN(8),
    "rtu": RTU(8),
    "rtu:nonlinear": NonlinearRTU(8),
    "rtu:slow": RTU(8, r_min=0.98, r_max=0.9999, max_phase=0.03),
    "ltc": LTC(8),
    "cfc": CfC(8),
    "cfc:no-gate": CfC(8, mode="no_gate"),
    "cfc:pure": CfC(8, mode="pure"),
    "jaxrnn.cells:CTRNN(dale=0.8)": CTRNN(8, dale=0.8),
    "jaxrnn.cells:ConvLSTM(spatial_shape=(5, 4))": ConvLSTM(8, spatial_shape=(5, 4)),
    "jaxrnn.cells:DeltaNet(num_heads=2)": DeltaNet(8, num_heads=2),
    "jaxrnn.cells:GatedDeltaNet(num_heads=2)": GatedDeltaNet(8, num_heads=2),
    "jaxrnn.cells:DeltaProduct(num_products=3)": DeltaProduct(8, num_products=3),
    "jaxrnn.cells:KDA(safe_gate=True)": KDA(8, safe_gate=True),
    "jaxrnn.cells:GDN2(allow_negative=True)": GDN2(8, allow_negative=True),
    "jaxrnn.cells:Mamba(state_size=4)": Mamba(8, state_size=4),
    "jaxrnn.cells:RWKV7(num_heads=2)": RWKV7(8, num_heads=2),
    "jaxrnn.cells:MLSTMMixer(num_heads=2)": MLSTMMixer(8, num_heads=2),
    "jaxrnn.cells:ConvGRU(2, spatial_shape=(5,))": ConvGRU(2, spatial_shape=(5,)),
}


@pytest.mark.parametrize("spec", NAMES)
def test_it_has_a_name_or_an_import_path(spec):
    assert make_cell(spec, 8, 10) == NAMES[spec]


def test_all_of_them_have():
    assert {type(cell) for cell in NAMES.values()} == set(NEW.values())


def test_state_noise_draws_what_the_tasks_do_not():
    with pytest.raises(InputError, match=r"StateNoise draws .*zoneout or state noise"):
        make_cell(STATE_NOISE, 8, 10)
    assert make_cell(jaxrnn.inference(STATE_NOISE), 8, 10).cell == jaxrnn.GRU(4)


IN_ONNX = {"mgu", "orthogonal_tanh"}
TO = ("to_torch", "to_keras", "to_flax", "to_haiku", "to_equinox")


@pytest.mark.parametrize("name", NEW)
def test_what_cannot_hold_it_says_so(name, plain_errors):
    """No other library has these cells under its own weights, but ONNX has two."""
    cell, kind = PLAIN[name], NEW[name].__name__
    params = draw(name, 0).params
    for converter in TO:
        with pytest.raises(TypeError, match=rf"{converter}.*supported are .* {kind}"):
            getattr(interop, converter)(cell, params)
    if name in IN_ONNX:
        return
    words = rf"{kind} has no operator in ONNX|activation of this {kind}, has no name"
    with pytest.raises((TypeError, ValueError), match=words):
        interop.to_onnx(cell, params)


def test_state_noise_is_written_without_its_noise(plain_errors):
    params = draw("state_noise", 0).params
    for layer in (STATE_NOISE, jaxrnn.inference(STATE_NOISE)):
        for converter in (*TO, "to_onnx"):
            with pytest.raises((TypeError, ValueError), match=r"StateNoise|inference"):
                getattr(interop, converter)(layer, params)


@pytest.mark.parametrize("name", [*NEW, "state_noise"])
def test_half_precision_keeps_the_state_in_float32(name):
    """bfloat16 parameters, inputs and outputs; what is added up is float32, in the
    first carry and after steps. A part that is no sum may be bfloat16.
    """
    layer = PLAIN[name]
    params = jax.eval_shape(lambda: layer.init(KEY, D, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    xs = jax.ShapeDtypeStruct((T, B, *spatial_axes(layer), D), jnp.bfloat16)
    first = jax.eval_shape(lambda p: layer.initial_carry(p, (B,)), params)
    last, ys = jax.eval_shape(lambda *a: jaxrnn.unroll(layer, *a), params, xs)
    assert ys.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, last) == jax.tree.map(
        lambda a: a.dtype, first
    )
    kept = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(last)}
    assert kept & {"float32", "complex64"}
    assert kept <= {"float32", "complex64", "bfloat16"}
