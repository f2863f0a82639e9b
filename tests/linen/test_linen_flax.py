"""`jaxrnn.linen` against the linen that is installed: the same variables at ``init``,
the same values, gradients, and variables after a call.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn.linen import RNN, Bidirectional, flip_sequences

T, B, D, H = 5, 3, 4, 6
LENGTHS = np.array([3, T, 1])


def floats():
    return jnp.result_type(float)


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), floats())


class Base(nn.Module):
    """A cell of one's own, whose output is no part of its carry."""

    features: int = H
    num_feature_axes = 1

    @nn.compact
    def __call__(self, carry, x):
        dense = nn.Dense(self.features, param_dtype=floats(), name="dense")
        h = jnp.tanh(dense(jnp.concatenate([x, carry], -1)))
        return h, jnp.sin(h)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.full((*input_shape[:-1], self.features), 0.25, floats())


class Drawn(Base):
    """Its first carry is drawn."""

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jax.random.normal(rng, (*input_shape[:-1], self.features), floats())


class Dropping(Base):
    @nn.compact
    def __call__(self, carry, x):
        h, y = Base(self.features, name="inner")(carry, x)
        return nn.Dropout(0.5, deterministic=False)(h), y


class Averaging(Base):
    """Adds the running mean of its states to the next one."""

    frozen: bool = False

    @nn.compact
    def __call__(self, carry, x):
        mean = self.variable("stats", "mean", jnp.zeros, self.features, floats())
        h, y = Base(self.features, name="inner")(carry + mean.value[None], x)
        if not self.frozen:
            mean.value = 0.9 * mean.value + 0.1 * h.mean(0)
        return h, y


class Recording(Base):
    """Has an entry of a record for every step: reads it and writes another."""

    @nn.compact
    def __call__(self, carry, x):
        entry = self.variable("record", "entry", jnp.ones, self.features, floats())
        h, y = Base(self.features, name="inner")(carry + entry.value[None], x)
        entry.value = 2 * h[1]
        return h, y


class Telling(Base):
    @nn.compact
    def __call__(self, carry, x):
        h, y = Base(self.features, name="inner")(carry, x)
        self.sow("intermediates", "norm", (h**2).sum())
        return h, {"y": y, "norm": (h**2).sum(-1)}


class Tokens(Base):
    @nn.compact
    def __call__(self, carry, x):
        embed = nn.Embed(7, D, param_dtype=floats())
        return Base(self.features, name="inner")(carry, embed(x[..., 0]))


def built_in(kind, **options):
    return lambda: kind(H, param_dtype=floats(), **options)


# whether an engine runs it, the cell, and the options of RNN
CASES = {
    "LSTMCell": (True, built_in(nn.LSTMCell), {}),
    "OptimizedLSTMCell": (True, built_in(nn.OptimizedLSTMCell), {}),
    "GRUCell": (True, built_in(nn.GRUCell), {}),
    "SimpleCell": (True, built_in(nn.SimpleCell, activation_fn=nn.relu), {}),
    "residual": (True, built_in(nn.SimpleCell, residual=True), {}),
    "elu": (True, built_in(nn.LSTMCell, activation_fn=nn.elu), {}),
    "MGUCell": (True, built_in(nn.MGUCell), {}),
    "ConvLSTMCell": (True, built_in(nn.ConvLSTMCell, kernel_size=(2,)), {}),
    "remat": (True, lambda: nn.remat(nn.GRUCell)(H, param_dtype=floats()), {}),
    "own": (True, Base, {}),
    "tree out": (True, Telling, {}),
    "tokens": (True, Tokens, {}),
    "frozen statistics": (
        True,
        lambda: Averaging(frozen=True),
        {"variable_broadcast": ["params", "stats"]},
    ),
    "draws": (False, Dropping, {"split_rngs": {"params": False, "dropout": True}}),
    "draws once": (
        False,
        Dropping,
        {"split_rngs": {"params": False, "dropout": False}},
    ),
    "averages": (False, Averaging, {"variable_carry": "stats"}),
    "records": (False, Recording, {"variable_axes": {"record": 0}}),
    "parameters of every step": (
        False,
        Base,
        {
            "variable_axes": {"params": 0},
            "variable_broadcast": False,
            "split_rngs": {"params": True},
        },
    ),
}
PLAIN = {"time_major": False, "reverse": False, "keep_order": True, "lengths": None}
HOW = {
    "plain": {},
    "time major, ragged": {"time_major": True, "lengths": LENGTHS},
    "backwards, ragged": {"reverse": True, "keep_order": False, "lengths": LENGTHS},
    "backwards, in order": {"reverse": True, "time_major": True},
}


