"""Methods around a cell: attention, recurrent PPO, hypernetworks, MAML, ensembles,
online training, export, and diagnostics of a cell of one's own.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gallery import (
    B,
    D,
    H,
    T,
    assert_same,
    flags,
    lines_of_code,
    normal,
    with_gradients,
)

import jaxrnn
from jaxrnn import diagnostics

S = 5  # places in a memory


@dataclasses.dataclass(frozen=True)
class Decoder(jaxrnn.Cell):
    """A decoder that reads a memory by dot-product attention."""

    hidden_size: int
    takes_context: ClassVar = True

    def init(self, key, input_size):
        w, u, r = jax.random.split(key, 3)
        return {
            "w": jax.random.normal(w, (input_size, self.hidden_size)) / 2,
            "u": jax.random.normal(u, (self.hidden_size,) * 2) / 2,
            "r": jax.random.normal(r, (self.hidden_size,) * 2) / 2,
        }

    def project(self, params, x, context):
        return x @ params["w"]

    def step(self, params, h, z, context):
        score = jnp.einsum("...h,...sh->...s", h, context["memory"])
        score = jnp.where(context["valid"], score, -jnp.inf)
        share = jax.nn.softmax(score, axis=-1)
        read = jnp.einsum("...s,...sh->...h", share, context["memory"])
        return jnp.tanh(z + h @ params["u"] + read @ params["r"])


def test_attention_over_a_memory():
    assert lines_of_code(Decoder) <= 25
    cell, xs, given = Decoder(H), normal(1, T, B, D), flags()
    params = cell.init(jax.random.key(0), D)
    valid = jnp.arange(S) < jnp.array([[S], [3]])

    def ours(params, xs, memory):
        context = {"memory": memory, "valid": valid}
        return jaxrnn.unroll(cell, params, xs, context=context, **given)

    def twin(params, xs, memory):
        """Over the valid places of each row alone, step by step."""
        outputs, last = [], []
        for b, places in enumerate((S, 3)):
            h, ys, kept = jnp.zeros(H), [], memory[b, :places]
            for t in range(T):
                h = jnp.where(given["resets"][t, b], 0.0, h)
                share = jnp.exp(kept @ h) / jnp.exp(kept @ h).sum()
                drive = params["w"].T @ xs[t, b] + params["u"].T @ h
                new = jnp.tanh(drive + params["r"].T @ (kept.T @ share))
                valid_step = given["mask"][t, b]
                h = jnp.where(valid_step, new, h)
                ys.append(jnp.where(valid_step, h, 0.0))
            outputs.append(jnp.stack(ys))
            last.append(h)
        return jnp.stack(last), jnp.stack(outputs, 1)

    args = (params, xs, normal(2, B, S, H))
    assert_same(with_gradients(ours, *args), with_gradients(twin, *args))


def ppo_loss(cell, params, batch, clip=0.2, beta=0.5, entropy=0.01):
    """The clipped loss of recurrent PPO (Schulman et al. 2017) over one rollout.

    ``batch`` holds what the rollout gave: observations, actions, log probabilities,
    advantages, returns, and ``start``: whether an episode begins at a step.
    """
    _, ys = jaxrnn.unroll(cell, params["cell"], batch["obs"], resets=batch["start"])
    logits = jax.nn.log_softmax(ys @ params["policy"])
    value = (ys @ params["value"])[..., 0]
    logp = jnp.take_along_axis(logits, batch["action"][..., None], -1)[..., 0]
    ratio = jnp.exp(logp - batch["old"])
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    gain = jnp.minimum(ratio * batch["advantage"], clipped * batch["advantage"])
    error = jnp.square(value - batch["return"])
    disorder = -(jnp.exp(logits) * logits).sum(-1)
    return (beta * error - gain - entropy * disorder).mean()


def test_recurrent_ppo():
    assert lines_of_code(ppo_loss) <= 20
    cell, A = jaxrnn.GRU(H), 3
    params = {
        "cell": cell.init(jax.random.key(0), D, jnp.float64),
        "policy": normal(1, H, A),
        "value": normal(2, H, 1),
    }
    batch = {
        "obs": normal(3, T, B, D),
        "action": jax.random.randint(jax.random.key(4), (T, B), 0, A),
        "advantage": normal(5, T, B),
        "return": normal(8, T, B),
        "old": -jnp.abs(normal(6, T, B)) - 1,
        "start": flags()["resets"],
    }

    def twin(params):
        """Every episode is a sequence of its own, which begins at the zero state."""
        total = 0.0
        for b in range(B):
            h = jnp.zeros(H)
            for t in range(T):
                h = h * (1 - batch["start"][t, b])
                h, y = cell(params["cell"], h, batch["obs"][t, b])
                share = jnp.exp(params["policy"].T @ y)
                share = share / share.sum()
                r = share[batch["action"][t, b]] / jnp.exp(batch["old"][t, b])
                a = batch["advantage"][t, b]
                surrogate = jnp.where(a > 0, jnp.minimum(r, 1.2), jnp.maximum(r, 0.8))
                error = (params["value"].T @ y)[0] - batch["return"][t, b]
                total += error**2 / 2 - surrogate * a
                total += 0.01 * (share * jnp.log(share)).sum()
        return total / (T * B)

    ours = jax.jit(jax.value_and_grad(lambda p: ppo_loss(cell, p, batch)))(params)
    assert_same(ours, jax.jit(jax.value_and_grad(twin))(params))


def test_a_hypernetwork_makes_the_weights_of_every_sequence():
    """Weights are parameters: `jax.vmap` maps them as it maps the inputs."""
    cell, xs = jaxrnn.Elman(H), normal(1, T, B, D)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D, jnp.float64))
    leaves, tree = jax.tree.flatten(shapes)
    sizes = [leaf.size for leaf in leaves]

    def weights(hyper, code):
        flat = jnp.split(code @ hyper, np.cumsum(sizes)[:-1])
        return jax.tree.unflatten(
            tree, [f.reshape(s.shape) for f, s in zip(flat, leaves, strict=True)]
        )

    def ours(hyper, codes, xs):
        def run(code, x):
            return jaxrnn.unroll(cell, weights(hyper, code), x)[1]

        return jax.vmap(run, (0, 1), 1)(codes, xs)

    def twin(hyper, codes, xs):
        rows = []
        for b in range(B):
            p, h, ys = weights(hyper, codes[b]), jnp.zeros(H), []
            for t in range(T):
                drive = p["input_kernel"].T @ xs[t, b] + p["bias"]
                h = jnp.tanh(drive + p["recurrent_kernel"].T @ h)
                ys.append(h)
            rows.append(jnp.stack(ys))
        return jnp.stack(rows, 1)

    args = (normal(2, 2, sum(sizes)), normal(3, B, 2), xs)
    assert_same(with_gradients(ours, *args), with_gradients(twin, *args))


def test_maml_differentiates_through_an_update():
    """The gradient of a loss after one gradient step (Finn et al. 2017)."""
    cell, xs, ys = jaxrnn.Elman(H), normal(1, T, B, D), normal(2, T, B, H)
    params = cell.init(jax.random.key(0), D, jnp.float64)

    def loss(unrolled, params):
        return jnp.square(unrolled(params) - ys).mean()

    def adapted(unrolled, params):
        gradient = jax.grad(functools.partial(loss, unrolled))(params)
        inner = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
        return loss(unrolled, inner)

    def ours(params):
        return jaxrnn.unroll(cell, params, xs)[1]

    def twin(params):
        def step(h, x):
            return cell(params, h, x)

        return jax.lax.scan(step, jnp.zeros((B, H)), xs)[1]

    def run(unrolled):
        return jax.jit(jax.value_and_grad(functools.partial(adapted, unrolled)))(params)

    assert_same(run(ours), run(twin))


def test_an_ensemble_is_a_vmap_over_parameters():
    cell, xs, members = jaxrnn.LSTM(H), normal(1, T, B, D), 3
    keys = jax.random.split(jax.random.key(0), members)
    params = jax.vmap(lambda key: cell.init(key, D, jnp.float64))(keys)

    def ours(params):
        return jax.vmap(lambda p: jaxrnn.unroll(cell, p, xs)[1])(params)

    def twin(params):
        each = [jax.tree.map(lambda a: a[i], params) for i in range(members)]  # noqa: B023
        return jnp.stack([jaxrnn.unroll(cell, p, xs)[1] for p in each])

    assert_same(with_gradients(ours, params), with_gradients(twin, params))


def online(cell, stream, k1, stop=None, state=None):
    """Train a readout and a cell on a stream, piece by piece, by TBPTT."""

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            cell,
            params["cell"],
            window.inputs,
            carry,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        error = ys @ params["readout"] - window.targets
        return jnp.square(error).mean(-1), carries

    tbptt = jaxrnn.TBPTT(losses, lambda p, b: cell.initial_carry(p["cell"], b), k1=k1)
    optimizer = optax.adam(1e-2)
    if state is None:
        params = {
            "cell": cell.init(jax.random.key(0), D, jnp.float64),
            "readout": normal(7, H, 1),
        }
        first = jaxrnn.Window(*jax.tree.map(lambda a: a[0], stream))
        state = params, optimizer.init(params), tbptt.init(params, first, (B,)), 0
    params, opt_state, carry, begin = state
    for piece in range(begin, len(stream[0]) if stop is None else stop):
        window = jaxrnn.Window(*jax.tree.map(lambda a: a[piece], stream))  # noqa: B023
        params, opt_state, _, carry = tbptt.update(
            optimizer, params, opt_state, window, carry
        )
        begin = piece + 1
    return params, opt_state, carry, begin


def test_a_stream_by_tbptt_killed_and_resumed(tmp_path):
    cell, stream = jaxrnn.GRU(H), (normal(1, 4, 4, B, D), normal(2, 4, 4, B, 1))
    whole = online(cell, stream, k1=2)
    half = online(cell, stream, k1=2, stop=2)
    leaves, tree = jax.tree.flatten(half)
    np.savez(tmp_path / "state.npz", *map(np.asarray, leaves))
    with np.load(tmp_path / "state.npz") as saved:
        loaded = [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(leaves))]
    state = jax.tree.unflatten(tree, loaded)
    resumed = online(cell, stream, k1=2, state=(*state[:3], int(state[3])))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()


def test_export_and_donated_streaming():
    cell, xs = jaxrnn.LSTM(H), normal(1, T, B, D)
    params = cell.init(jax.random.key(0), D, jnp.float64)
    carry, ys = cell.initial_carry(params, (B,)), []
    step = jax.jit(cell, donate_argnums=1)
    exported = jax.export.deserialize(
        jax.export.export(step)(params, carry, xs[0]).serialize()
    )
    again = cell.initial_carry(params, (B,))
    for x in xs:
        again, y = exported.call(params, again, x)
        ys.append(y)
        before = carry
        carry, _ = step(params, carry, x)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    want = jaxrnn.unroll(cell, params, xs)
    assert_same((again, jnp.stack(ys)), want, 1e-12)
    assert_same(carry, want[0], 1e-12)


@dataclasses.dataclass(frozen=True)
class Own(jaxrnn.Cell):
    """h' = (1 - a) h + a tanh(W x + U h), with a learned rate a."""

    hidden_size: int

    def init(self, key, input_size):
        w, u = jax.random.split(key)
        return {
            "w": jax.random.normal(w, (input_size, self.hidden_size)) / 2,
            "u": jax.random.normal(u, (self.hidden_size,) * 2) / 2,
            "rate": jnp.full((self.hidden_size,), -0.5),
        }

    def project(self, params, x):
        return x @ params["w"]

    def step(self, params, h, z):
        rate = jax.nn.sigmoid(params["rate"])
        return (1 - rate) * h + rate * jnp.tanh(z + h @ params["u"])


