"""What a cell with a matrix state refuses, in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Associative, MatrixCell, Terms
from jaxrnn.cells import GLA, HGRN2, GatedDeltaNet, Mamba, Mamba3, RetNet


@dataclasses.dataclass(frozen=True)
class Given(MatrixCell):
    """A cell whose terms are made by a function of q."""

    make: object = None

    def init(self, key, input_size):
        return {"w": jnp.ones(())}

    def terms(self, params, z):
        return self.make(jnp.broadcast_to(z[..., None, :], (*z.shape[:-1], 2, 2)))


pytestmark = pytest.mark.usefixtures("x64")
ONE = (Ellipsis, slice(0, 1))
BAD_TERMS = [
    (lambda q: (q, q, q), TypeError, "must return jaxrnn.Terms"),
    (lambda q: Terms(q, None, q), TypeError, "k is missing"),
    (lambda q: Terms(q, q, 1.0), TypeError, "v must be an array"),
    (lambda q: Terms(q, q, q[ONE]), ValueError, "the last axis 2"),
    (lambda q: Terms(q[..., :0, :], q, q), ValueError, "q must be"),
    (lambda q: Terms(q, q, q[..., :1, :]), ValueError, "heads = 2"),
    (lambda q: Terms(q, q[0], q), ValueError, "leading axes"),
    (lambda q: Terms(q, q, q, jnp.concatenate([q, q], -1)), ValueError, "1 or 2"),
    (lambda q: Terms(q, q, q, b=q), ValueError, "a is needed"),
    (lambda q: Terms(q, q, q, w=q[ONE], a=q), ValueError, "goes with neither a"),
    (lambda q: Terms(q, q, q, -q * q, w=q[ONE]), ValueError, "not with one a channel"),
    (lambda q: Terms(q, q, q, turn=q), ValueError, "R <= d_k / 2 .* last axis 1"),
    (lambda q: Terms(q, q, q, turn=q[..., :0]), ValueError, "turn must be"),
    (lambda q: Terms(q, q, q, turn=q[ONE][0]), ValueError, "leading axes"),
    (
        lambda q: Terms(q, q, q, -q * q, turn=q[ONE]),
        ValueError,
        r"turn.*goes with one decay a head.*not with one a channel \(.*2, 2\)",
    ),
]


@pytest.mark.parametrize(("make", "error", "words"), BAD_TERMS)
def test_terms_that_do_not_fit(make, error, words):
    xs = jax.random.normal(jax.random.key(0), (5, 3, 2))
    cell = Given(4, num_heads=2, make=make)
    with pytest.raises(error, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, xs)


def wrong(field, value):
    """Terms that all fit but for one."""

    def make(q):
        right = {"g": -jnp.square(q), "a": q, "b": q, "w": None, "turn": None}
        right |= {"w": {"w": q, "g": None, "a": None, "b": None}}.get(field, {})
        right |= {"turn": {"turn": q, "g": None}}.get(field, {})
        return Terms(**{"q": q, "k": q, "v": q, **right, field: value(q)})

    return make


@pytest.mark.parametrize("field", Terms._fields)
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (lambda q: q.astype(int), TypeError, "array of floats"),
        (lambda q: q > 0, TypeError, "array of floats .* bool"),
        (lambda q: jax.lax.complex(q, q), TypeError, "split complex numbers"),
        (lambda q: np.zeros(q.shape), TypeError, "make one with jnp.asarray"),
        (lambda q: jnp.concatenate([q, q, q], -1), ValueError, "last axis"),
        (lambda q: jnp.concatenate([q, q, q], -2), ValueError, "heads"),
        (lambda q: q[None], ValueError, "leading axes"),
        (lambda q: q[0, 0, 0], ValueError, "leading axes"),
    ],
)
def test_every_term_is_checked(field, value, error, words, plain_errors):
    """One error names the term, what it must be, and what came."""
    if field == "q" and words == "leading axes":
        field = "k"  # q says which leading axes the others have
    cell = Given(4, num_heads=2, make=wrong(field, value))
    xs = jax.random.normal(jax.random.key(0), (5, 3, 2))
    with pytest.raises(error, match=rf"Given.terms: {field} must be .*{words}"):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, xs)


def test_a_strength_without_a_scale_in_the_carry():
    """It would be left out."""
    cell = Given(4, num_heads=2, make=lambda q: Terms(q, q, q, w=q[ONE]))
    for engine in (None, jaxrnn.Scan()):
        with pytest.raises(
            ValueError, match=r"w, .* needs a carry that holds m, .*MLS"
        ):
            jaxrnn.unroll(cell, {"w": jnp.ones(())}, jnp.ones((5, 3, 2)), engine=engine)


class ReadsBefore(Given):
    reads = "before"


class TwoMicroSteps(Given):
    micro_steps = 2


@pytest.mark.parametrize(
    ("kind", "make", "words"),
    [
        (ReadsBefore, lambda q: Terms(q, q, q, turn=q[ONE]), "leave reads = 'after'"),
        (ReadsBefore, lambda q: Terms(q, q, q, w=q[ONE]), "goes with neither a"),
        (TwoMicroSteps, lambda q: Terms(q, q, q), "an axis of 2 micro steps before"),
        (
            TwoMicroSteps,
            lambda q: Terms(q, *[jnp.stack([q, q, q], -3)] * 2),
            "an axis of 2 micro steps before",
        ),
    ],
)
def test_terms_that_do_not_fit_what_a_cell_declares(kind, make, words):
    cell = kind(4, num_heads=2, make=make)
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, jnp.ones((5, 3, 2)))


def test_heads_that_are_neither_those_of_q_nor_those_of_v():
    def make(q):
        v = jnp.concatenate([q, q], -2)[..., :1]
        return Terms(q, q[..., :1, :], v)

    cell = Given(4, num_heads=4, key_size=2, make=make)
    words = "k has 1 heads, but q has 2 and v 4: every term must have as many"
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, jnp.ones((5, 3, 2)))


def test_a_decay_that_grows():
    cell = Given(4, num_heads=2, make=lambda q: Terms(q, q, q, jnp.abs(q)))
    params, x = {"w": jnp.ones(())}, jnp.ones((3, 2))
    with pytest.raises(ValueError, match="at most 0, but the largest is 1"):
        cell(params, cell.initial_carry(params, (3,)), x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 5, "num_heads": 2}, "2 does not divide 5"),
        ({"hidden_size": 4, "num_heads": 4, "num_key_heads": 3}, "3 does not divide 4"),
        ({"hidden_size": 4, "conv": 0}, "conv=None"),
        ({"hidden_size": 4, "conv": 1}, "conv=None"),
        ({"hidden_size": 4, "key_size": 0}, "key_size"),
        ({"hidden_size": 4, "output_size": 0}, "output_size"),
    ],
)
def test_sizes(options, words):
    with pytest.raises(ValueError, match=words):
        GatedDeltaNet(**options)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_chunks_of_no_steps(chunk, plain_errors):
    with pytest.raises(ValueError, match="Associative: chunk must be an int of at lea"):
        Associative(chunk=chunk)


@pytest.mark.parametrize("cell", [GatedDeltaNet(4), Mamba(4, state_size=2)])
def test_carries_inside_chunks(cell):
    """An engine that is named refuses; by default the steps run one by one."""
    xs = jnp.ones((5, 2, 3))
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"carries.*use engine=jaxrnn.Scan\(\)"):
        jaxrnn.unroll(cell, params, xs, return_carries=True, engine=Associative())
    shapes = jax.eval_shape(
        lambda: jaxrnn.unroll(cell, params, xs, return_carries=True)[2]
    )
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(shapes)} == {(5, 2)}


class ReadsHeads(Given):
    def readout(self, params, y, z):
        return y


class ReadsNothing(Given):
    def readout(self, params, y, z):
        return None


class ReadsLater(Given):
    reads = "later"


class NoMicroStep(Given):
    micro_steps = 0


class RemembersTooMuch(Given):
    looks_back = 2

    def remembered_size(self, params):
        return 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ReadsHeads, r"readout must return h \(3, 4\).*returns an array of shape"),
        (ReadsNothing, r"readout must return h \(3, 4\).*returns None"),
        (ReadsLater, "reads must be 'after', .* or 'before', but it is 'later'"),
        (NoMicroStep, "micro_steps must be an int of at least 1, but it is 0"),
        (RemembersTooMuch, r"remembered must return one array .* F = 1 .* \(3, 2\)"),
    ],
)
@pytest.mark.parametrize("engine", [None, jaxrnn.Scan()], ids=["chunks", "steps"])
def test_what_a_cell_declares_and_returns(kind, words, engine, plain_errors):
    cell = kind(4, num_heads=2, make=lambda q: Terms(q, q, q))
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, jnp.ones((5, 3, 2)), engine=engine)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GatedDeltaNet, {"norm_epsilon": "small"}),
        (GLA, {"gate_divisor": "16"}),
        (HGRN2, {"lower_bound": "0"}),
        (RetNet, {"rotary_base": "10"}),
        (Mamba3, {"rotary_fraction": "half"}),
    ],
)
def test_numbers_that_are_none(kind, options, plain_errors):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{kind.__name__}: .*{name}.*'{value}'"):
        kind(4, **options)


def test_methods_that_are_missing():
    with pytest.raises(NotImplementedError, match="must define terms"):
        MatrixCell(4).terms({}, jnp.ones(3))


def test_a_refusal_in_a_stack_names_the_part():
    """Checks of parameters, and what is raised while a part runs or is drawn."""
    layer = jaxrnn.stack(GLA(4, num_heads=2), GLA(4, num_heads=2))
    params = layer.init(jax.random.key(0), 3)
    wrong = {**params, "layer_1": {**params["layer_1"], "norm_scale": jnp.ones(3)}}
    with pytest.raises(ValueError, match="norm_scale") as refusal:
        jaxrnn.unroll(layer, wrong, jnp.ones((5, 2, 3)))
    assert refusal.value.__notes__[0].startswith("in layer_1, GLA(hidden_size=4, num_h")

    bad = Given(4, num_heads=2, make=lambda q: (q, q, q))
    outer = jaxrnn.residual(jaxrnn.stack(jaxrnn.layers.dense(2), bad))
    with pytest.raises(TypeError, match="must return") as refusal:
        outer.init(jax.random.key(0), 2)
    assert any(
        note.startswith("in layer_1, Given(") for note in refusal.value.__notes__
    )
    inner = {"layer_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
    params = {**inner, "layer_1": {"w": jnp.ones(())}}
    with pytest.raises(TypeError, match="must return") as refusal:
        jaxrnn.unroll(outer.layer, params, jnp.ones((5, 2, 2)))
    where = "in part 1 of the layer around it, Given("
    assert any(note.startswith(where) for note in refusal.value.__notes__)


def test_an_output_that_reads_more_than_h_is_told_how():
    @dataclasses.dataclass(frozen=True)
    class Reads(GLA):
        def output(self, params, carry, x):
            return carry.S.sum(-1)

    cell = Reads(4, num_heads=2)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
    with pytest.raises(TypeError, match=r"Reads\.output .*set shows_h_alone = False"):
        jaxrnn.unroll(cell, params, xs)
    told = type("Told", (Reads,), {"shows_h_alone": False})(4, num_heads=2)
    _, ys = jaxrnn.unroll(told, params, xs)
    _, expected = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Scan())
    np.testing.assert_allclose(ys, expected, rtol=1e-6)


def test_learned_states_have_no_h():
    """No step reads that of the step before, so that it could not learn."""
    for cell in (GLA(4, num_heads=2), Mamba(4), jaxrnn.MLSTM(4, num_heads=2)):
        cell = dataclasses.replace(cell, learned_initial_carry=True)
        params = cell.init(jax.random.key(0), 3)
        xs = jax.random.normal(jax.random.key(1), (4, 2, 3))

        def loss(params, cell=cell, xs=xs):
            return jnp.sin(jaxrnn.unroll(cell, params, xs)[1]).sum()

        learned = jax.tree.map(jnp.ones_like, params["initial_carry"])
        gradient = jax.jit(jax.grad(loss))({**params, "initial_carry": learned})
        assert learned.h is None
        for leaf in jax.tree.leaves(gradient["initial_carry"]):
            assert np.abs(leaf).max() > 0


def test_a_learned_h_is_refused_by_its_name():
    cell = GLA(4, num_heads=2, learned_initial_carry=True)
    params = cell.init(jax.random.key(0), 3)
    learned = params["initial_carry"]._replace(h=jnp.zeros(4))
    words = (
        r"GLA: params has the parts .*initial_carry.*\.h.* too many and \[\] too few"
    )
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, {**params, "initial_carry": learned}, jnp.ones((5, 2, 3)))
    learned = learned._replace(h=None, S=None)
    words = r"\[\] too many and .*initial_carry.*\.S"
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, {**params, "initial_carry": learned}, jnp.ones((5, 2, 3)))
