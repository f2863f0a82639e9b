"""`jaxrnn.testing.check_cell`: it names what is wrong with a broken cell, and every
built-in cell and layer passes.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from subjects import PLAIN, SUBJECTS, UserCell, draw, spatial_axes

import jaxrnn
from jaxrnn.extending import ContextCell, unroll_part
from jaxrnn.testing import LawError, check_cell
from jaxrnn.testing.check import LAWS

pytestmark = pytest.mark.usefixtures("optax_promotion")  # as for users

D = 3


@dataclasses.dataclass(frozen=True)
class Good(jaxrnn.Cell):
    """A cell that keeps all laws; the others differ from it in one place."""

    hidden_size: int = 4

    def init(self, key, input_size):
        keys, H = jax.random.split(key), self.hidden_size
        return {
            "kernel": jax.random.normal(keys[0], (input_size, H)),
            "recurrent_kernel": 0.5 * jax.random.normal(keys[1], (H, H)),
        }

    def project(self, params, x):
        return x @ params["kernel"]

    def step(self, params, carry, z):
        return jnp.tanh(z + carry @ params["recurrent_kernel"])

    def output(self, params, carry, x):
        return carry


@dataclasses.dataclass(frozen=True)
class MixesRows(Good):
    def step(self, params, carry, z):
        return super().step(params, carry - carry.mean(0), z)


@dataclasses.dataclass(frozen=True)
class OutputMixesRows(Good):
    def output(self, params, carry, x):
        return carry - carry.mean(-2, keepdims=True)


@dataclasses.dataclass(frozen=True)
class NoBatchAxes(Good):
    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros(self.hidden_size, dtype or params["kernel"].dtype)


@dataclasses.dataclass(frozen=True)
class LooksBack(Good):
    def project(self, params, x):
        return super().project(params, x + 0.5 * jnp.roll(x, 1, axis=0))


@dataclasses.dataclass(frozen=True)
class LooksAhead(Good):
    def project(self, params, x):
        return super().project(params, x + 0.5 * jnp.roll(x, -1, axis=0))


LEFT_BEHIND: list[Any] = []


@dataclasses.dataclass(frozen=True)
class OutputFromOutside(Good):
    def step(self, params, carry, z):
        new = super().step(params, carry, z)
        LEFT_BEHIND[:] = [new]
        return new

    def output(self, params, carry, x):
        return carry + 0.1 * LEFT_BEHIND[0]


@dataclasses.dataclass(frozen=True)
class Drifts(Good):
    """float32 stays, and bfloat16 becomes float32."""

    def step(self, params, carry, z):
        return jnp.asarray(
            super().step(params, carry, z), jnp.promote_types(carry.dtype, jnp.float32)
        )


@dataclasses.dataclass(frozen=True)
class OnlyFloat32(Good):
    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.float32)


@dataclasses.dataclass(frozen=True)
class NotFinite(Good):
    def step(self, params, carry, z):
        return super().step(params, carry, z) * (carry / carry)


@jax.custom_vjp
def straight(x):
    return jnp.tanh(x)


straight.defvjp(lambda x: (jnp.tanh(x), None), lambda _, g: (g,))


@dataclasses.dataclass(frozen=True)
class WrongGradient(Good):
    def step(self, params, carry, z):
        return straight(z + carry @ params["recurrent_kernel"])


@dataclasses.dataclass(frozen=True)
class StepBesideAffine(jaxrnn.LinearCell):
    hidden_size: int = 4
    init = UserCell.init

    def project(self, params, x):
        return x @ params["kernel"]

    def affine(self, params, z):
        return jax.nn.sigmoid(z), z

    def step(self, params, carry, z):
        a, b = self.affine(params, z)
        return a * carry + (1 - a) * b


@dataclasses.dataclass(frozen=True)
class WrongChunks(jaxrnn.MLSTM):
    def run_chunks(self, params, carry, zs, *rest):
        last, hs = super().run_chunks(params, carry, zs, *rest)
        return last, 1.001 * hs


@dataclasses.dataclass(frozen=True)
class Around(jaxrnn.Layer):
    """A layer that hands everything on; those below do not."""

    cell: jaxrnn.Cell = Good()
    factor: float = 1.0

    def init(self, key, input_size, dtype=None):
        return self.cell.init(key, input_size)

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params, batch_shape, dtype)

    def unroll(self, params, carry, xs, spec):
        return unroll_part(self.cell, params, carry, xs, spec)


@dataclasses.dataclass(frozen=True)
class ForgetsTheMask(Around):
    def unroll(self, params, carry, xs, spec):
        return super().unroll(params, carry, xs, spec.replace(mask=None))


@dataclasses.dataclass(frozen=True)
class ForgetsResets(Around):
    def unroll(self, params, carry, xs, spec):
        return super().unroll(params, carry, xs, spec.replace(resets=None))


@dataclasses.dataclass(frozen=True)
class OnlyForwards(Around):
    def unroll(self, params, carry, xs, spec):
        return super().unroll(params, carry, xs, spec.replace(reverse=False))


@dataclasses.dataclass(frozen=True)
class ReadsPadding(Around):
    reads_inputs: ClassVar[bool] = False

    def unroll(self, params, carry, xs, spec):
        last, ys, carries = super().unroll(params, carry, xs, spec)
        return last, ys + (xs @ params["kernel"]) ** 2, carries


@dataclasses.dataclass
class Mutable(jaxrnn.Cell):
    """Not frozen, so that it does not compare by value."""

    hidden_size: int = 4
    init, project, step = Good.init, Good.project, Good.step


# What each breaks, and words of the message.
BROKEN = {
    MixesRows: ({"rows"}, "step mixes the rows of a batch"),
    OutputMixesRows: ({"rows"}, "output mixes the rows of a batch"),
    NoBatchAxes: ({"batch_axes"}, "does not have one entry for each row"),
    LooksBack: ({"project"}, "project looks at an earlier step"),
    LooksAhead: ({"project"}, "project looks at a later step"),
    OutputFromOutside: ({"pure"}, "output gives another result"),
    Drifts: ({"dtypes"}, "begins as bfloat16 and is float32 after a step"),
    OnlyFloat32: ({"dtypes"}, "tried in float32, because in float64 it fails"),
    NotFinite: ({"finite"}, "holds NaN or infinity"),
    WrongGradient: ({"gradients"}, "and finite differences give"),
    StepBesideAffine: ({"affine"}, "and a * carry + b of affine, differs by"),
    WrongChunks: ({"chunks"}, "the values of chunks of 2 steps, and of single steps"),
    ForgetsTheMask: ({"masks"}, "unroll_part"),
    ForgetsResets: ({"resets"}, "results with resets differ"),
    OnlyForwards: ({"reverse"}, "results with reverse=True"),
    Mutable: ({"static"}, "must be decorated with @dataclasses.dataclass(frozen=True)"),
    ReadsPadding: ({"padding"}, "NaN at masked steps reaches"),
}
# Of those that break more than one law, the others.
BESIDES = {
    ForgetsTheMask: {"padding", "resets", "gradients"},
}
DEFAULT = {
    Mutable,
    MixesRows,
    NoBatchAxes,
    LooksBack,
    OutputFromOutside,
    Drifts,
    WrongChunks,
}


def rows(kinds):
    return [
        pytest.param(
            kind,
            id=kind.__name__,
            marks=[] if kind in DEFAULT else [pytest.mark.slow],
        )
        for kind in kinds
    ]


@pytest.mark.parametrize("kind", rows(BROKEN))
def test_a_broken_cell_is_named(kind):
    names, words = BROKEN[kind]
    cell = WrongChunks(4) if kind is WrongChunks else kind()
    # A matrix memory compiles slowly: what its chunks break is not tried beside.
    laws = ["static", "chunks"] if kind is WrongChunks else None
    with pytest.raises(LawError) as error:
        check_cell(cell, D, laws=laws)
    found = {result.name for result in error.value.report.broken}
    assert names <= found
    assert found - names <= BESIDES.get(kind, set())
    text = " ".join(str(error.value).split())
    assert words in text
    for result in error.value.report.broken:
        assert f"broken {result.name}" in text
        assert result.words
    assert error.value.report[next(iter(names))].repair


def test_a_good_cell_keeps_all_laws():
    report = check_cell(Good(), D)
    assert not report.broken
    kept = {result.name for result in report.results if result.status == "holds"}
    assert kept == set(LAWS) - {"affine", "chunks"}
    assert report["gradients"].figure < 1e-7
    assert "keeps all 16 laws" in str(report)


@pytest.mark.parametrize("name", ["elman", "min_gru", "residual"])
def test_some_of_the_library_pass(name):
    assert not check_cell(SUBJECTS[name], D).broken


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_all_of_the_library_pass(name):
    cell = SUBJECTS[name]
    pictures = draw(cell, 0).xs if spatial_axes(cell) else None
    report = check_cell(cell, D, xs=pictures)
    assert not report.broken
    if name in PLAIN and isinstance(SUBJECTS[name], jaxrnn.LinearCell):
        assert report["chunks"].status == "holds"


class Tokens(NamedTuple):
    number: jax.Array
    features: jax.Array


@dataclasses.dataclass(frozen=True)
class Reads(jaxrnn.Cell):
    """Tokens beside features, and a context."""

    hidden_size: int
    feature_ndim: ClassVar[Any] = Tokens(0, 1)
    takes_context: ClassVar[bool] = True

    def init(self, key, input_size):
        return {
            "embedding": jax.random.normal(key, (5, self.hidden_size)),
            "kernel": jax.random.normal(key, (input_size, self.hidden_size)),
        }

    def project(self, params, x, context):
        return params["embedding"][x.number] + x.features @ params["kernel"]

    def step(self, params, carry, z, context):
        return jnp.tanh(0.5 * carry + z + context)


@pytest.mark.slow
def test_inputs_and_a_context_of_ones_own():
    keys = jax.random.split(jax.random.key(0), 3)
    xs = Tokens(
        jax.random.randint(keys[0], (5, 3), 0, 5), jax.random.normal(keys[1], (5, 3, D))
    )
    context = jax.random.normal(keys[2], (3, 4))
    assert not check_cell(Reads(4), D, xs=xs, context=context).broken


@pytest.mark.slow
def test_a_layer_that_draws_is_tried_without():
    report = check_cell(jaxrnn.stack(Good(), jaxrnn.dropout(0.5)), D)
    assert "tried without its random numbers" in str(report)


def test_mistakes_in_calling_it(plain_errors):
    with pytest.raises(ValueError, match="there is no law 'mask': there are static"):
        check_cell(Good(), D, laws=["mask"])
    with pytest.raises(TypeError, match="expected an instance: Good"):
        check_cell(Good, D)
    with pytest.raises(TypeError, match="needs input_size, the number of features"):
        check_cell(Good())
    with pytest.raises(ValueError, match="pass xs=, inputs"):
        check_cell(Reads(4), D)
    xs = Tokens(jnp.zeros((5, 3), int), jnp.ones((5, 3, D)))
    with pytest.raises(TypeError, match=r"an array of shape \(5, 3, 3\).* pass xs="):
        check_cell(Good(), jnp.ones((5, 3, D)))
    with pytest.raises(
        TypeError, match=r"check_cell\(Reads\(...\), input_size, context=...\)"
    ):
        check_cell(ContextCell(Reads(4)), D)
    with pytest.raises(
        ValueError, match=r"takes a context .* pass context=, .* \(3, \.\.\.\)"
    ):
        check_cell(Reads(4), D, xs=xs)
    with pytest.raises(ValueError, match=r"context has shape \(2, 4\), .* \(3,\)"):
        check_cell(Reads(4), D, xs=xs, context=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="xs must have time and batch axes"):
        check_cell(Good(), D, xs=jnp.ones((5, D)))


def test_an_error_of_the_cell_is_a_broken_law():
    @dataclasses.dataclass(frozen=True)
    class Fails(Good):
        def step(self, params, carry, z):
            raise RuntimeError("not yet written")

    with pytest.raises(LawError, match="RuntimeError: not yet written"):
        check_cell(Fails(), D)

    @dataclasses.dataclass(frozen=True)
    class NoCarry(Good):
        initial_carry = jaxrnn.Cell.initial_carry

        def step(self, params, carry, z):
            return carry._replace(h=z)

    with pytest.raises(LawError, match="NoCarry defines no initial_carry") as error:
        check_cell(NoCarry(), D)
    assert "in float64 it fails" not in str(error.value)


@pytest.mark.parametrize("x64", [False, True])
def test_it_changes_no_configuration(x64):
    with jax.enable_x64(x64):
        check_cell(Good(), D, laws=["static", "rows"])
        assert jnp.zeros(()).dtype == ("float64" if x64 else "float32")
