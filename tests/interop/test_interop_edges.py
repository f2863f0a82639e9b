"""Converters at their edges: memory of their own, sums that overflow, options
without a counterpart, and what is no weight.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import nnx
from test_interop import ELMAN, GRU, LSTM, RELU, H, drawn

import jaxrnn.nnx
from jaxrnn import interop


@pytest.fixture(autouse=True)
def flax_promotion():
    """flax relies on promotion in places."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def refused(match, error, function, *arguments, **options):
    with pytest.raises(error, match=match):
        function(*arguments, **options)


def places(tree):
    """Where in memory the arrays lie."""
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}


BEFORE = jaxrnn.GRU(H, reset_after=False)
SHARED = {
    "flax": (ELMAN, interop.to_flax, interop.from_flax),
    "haiku": (
        RELU,
        lambda *a: interop.to_haiku(*a, double_bias=False),
        interop.from_haiku,
    ),
    "equinox": (LSTM, interop.to_equinox, interop.from_equinox),
}


@pytest.mark.parametrize("library", SHARED)
def test_a_conversion_has_memory_of_its_own(library):
    """In both directions, so that a step that donates its arguments takes nothing
    from the other side.
    """
    layer, write, read = SHARED[library]
    params = drawn(layer)
    arrays = write(layer, params)
    assert not places(arrays) & places(params)
    _, back = read(arrays, layer)
    assert not places(back) & places(arrays)
    again = jax.tree.map(np.array, back)
    for leaf in jax.tree.leaves(arrays):
        leaf.delete()  # what donation does
    peers.equal(back, again)


def test_a_sum_of_biases_that_overflows_is_refused():
    state = {
        name: value.astype("float16")
        for name, value in interop.to_torch(GRU, drawn(GRU)).items()
    }
    huge = np.full(12, 60000, "float16")
    match = "the sum of two biases overflows float16: cast the weights to float32 first"
    refused(
        match,
        ValueError,
        interop.from_torch,
        state | {"bias_ih_l0": huge, "bias_hh_l0": huge},
    )
    # the candidate's two biases are never added
    apart = np.where(np.arange(12) < 8, 0, huge).astype("float16")
    interop.from_torch(state | {"bias_ih_l0": huge, "bias_hh_l0": apart})
    infinite = huge * np.float16(np.inf)
    # was not finite before, either
    interop.from_torch(state | {"bias_ih_l0": infinite, "bias_hh_l0": huge})
    kernel, recurrent_kernel, _ = (
        a.astype("float16") for a in interop.to_keras(GRU, drawn(GRU))
    )
    refused(
        match,
        ValueError,
        interop.from_keras,
        [kernel, recurrent_kernel, np.stack([huge, huge])],
        GRU,
    )
    arrays = jax.tree.map(
        lambda a: a.astype("float16"), interop.to_haiku(RELU, drawn(RELU))
    )
    arrays["vanilla_rnn/linear"]["b"] = arrays["vanilla_rnn/linear_1"]["b"] = jnp.full(
        H, 60000, "float16"
    )
    refused(match, ValueError, interop.from_haiku, arrays, RELU)


def test_half_precision_kernels_convert_exactly():
    arrays = jax.tree.map(
        lambda a: a.astype("bfloat16"), interop.to_haiku(LSTM, drawn(LSTM))
    )
    _, params = interop.from_haiku(arrays, LSTM)
    back = interop.to_haiku(LSTM, params)
    np.testing.assert_array_equal(back["lstm/linear"]["w"], arrays["lstm/linear"]["w"])
    error = jnp.abs(back["lstm/linear"]["b"] - arrays["lstm/linear"]["b"]).astype(
        "float32"
    )
    assert (
        0
        < error[2 * H : 3 * H].max()
        <= 2**-7 * float(jnp.abs(1 + arrays["lstm/linear"]["b"]).max())
    )
    assert not error[: 2 * H].any()
    assert not error[3 * H :].any()


def test_flaxs_carry_init_is_refused():
    with pytest.warns(UserWarning, match="carry_init"):
        drawing = nnx.GRUCell(
            3, H, carry_init=nnx.initializers.normal(), rngs=nnx.Rngs(0)
        )
    refused("GRUCell has the carry_init", ValueError, interop.from_flax, drawing)
    variables = nn.GRUCell(H).init(jax.random.key(0), jnp.zeros(H), jnp.zeros(3))
    ones = nn.GRUCell(H, carry_init=nn.initializers.ones_init()).bind(variables)
    refused("jaxrnn's first carry is zero", ValueError, interop.from_flax, ones)
    for same in (nn.GRUCell(H), nn.GRUCell(H, carry_init=nn.initializers.zeros_init())):
        assert interop.from_flax(same.bind(variables))[0] == GRU