def inputs(case):
    if case == "ConvLSTMCell":
        return drawn(1, B, T, 3, D)
    if case == "tokens":
        return jnp.asarray(np.random.default_rng(1).integers(7, size=(B, T, 1)))
    return drawn(1, B, T, D)


def scrambled(tree, seed):
    """Other numbers of the same shapes, each leaf's own."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure,
        [
            0.5 * drawn(seed + k, *leaf.shape).astype(leaf.dtype)
            for k, leaf in enumerate(leaves)
        ],
    )


def rnns(case, **options):
    """Ours and flax's, of one cell."""
    _, cell, own = CASES[case]
    return [kind(cell(), **own, **options) for kind in (RNN, nn.RNN)]


def initialized(case, rnn, xs, **how):
    """The variables of flax's RNN. It cannot make those that it carries through its
    scan: they are the cell's.
    """
    rngs = {name: jax.random.key(k) for k, name in enumerate(["params", "dropout"])}
    if case != "averages":
        return jax.jit(rnn.init)(rngs, xs)
    carry = rnn.cell.initialize_carry(jax.random.key(0), (B, D))
    made = rnn.cell.init(rngs, carry, drawn(1, B, D))
    return {name: {"cell": own} for name, own in made.items()}


def outcomes(case, time_major, reverse, keep_order, lengths):
    how = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
    ours, flaxs = rnns(case, **how, unroll=2, return_carry=True)
    xs, valid = inputs(case), np.ones((B, T), bool)
    given = {} if lengths is None else {"seq_lengths": jnp.asarray(lengths)}
    if lengths is not None:
        valid = np.arange(T) < lengths[:, None]
    ordered = jnp.swapaxes(xs, 0, 1) if time_major else xs
    made, variables = (initialized(case, rnn, ordered) for rnn in (ours, flaxs))
    assert_same(made, variables, 1e-12)
    variables = scrambled(variables, 10)
    params, rest = variables.pop("params"), variables
    carry = scrambled(flaxs.cell.initialize_carry(jax.random.key(0), xs[:, 0].shape), 5)
    floating = jnp.issubdtype(xs.dtype, jnp.floating)

    def run(rnn, params, carry, shift):
        moved = ordered + shift if floating else ordered
        (carry, ys), left = rnn.apply(
            {"params": params, **rest},
            moved,
            initial_carry=carry,
            rngs={"dropout": jax.random.key(3)},
            mutable=list(rest),
            **given,
        )
        ys = jax.tree.map(
            lambda y: jnp.where(
                valid.reshape(B, T, *[1] * (y.ndim - 2)),
                jnp.swapaxes(y, 0, 1) if time_major else y,
                0,
            ),
            ys,
        )
        return (carry, ys), left

    def both(params, carry, shift):
        found = []
        for rnn in (ours, flaxs):
            values, pullback, left = jax.vjp(
                lambda *a, r=rnn: run(r, *a), params, carry, shift, has_aux=True
            )
            found.append((values, pullback(scrambled(values, 30)), left))
        return found

    return compiled(both)(params, carry, jnp.zeros(ordered.shape))


def varied(case, how):
    """Statistics see the padding in flax: compared without."""
    return not ("ragged" in how and case == "averages")


@pytest.mark.parametrize(
    ("case", "how"), [(c, h) for c in CASES for h in HOW if varied(c, h)]
)
def test_values_gradients_and_variables_are_flaxs(case, how, x64):
    assert_same(*outcomes(case, **PLAIN | HOW[how]))