def test_parameter_lags_and_lyapunov_exponents_of_a_cell_of_ones_own():
    cell, xs = Own(H), normal(1, T, B, D)
    params = cell.init(jax.random.key(0), D)

    def step(p, h, x):
        return cell.step(p, h, cell.project(p, x))

    def by_step(each):
        """The loss with parameters of its own for every step."""
        h = jnp.zeros((B, H))
        for p, x in zip(each, xs, strict=True):
            h = step(p, h, x)
        return jnp.square(h).sum()

    lags = diagnostics.parameter_lags(
        cell, params, xs, lambda y: jnp.square(y).sum(), terms=True
    )
    terms = jax.jit(jax.grad(by_step))([params] * T)
    newest_first = jax.tree.map(lambda *leaves: jnp.stack(leaves[::-1]), *terms)
    assert_same(lags.terms, newest_first)

    carry, growth = jnp.zeros((B, H)), 0.0
    for x in xs:
        jacobian = jax.vmap(jax.jacobian(functools.partial(step, params)))(carry, x)
        growth += jnp.linalg.slogdet(jacobian)[1] / T
        carry = step(params, carry, x)
    spectrum = diagnostics.lyapunov_spectrum(cell, params, xs, key=jax.random.key(3))
    assert_same(spectrum.exponents.sum(-1), growth)