def test_flaxs_linear_maps_are_those_that_the_cell_makes():
    """Not others that compute something else of the same kernel."""
    options = {"use_bias": False, "rngs": nnx.Rngs(0)}
    for other in (
        nnx.Linear(
            H,
            12,
            dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k),
            **options,
        ),
        nnx.Linear(H, 12, promote_dtype=lambda arrays, dtype=None: arrays, **options),
        nnx.LoRALinear(H, 12, lora_rank=2, **options),
    ):
        cell = nnx.GRUCell(3, H, rngs=nnx.Rngs(0))
        cell.dense_h = other
        refused(
            "dense_h of GRUCell is not the nnx.Linear that the cell makes",
            ValueError,
            interop.from_flax,
            cell,
        )


def _concatenate(forward, backward):
    return jnp.concatenate([backward, forward], axis=-1)


def test_flaxs_merge_function_is_told_by_more_than_its_name():
    rngs = nnx.Rngs(0)
    both = [nnx.RNN(nnx.GRUCell(3, H, rngs=rngs)) for _ in range(2)]
    assert interop.from_flax(nnx.Bidirectional(*both))[0] == jaxrnn.bidirectional(GRU)
    refused(
        "merge_fn of its own",
        ValueError,
        interop.from_flax,
        nnx.Bidirectional(*both, merge_fn=_concatenate),
    )


def test_the_whole_state_of_an_nnx_module_is_read():
    """With the streams of keys that it holds beside the parameters."""
    cells = [nnx.GRUCell(3, H, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    state = nnx.state(nnx.RNN(cells[0]))
    assert "rngs" in state
    peers.equal(interop.from_flax(state, GRU)[1], interop.from_flax(cells[0])[1])
    both = nnx.Bidirectional(*map(nnx.RNN, cells))
    peers.equal(
        interop.from_flax(nnx.state(both), jaxrnn.bidirectional(GRU))[1],
        interop.from_flax(both)[1],
    )


class Compact(nn.Module):
    """Both directions, made inside a compact call."""

    @nn.compact
    def __call__(self, xs):
        return nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)))(xs)