@pytest.mark.parametrize("case", CASES)
def test_an_engine_runs_what_is_a_pure_function(case):
    """And is refused where flax's scan must run the cell."""
    pure, _, _ = CASES[case]
    ours, flaxs = rnns(case)
    xs, rngs = inputs(case), {"dropout": jax.random.key(3)}
    variables = initialized(case, flaxs, xs)
    engine = ours.clone(engine=jaxrnn.Checkpoint(chunk=2))
    mutable = [] if pure else [name for name in variables if name != "params"]
    if pure:
        expected = flaxs.apply(variables, xs, rngs=rngs)
        assert_same(engine.apply(variables, xs, rngs=rngs), expected, 1e-5)
        return
    with pytest.raises(ValueError, match=r"RNN: .* flax's own scan .* not Checkpoint"):
        engine.apply(variables, xs, rngs=rngs, mutable=mutable)
    assert_same(
        ours.clone(engine=jaxrnn.Scan(unroll=2)).apply(
            variables, xs, rngs=rngs, mutable=mutable
        ),
        flaxs.apply(variables, xs, rngs=rngs, mutable=mutable),
        1e-5,
    )


def test_a_changed_module_is_not_traced_again():
    """Two calls with equal cells share a compilation of `jaxrnn.unroll`."""
    traces = []

    class Counted(Base):
        @nn.compact
        def __call__(self, carry, x):
            traces.append(None)
            return Base(self.features, name="inner")(carry, x)

    xs = inputs("own")
    variables = RNN(Counted()).init(jax.random.key(0), xs)
    RNN(Counted()).apply(variables, xs)
    traces.clear()
    RNN(Counted()).apply(variables, xs)
    again = len(traces)
    traces.clear()
    RNN(Counted()).apply(variables, xs)
    assert len(traces) == again <= 5  # the checks alone


def test_one_layer_of_several_calls_and_modules(x64):
    """Called twice in a module, and with a cell that two of them share."""

    class Model(nn.Module):
        kind: type

        def setup(self):
            self.cell = nn.GRUCell(D, param_dtype=floats())
            self.one = self.kind(self.cell)
            self.two = self.kind(self.cell, reverse=True, keep_order=True)

        def __call__(self, xs):
            return self.one(self.two(self.one(xs)))

    xs = drawn(1, B, T, D)
    made, variables = (Model(k).init(jax.random.key(0), xs) for k in (RNN, nn.RNN))
    assert_same(made, variables, 1e-12)
    ours, flaxs = (
        jax.value_and_grad(lambda v, k=k: Model(k).apply(v, xs).sum())(variables)
        for k in (RNN, nn.RNN)
    )
    assert_same(ours, flaxs, 1e-12)


def test_carries_that_are_drawn(x64):
    """From ``init_key``, by default that of seed 0; by the cell's ``carry_init``."""
    cells = (
        Drawn(),
        nn.GRUCell(H, carry_init=nn.initializers.normal(), param_dtype=floats()),
    )
    for cell in cells:
        xs = drawn(1, B, T, D)
        variables = nn.RNN(cell).init(jax.random.key(0), xs)
        for how in ({}, {"init_key": jax.random.key(7)}):
            assert_same(
                RNN(cell).apply(variables, xs, **how),
                nn.RNN(cell).apply(variables, xs, **how),
                1e-6,
            )
    key = jax.random.key(7)
    resets = jnp.zeros((B, T), bool).at[:, 2].set(True)
    how = {"init_key": key, "resets": resets, "return_carry": True}
    variables = nn.RNN(cells[0]).init(jax.random.key(0), xs)
    carry, ys = RNN(cells[0]).apply(variables, xs, **how)
    expected_carry, expected = nn.RNN(cells[0]).apply(
        variables, xs[:, 2:], init_key=key, return_carry=True
    )
    assert_same((carry, ys[:, 2:]), (expected_carry, expected), 1e-12)


def test_intermediates_are_flaxs():
    ours, flaxs = rnns("tree out", variable_axes={"intermediates": 0})
    xs = inputs("tree out")
    variables = {"params": flaxs.init(jax.random.key(0), xs)["params"]}
    assert_same(
        ours.apply(variables, xs, mutable=["intermediates"]),
        flaxs.apply(variables, xs, mutable=["intermediates"]),
        1e-6,
    )