def test_a_compact_bidirectional_is_told_how_to_say_it():
    xs, layer = (
        jnp.asarray(peers.draw(0, 5, 2, 3, dtype="float32")),
        jaxrnn.bidirectional(GRU),
    )
    variables = Compact().init(jax.random.key(0), xs.swapaxes(0, 1))
    tree = variables["params"]
    refused(
        r"pass \{'forward_rnn': tree\['GRUCell_0'\], 'backward_rnn': "
        r"tree\['GRUCell_1'\]\}",
        ValueError,
        interop.from_flax,
        variables,
        layer,
    )
    _, params = interop.from_flax(
        {"forward_rnn": tree["GRUCell_0"], "backward_rnn": tree["GRUCell_1"]}, layer
    )
    expected = Compact().apply(variables, xs.swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_allclose(jaxrnn.unroll(layer, params, xs)[1], expected, atol=1e-6)


def test_jaxrnns_own_modules_are_pointed_to_their_values():
    own = jaxrnn.nnx.RNN(GRU, 3, rngs=nnx.Rngs(0))
    refused(
        r"jaxrnn's own RNN: .* rnn\.values\(\), for rnn\.layer",
        TypeError,
        interop.from_flax,
        own,
    )
    refused(
        r"pass rnn\.cell",
        TypeError,
        interop.from_flax,
        jaxrnn.nnx.Bidirectional(own, jaxrnn.nnx.RNN(GRU, 3, rngs=nnx.Rngs(1))),
    )


def test_one_object_twice_is_not_loaded():
    layer = jaxrnn.stack(GRU, GRU)
    params = layer.init(jax.random.key(0), H)
    cell = nnx.GRUCell(H, H, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(cell))
    refused(
        "into holds one object twice",
        ValueError,
        interop.to_flax,
        layer,
        params,
        into=[cell, cell],
    )
    twin = nnx.GRUCell(H, H, rngs=nnx.Rngs(1))
    twin.dense_h = cell.dense_h
    refused(
        "into holds one object twice",
        ValueError,
        interop.to_flax,
        layer,
        params,
        into=[cell, twin],
    )
    peers.equal(nnx.state(cell), before)


@pytest.mark.parametrize("name", ["to_torch", "to_keras", "to_onnx"])
def test_parameters_inside_a_compiled_function(name):
    write = getattr(interop, name)
    refused(
        f"{name}: the parameters have no values inside",
        TypeError,
        jax.jit(lambda p: write(LSTM, p) and 0),
        drawn(LSTM),
    )


def test_a_bias_that_must_be_zero_cannot_be_seen_inside_one_either():
    theirs = nnx.GRUCell(3, H, rngs=nnx.Rngs(0))
    refused(
        "recurrent_bias is zero cannot be seen inside a compiled function",
        TypeError,
        jax.jit(lambda p: interop.to_flax(GRU, p, into=theirs) and 0),
        drawn(GRU),
    )


def test_states_are_checked_as_unroll_checks_them():
    layer = jaxrnn.bidirectional(LSTM)
    carry = layer.initial_carry(drawn(layer), (2,))
    h, _ = interop.carry_to_torch(layer, carry)
    assert h.shape == (2, 2, H)
    wrong = carry._replace(backward=jax.tree.map(lambda a: a[:1], carry.backward))
    refused(
        r"carry_to_torch: .*the carry has shape \(1, 4\), expected \(2, 4\)",
        ValueError,
        interop.carry_to_torch,
        layer,
        wrong,
    )
    pair = carry._replace(backward=tuple(carry.backward))
    refused(
        "this cell's carry is .*is it another cell's",
        TypeError,
        interop.carry_to_torch,
        layer,
        pair,
    )
    refused(
        "the carry has shape",
        ValueError,
        interop.carry_to_torch,
        GRU,
        jnp.zeros((2, H + 1)),
    )
    refused(
        "the carry is int32, expected float32",
        TypeError,
        interop.carry_to_torch,
        GRU,
        jnp.zeros((2, H), int),
    )
    refused(
        "the parts of the carry have no values",
        TypeError,
        jax.jit(lambda c: interop.carry_to_torch(GRU, c)),
        jnp.zeros((2, H)),
    )
    half = jaxrnn.LSTMState(h=jnp.ones((2, H), "bfloat16"), c=jnp.ones((2, H)))
    assert [str(part.dtype) for part in interop.carry_to_torch(LSTM, half)] == [
        "bfloat16",
        "float32",
    ]
    refused(
        "states must be floating-point .* h is int32: cast them$",
        TypeError,
        interop.carry_from_torch,
        GRU,
        np.ones((1, 2, H), "int32"),
    )


def test_weights_that_are_lists():
    state = interop.to_torch(LSTM, drawn(LSTM))
    listed = {name: value.tolist() for name, value in state.items()}
    refused(
        "weight_ih_l0 must be an array, but it is a list",
        TypeError,
        interop.from_torch,
        listed,
    )
    refused(
        "bias_hh_l0 must be an array, but it is a list",
        TypeError,
        interop.from_torch,
        state | {"bias_hh_l0": [0.0] * 16},
    )
    for name, layer in (("flax", LSTM), ("haiku", LSTM), ("equinox", LSTM)):
        lists = jax.tree.map(
            lambda a: a.tolist(), getattr(interop, f"to_{name}")(layer, drawn(layer))
        )
        refused(
            "must be an array, but it is a list",
            TypeError,
            getattr(interop, f"from_{name}"),
            lists,
            layer,
        )
    arrays = interop.to_keras(LSTM, drawn(LSTM))
    refused(
        "must be an array, but it is a list",
        TypeError,
        interop.from_keras,
        [a.tolist() for a in arrays],
        LSTM,
    )


@pytest.mark.parametrize(
    ("ending", "repair"),
    [
        ("_g", "remove_weight_norm"),
        ("_u", "remove_spectral_norm"),
        ("_mask", r"prune\.remove"),
    ],
)
def test_weights_that_are_computed_of_others(ending, repair):
    state = interop.to_torch(LSTM, drawn(LSTM))
    lost = {name: value for name, value in state.items() if name != "weight_hh_l0"}
    refused(
        rf"missing weight_hh_l0.*{repair}\(module, name\) first",
        ValueError,
        interop.from_torch,
        lost | {f"weight_hh_l0{ending}": state["weight_hh_l0"]},
    )


def test_dropout_stands_between_two_layers():
    state = interop.to_torch(LSTM, drawn(LSTM))
    refused(
        "dropout is applied between layers, but these are the weights of one",
        ValueError,
        interop.from_torch,
        state,
        dropout=0.5,
    )
    assert interop.from_torch(state, dropout=0.0)[0] == LSTM