def test_partitioned_parameters():
    """Boxed by ``nn.with_partitioning``, for the built-in cells and for one's own."""
    boxed = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    for cell in (
        nn.LSTMCell(H, kernel_init=boxed),
        nn.MGUCell(H, recurrent_kernel_init=boxed),
    ):
        xs = inputs("own")
        variables = RNN(cell).init(jax.random.key(0), xs)
        expected = nn.RNN(cell).init(jax.random.key(0), xs)
        assert jax.tree.structure(variables) == jax.tree.structure(expected)
        ours, flaxs = (
            jax.grad(lambda v, k=k, cell=cell: k(cell).apply(v, inputs("own")).sum())(
                variables
            )
            for k in (RNN, nn.RNN)
        )
        assert_same(ours, flaxs, 1e-5)


# -- padding, which is the library's ------


@pytest.mark.parametrize("case", ["GRUCell", "own", "averages"])
def test_padding_is_zero_holds_the_carry_and_may_be_nan(case, x64):
    padded = np.arange(T) >= LENGTHS[:, None]
    ours, flaxs = rnns(case, return_carry=True)
    variables = initialized(case, flaxs, inputs(case))
    first = drawn(8, B, H)

    def run(filling, lengths):
        xs = jnp.where(padded[..., None], filling, inputs(case))

        def apply(variables):
            return ours.apply(
                variables,
                xs,
                initial_carry=first,
                seq_lengths=jnp.asarray(lengths),
                mutable=["stats"],
            )

        (carry, ys), left = apply(variables)
        gradient = jax.grad(lambda v: apply(v)[0][1].sum())(variables)
        return carry, ys, left, gradient

    found, other = run(jnp.nan, LENGTHS), run(3.0, LENGTHS)
    assert_same(found, other, 0)
    carry, ys, _, gradient = found
    assert not ys[padded].any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    carry, ys, *_ = run(1.0, np.array([0, T, 1]))
    assert_same(carry[0], first[0], 0)
    assert not ys[0].any()


# -- both directions -------------------------------------------------------------------


@pytest.mark.parametrize("mixed", ["ours", "our RNN in flax's", "flax's RNN in ours"])
def test_both_directions(mixed, x64):
    inner = nn.RNN if mixed == "flax's RNN in ours" else RNN
    outer = nn.Bidirectional if mixed == "our RNN in flax's" else Bidirectional
    options = {"merge_fn": lambda a, b: a - 2 * b, "return_carry": True}
    cells = [nn.GRUCell(H, param_dtype=floats()), nn.LSTMCell(H, param_dtype=floats())]
    ours = outer(*map(inner, cells), **options)
    flaxs = nn.Bidirectional(*map(nn.RNN, cells), **options)
    xs = jnp.swapaxes(inputs("own"), 0, 1)
    how = {"seq_lengths": jnp.asarray(LENGTHS), "time_major": True}
    first = (drawn(5, B, H), (drawn(6, B, H), drawn(7, B, H)))
    made, variables = (m.init(jax.random.key(0), xs, **how) for m in (ours, flaxs))
    assert_same(made, variables, 1e-12)
    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]
    carry, ys = ours.apply(variables, xs, initial_carry=first, **how)
    expected_carry, expected = flaxs.apply(variables, xs, initial_carry=first, **how)
    assert_same(
        (carry, jnp.where(valid, ys, 0)),
        (expected_carry, jnp.where(valid, expected, 0)),
        1e-12,
    )


def test_both_directions_draw_their_carries_and_turn():
    ours, flaxs = (
        outer(inner(Drawn()), inner(Drawn()))
        for outer, inner in ((Bidirectional, RNN), (nn.Bidirectional, nn.RNN))
    )
    xs, key = inputs("own"), jax.random.key(9)
    variables = flaxs.init(jax.random.key(0), xs)
    expected = flaxs.apply(variables, xs, init_key=key)
    assert_same(ours.apply(variables, xs, init_key=key), expected, 1e-6)
    flipped = flip_sequences(xs, jnp.asarray(LENGTHS), 1, False)
    how = {"seq_lengths": jnp.asarray(LENGTHS)}
    turned = ours.apply(variables, xs, reverse=True, keep_order=False, **how)
    assert_same(turned, ours.apply(variables, flipped, **how), 1e-5)
    kept = ours.apply(variables, xs, reverse=True, **how)
    assert_same(kept, flip_sequences(turned, jnp.asarray(LENGTHS), 1, False), 1e-6)
    with pytest.raises(ValueError, match="are one object"):
        Bidirectional(*[RNN(Drawn())] * 2).init(jax.random.key(0), xs)
