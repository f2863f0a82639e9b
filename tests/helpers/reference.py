"""The slow twins: time as a Python loop, gradients as explicit sums over lags, and
one step of each cell in plain numpy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from delta_twins import GATES as DELTA_RULES
from delta_twins import delta_output, delta_step
from jax.flatten_util import ravel_pytree
from quick import QUICK

import jaxrnn
from jaxrnn.core.validation import check_inputs


@functools.cache
def quick_compile():
    """XLA's options for compiling fast: these programs run a few times each. None
    where they are not known.
    """
    try:
        jax.jit(lambda x: x + 1, compiler_options=QUICK)(1.0)
    except Exception:  # another version of XLA
        return None
    return QUICK if jax.default_backend() == "cpu" else None


def compiled(function):
    """``jax.jit``, compiling fast."""
    return jax.jit(function, compiler_options=quick_compile())


def python_loop(cell, params, xs, carry, mask=None, resets=None, reverse=False):
    """``jaxrnn.unroll`` as a Python loop of streaming steps: ``(carry, ys, carries)``.

    A reset comes before its step; a masked step holds the carry and shows zero.
    """
    steps = len(xs)
    lead = check_inputs(xs, cell.feature_ndim)
    mask = jnp.ones(lead, bool) if mask is None else mask
    resets = jnp.zeros(lead, bool) if resets is None else resets
    ys, carries = [None] * steps, [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, ys[t] = one_step(cell, params, xs[t], carry, mask[t], resets[t])
        carries[t] = carry
    return (
        carry,
        jnp.stack(ys),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries),
    )


def one_step(cell, params, x, carry, keep, reset):
    """A streaming step with its flags."""
    carry = choose(reset, cell.initial_carry(params, reset.shape), carry)
    new, y = cell(params, carry, x)
    return choose(keep, new, carry), choose(keep, y, jnp.zeros_like(y))


def backpropagation(
    step, params, xs, carry, cotangents, mask, resets, reverse=False, window=None
):
    """Backpropagation through time by hand: ``((carry, ys), gradients of params, xs and
    carry, carries)``.

    ``step(params, x, carry, cotangents, keep, reset)`` gives values and gradients of
    `one_step`. With ``window`` no gradient passes from the beginning of a window, in
    the order of running, to the one before.
    """
    steps = len(xs)
    order = list(reversed(range(steps)) if reverse else range(steps))
    carry_cotangent, y_cotangents = cotangents
    xs, y_cotangents, mask, resets = map(np.asarray, (xs, y_cotangents, mask, resets))
    ys, carries, before, x_gradients = ([None] * steps for _ in range(4))
    for t in order:
        before[t] = carry
        carry, ys[t] = step(
            params, xs[t], carry, (carry_cotangent, y_cotangents[t]), mask[t], resets[t]
        ).values
        carries[t] = carry
    params_gradient = jax.tree.map(np.zeros_like, params)
    for count, t in reversed(list(enumerate(order))):
        now = (carry_cotangent, y_cotangents[t])
        immediate, x_gradients[t], carry_cotangent = step(
            params, xs[t], before[t], now, mask[t], resets[t]
        ).gradients
        params_gradient = jax.tree.map(np.add, params_gradient, immediate)
        if window is not None and count > 0 and count % window == 0:
            carry_cotangent = jax.tree.map(np.zeros_like, carry_cotangent)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *carries)
    return (
        (carry, np.stack(ys)),
        (params_gradient, np.stack(x_gradients), carry_cotangent),
        stacked,
    )


def ends_seen_backwards(resets, reverse):
    """A sequence that starts before step t ends at the step before: that is where
    the other direction is reset.
    """
    never = np.zeros_like(resets[:1])
    return np.concatenate([never, resets[:-1]] if reverse else [resets[1:], never])


def choose(flags, yes, no):
    """``yes`` where ``flags (*B)`` is True, leaf by leaf."""
    return jax.tree.map(
        lambda a, b: jnp.where(
            jnp.reshape(flags, flags.shape + (1,) * (a.ndim - flags.ndim)), a, b
        ),
        yes,
        no,
    )


@functools.cache
def lag_programs(cell, loss):
    """For `Lags`, compiled once for all its sequences: the Jacobian of the initial
    carry, and a step with its Jacobians.
    """

    def initial(theta, like):
        return ravel_pytree(cell.initial_carry(ravel_pytree(like[0])[1](theta)))[0]

    def step(theta, flat, like, x, target, keep, reset):
        params, carry = (
            ravel_pytree(tree)[1](vector)
            for tree, vector in zip(like, (theta, flat), strict=True)
        )
        carry = choose(reset, cell.initial_carry(params), carry)
        new, y = cell(params, carry, x)
        return ravel_pytree(choose(keep, new, carry))[0], jnp.where(
            keep, loss(y, target), 0
        )

    return compiled(jax.jacrev(initial)), compiled(
        lambda *now: (step(*now), jax.jacrev(step, (0, 1))(*now))
    )


class Lags:
    """The parts of a gradient by lag: ``G(t, k)``, how loss t reaches the parameters as
    they were used k steps earlier.

    For one sequence without batch axes, from the Jacobians of every step over the whole
    carry as one vector. With ``l_t = loss(y_t, target_t)`` seen as a function of the
    parameters and the carry before step t (steps from 1)::

        G(t, 0) = dl_t/dtheta
        G(t, k) = dl_t/ds_{t-1} J_{t-1} ... J_{t-k+1} F_{t-k}        J = ds_t/ds_{t-1}, F = ds_t/dtheta (immediate)

    and G(t, t) is the part that goes through the initial carry, as far as that is made
    from the parameters.
    """  # noqa: E501

    def __init__(self, cell, params, xs, targets, loss, mask=None, resets=None):
        like = params, cell.initial_carry(params)
        (theta, self.to_params), (start, to_carry) = map(ravel_pytree, like)
        initial, both = lag_programs(cell, loss)
        steps = len(xs)
        mask = np.ones(steps, bool) if mask is None else mask
        resets = np.zeros(steps, bool) if resets is None else resets
        self.steps, self.loss, self.parts = steps, 0.0, {}
        flat, immediate, jacobians = start, {0: np.asarray(initial(theta, like))}, {}
        for t in range(1, steps + 1):
            now = [np.asarray(a)[t - 1] for a in (xs, targets, mask, resets)]
            (new, loss_t), derivatives = both(theta, flat, like, *now)
            (immediate[t], jacobians[t]), (self.parts[t, 0], row) = jax.tree.map(
                np.asarray, derivatives
            )
            for k in range(1, t + 1):
                self.parts[t, k] = row @ immediate[t - k]
                row = row @ jacobians[t - k] if k < t else row
            flat, self.loss = new, self.loss + loss_t
        self.carry = to_carry(flat)

    def truncated(self, k1, k2):
        """The gradient of TBPTT(k1, k2) of the summed loss: windows end at k1, 2 k1,
        ..., T and begin k2 steps earlier.
        """
        total, oldest = 0.0, 0
        for end in [*range(k1, self.steps, k1), self.steps]:
            begin = max(0, min(oldest, end - k2))
            for t in range(oldest + 1, end + 1):
                lags = range(t + 1) if begin == 0 else range(t - begin)
                total = total + sum(self.parts[t, k] for k in lags)
            oldest = end
        return self.to_params(total)

    def full(self):
        """The gradient of the summed loss."""
        return self.to_params(sum(self.parts.values()))


def assert_slopes(gradients, function, tree, cotangent, tolerance=1e-11, step=1e-30):
    """Compare the gradient of ``sum(cotangent * function(tree))`` with derivatives that
    are taken without differentiation, in two random directions of each leaf.

    For an analytic function of real numbers, ``f'(x) = Im f(x + i step) / step`` to
    rounding: nothing is subtracted. ``function`` is one of numpy, and its value a list
    of arrays, as is ``cotangent``. An error of any entry is seen in any direction that
    is not orthogonal to it, and no random one is.
    """
    random = np.random.default_rng(2)
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    found, alike = jax.tree.flatten_with_path(gradients)
    assert alike == structure
    scale = max(float(np.abs(gradient).max()) for _, gradient in found)
    for n, (path, gradient) in enumerate(found):
        gradient, leaf = np.asarray(gradient), leaves[n]
        assert gradient.shape == leaf.shape, path
        for _ in range(2):
            direction = random.normal(size=leaf.shape)
            moved = [*leaves[:n], leaf + 1j * step * direction, *leaves[n + 1 :]]
            values = function(jax.tree.unflatten(structure, moved))
            slope = sum(
                (np.asarray(c) * v.imag).sum() / step
                for c, v in zip(cotangent, values, strict=True)
            )
            terms = gradient * direction
            error = abs(terms.sum() - slope)
            assert error <= tolerance * (scale + np.abs(terms).sum()), (path, error)


# --------------------------------------------------------------------------------------
# One step of each cell in numpy, written from the equations in its docstring; params by
# name, gates by slicing.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalized(x, scale):
    return (
        scale
        * (x - x.mean(-1, keepdims=True))
        / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    )


def elman_step(cell, p, h, x):
    f = {jnp.tanh: np.tanh, jax.nn.relu: lambda a: np.maximum(a, 0)}[cell.activation]
    return f(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"])


def lstm_step(cell, p, carry, x):
    (h, c), H = carry, cell.hidden_size
    from_x, from_h = x @ p["input_kernel"], h @ p["recurrent_kernel"]
    if cell.layer_norm:
        from_x, from_h = (
            normalized(from_x, p["input_norm_scale"]),
            normalized(from_h, p["recurrent_norm_scale"]),
        )
    names = "fgo" if cell.coupled_gates else "ifgo"
    gates = from_x + from_h + p["bias"]
    a = {name: gates[..., n * H : (n + 1) * H] for n, name in enumerate(names)}
    peepholes = {}
    if cell.peephole:
        peepholes = {
            name: p["peephole_kernel"][n * H : (n + 1) * H]
            for n, name in enumerate(names.replace("g", ""))
        }
    f = sigmoid(a["f"] + peepholes.get("f", 0) * c)
    i = 1 - f if cell.coupled_gates else sigmoid(a["i"] + peepholes.get("i", 0) * c)
    new_c = f * c + i * np.tanh(a["g"])
    o = sigmoid(a["o"] + peepholes.get("o", 0) * new_c)
    shown = (
        normalized(new_c, p["cell_norm_scale"]) + p["cell_norm_bias"]
        if cell.layer_norm
        else new_c
    )
    new_h = o * np.tanh(shown)
    return (
        new_h if cell.projection_size is None else new_h @ p["projection_kernel"]
    ), new_c


def gru_step(cell, p, h, x):
    H = cell.hidden_size
    W, U, b = p["input_kernel"], p["recurrent_kernel"], p["bias"]
    scale_x = scale_h = None
    if cell.layer_norm:
        scale_x, scale_h = p["input_norm_scale"], p["recurrent_norm_scale"]

    def norm(a, scale, where):
        return a if scale is None else normalized(a, scale[where])

    gates, candidate = slice(0, 2 * H), slice(2 * H, 3 * H)
    rz = sigmoid(
        norm(x @ W[:, gates], scale_x, gates)
        + norm(h @ U[:, gates], scale_h, gates)
        + b[gates]
    )
    r, z = rz[..., :H], rz[..., H:]
    from_x = norm(x @ W[:, candidate], scale_x, candidate) + b[candidate]
    if cell.reset_after:
        n = np.tanh(
            from_x
            + r * (norm(h @ U[:, candidate], scale_h, candidate) + p["recurrent_bias"])
        )
    else:
        n = np.tanh(from_x + norm((r * h) @ U[:, candidate], scale_h, candidate))
    return (1 - z) * n + z * h


def mlstm_step(cell, p, carry, x):
    """Without stabilizer; the carry that comes and goes is scaled by exp(m) all the
    same.
    """
    _, C, n, m = carry  # of MLSTMState
    C, n = C * np.exp(m)[..., None, None], n * np.exp(m)[..., None]
    N, d_k, H = cell.num_heads, cell.keys, cell.hidden_size
    a, b = (
        np.split(x @ p["input_kernel"], np.cumsum(cell.blocks)[:-1], -1),
        np.split(p["bias"], np.cumsum(cell.blocks)[:-1]),
    )
    q, k, v = a[0] + b[0], a[1] / np.sqrt(d_k) + b[1], a[2] + b[2]
    q, k, v = (block.reshape(*x.shape[:-1], N, -1) for block in (q, k, v))
    i, f = (
        np.exp(a[4] + b[4]),
        sigmoid(a[5] + b[5]) if cell.forget_gate == "sigmoid" else np.exp(a[5] + b[5]),
    )
    C = f[..., None, None] * C + i[..., None, None] * k[..., :, None] * v[..., None, :]
    n = f[..., None] * n + i[..., None] * k
    read, weight = (
        np.einsum("...kv,...k->...v", C, q),
        np.einsum("...k,...k->...", n, q),
    )
    shown = (read / np.maximum(np.abs(weight), 1)[..., None]).reshape(*x.shape[:-1], H)
    m = np.where(
        (carry.n == 0).all(-1), np.log(i), np.maximum(np.log(f) + m, np.log(i))
    )
    return (
        sigmoid(a[3] + b[3]) * shown,
        C / np.exp(m)[..., None, None],
        n / np.exp(m)[..., None],
        m,
    )


def slstm_step(cell, p, carry, x):
    """Without stabilizer; the carry that comes and goes is scaled by exp(m) all the
    same.
    """
    h, c, n, m = carry
    c, n, size = c * np.exp(m), n * np.exp(m), cell.hidden_size // cell.num_heads
    from_h = np.zeros((*x.shape[:-1], 4, cell.hidden_size))
    for head in range(cell.num_heads):
        units = slice(head * size, (head + 1) * size)
        for gate in range(4):
            from_h[..., gate, units] = (
                h[..., units]
                @ p["recurrent_kernel"][head][:, gate * size : (gate + 1) * size]
            )
    a = (x @ p["input_kernel"] + p["bias"]).reshape(*x.shape[:-1], 4, -1) + from_h
    i, z, o = np.exp(a[..., 0, :]), np.tanh(a[..., 2, :]), sigmoid(a[..., 3, :])
    f = sigmoid(a[..., 1, :]) if cell.forget_gate == "sigmoid" else np.exp(a[..., 1, :])
    new_c, new_n = f * c + i * z, f * n + i
    m = np.where(n == 0, np.log(i), np.maximum(np.log(f) + m, np.log(i)))
    return o * new_c / new_n, new_c / np.exp(m), new_n / np.exp(m), m


def s5_step(cell, p, s, x):
    eigenvalue = p["eigenvalue_real"] + 1j * p["eigenvalue_imaginary"]
    step, half = np.exp(p["log_step"]), p["input_kernel"].shape[1] // 2
    drive = x @ (p["input_kernel"][:, :half] + 1j * p["input_kernel"][:, half:])
    return (
        np.exp(eigenvalue * step) * s
        + (np.exp(eigenvalue * step) - 1) / eigenvalue * drive
    )


def indrnn_step(cell, p, h, x):
    f = {jnp.tanh: np.tanh, jax.nn.relu: lambda a: np.maximum(a, 0)}[cell.activation]
    return f(x @ p["input_kernel"] + h * p["recurrent_vector"] + p["bias"])


def diagonal_gru_step(cell, p, h, x):
    a_r, a_z, a_n = np.split(x @ p["input_kernel"] + p["bias"], 3, -1)
    u_r, u_z, u_n = np.split(p["recurrent_vector"], 3)
    r, z = sigmoid(a_r + u_r * h), sigmoid(a_z + u_z * h)
    return (1 - z) * np.tanh(a_n + u_n * (r * h)) + z * h


def diagonal_lstm_step(cell, p, carry, x):
    """That of the full LSTM, with diagonals written out as matrices."""
    U = np.concatenate([np.diag(u) for u in np.split(p["recurrent_vector"], 3)], -1)
    full = {name: leaf for name, leaf in p.items() if name != "recurrent_vector"} | {
        "recurrent_kernel": U
    }
    return lstm_step(
        jaxrnn.LSTM(cell.hidden_size, peephole=True, coupled_gates=True), full, carry, x
    )


def positive(a):
    """g of the minimal cells' log-space form."""
    return np.where(a >= 0, a + 0.5, sigmoid(a))


def min_gru_step(cell, params, h, x):
    z, n = np.split(x @ params["input_kernel"] + params["bias"], 2, axis=-1)
    n = positive(n) if cell.positive else n
    return (1 - sigmoid(z)) * h + sigmoid(z) * n


def min_lstm_step(cell, params, h, x):
    i, f, n = np.split(x @ params["input_kernel"] + params["bias"], 3, axis=-1)
    n, i, f = positive(n) if cell.positive else n, sigmoid(i), sigmoid(f)
    i, f = (i / (f + i), f / (f + i)) if cell.normalized else (i, f)
    return f * h + i * n


def rg_lru_step(cell, params, h, x):
    r, i = np.split(sigmoid(x @ params["input_kernel"] + params["bias"]), 2, axis=-1)
    a = sigmoid(params["decay"]) ** (8 * r)
    return a * h + np.sqrt(1 - a**2) * (i * x)


def mgu_step(cell, p, h, x):
    H = cell.hidden_size
    W, U, b = p["input_kernel"], p["recurrent_kernel"], p["bias"]
    f = sigmoid(x @ W[:, :H] + h @ U[:, :H] + b[:H])
    return (1 - f) * h + f * np.tanh(x @ W[:, H:] + (f * h) @ U[:, H:] + b[H:])


def ctrnn_weights(cell, p):
    """U, with the signs of the units."""
    H, U = cell.hidden_size, p["recurrent_kernel"]
    if cell.dale is not None:
        for unit in range(H):
            row = np.where(U[unit].real < 0, -U[unit], U[unit])
            row = row if unit < round(cell.dale * H) else -row
            U = np.concatenate([U[:unit], row[None], U[unit + 1 :]])
    return U if cell.autapses else U - np.diag(np.diag(U))


def ctrnn_step(cell, p, s, x):
    f = {jnp.tanh: np.tanh, jax.nn.relu: lambda a: np.maximum(a, 0)}[cell.activation]
    a = sigmoid(p["rate_logit"]) if cell.learned_tau else cell.dt / np.array(cell.tau)
    drive = f(s) @ ctrnn_weights(cell, p) + x @ p["input_kernel"] + p["bias"]
    return s + a * (drive - s)


def ctrnn_output(cell, p, s, x):
    return np.maximum(s, 0) if cell.activation is jax.nn.relu else np.tanh(s)


def orthogonal_step(cell, p, h, x):
    """By a system of equations, where the cell has an inverse."""
    H, skew = cell.hidden_size, iter(p["skew"])
    A = np.zeros((H, H), p["skew"].dtype)
    for i in range(H):
        for j in range(i):
            A[i, j] = next(skew)
            A[j, i] = -A[i, j]
    W = np.linalg.solve((np.eye(H) + A).T, (np.eye(H) - A).T).T
    W[: round(cell.negative * H)] *= -1
    a, b = x @ p["input_kernel"] + h @ W, p["bias"]
    if not cell.modrelu:
        return np.tanh(a + b)
    sign = np.sign(a.real)
    return sign * np.maximum(sign * a + b, 0)


def rtu_step(cell, p, s, x):
    """In complex arithmetic."""
    r, half = np.exp(-np.exp(p["nu"])), p["input_kernel"].shape[1] // 2
    W = p["input_kernel"][:, :half] + 1j * p["input_kernel"][:, half:]
    return r * np.exp(1j * np.exp(p["theta"])) * s + np.sqrt(1 - r**2) * (x @ W)


def rtu_output(cell, p, s, x):
    return np.maximum(np.concatenate([s.real, s.imag], -1), 0)


def nonlinear_rtu_step(cell, p, h, x):
    """By the matrix of the rotation, unit by unit."""
    f = {jnp.tanh: np.tanh, jax.nn.relu: lambda a: np.maximum(a, 0)}[cell.activation]
    H, r, phi = cell.hidden_size, np.exp(-np.exp(p["nu"])), np.exp(p["theta"])
    drive, new = x @ p["input_kernel"], [None] * (2 * H)
    for unit in range(H):
        pair = h[..., [unit, unit + H]]
        c, s = np.cos(phi[unit]), np.sin(phi[unit])
        turned = pair @ (r[unit] * np.array([[c, s], [-s, c]]))
        gamma = np.sqrt(1 - r[unit] ** 2)
        for part, place in enumerate((unit, unit + H)):
            new[place] = f(turned[..., part] + gamma * drive[..., place])
    return np.stack(new, -1)


def convolved(x, kernel):
    """A convolution that keeps the shape, as a sum over the places of the kernel."""
    sizes = kernel.shape[:-2]
    shape = x.shape[-1 - len(sizes) : -1]
    around = [((size - 1) // 2, size // 2) for size in sizes]
    padded = np.pad(x, [(0, 0)] * (x.ndim - len(sizes) - 1) + around + [(0, 0)])
    total = 0
    for place in np.ndindex(*sizes):
        window = tuple(slice(p, p + n) for p, n in zip(place, shape, strict=True))
        total = total + padded[(..., *window, slice(None))] @ kernel[place]
    return total


def conv_lstm_step(cell, p, carry, x):
    (h, c), H = carry, cell.hidden_size
    W, U, b = p["input_kernel"], p["recurrent_kernel"], p["bias"]
    a = convolved(x, W) + convolved(h, U) + b
    i, f, g, o = (a[..., n * H : (n + 1) * H] for n in range(4))
    seen = p["peephole_kernel"] if cell.peephole else np.zeros(3 * H)
    i, f = sigmoid(i + seen[..., :H] * c), sigmoid(f + seen[..., H : 2 * H] * c)
    new_c = f * c + i * np.tanh(g)
    return sigmoid(o + seen[..., 2 * H :] * new_c) * np.tanh(new_c), new_c


def conv_gru_step(cell, p, h, x):
    H, W, U, b = cell.hidden_size, p["input_kernel"], p["recurrent_kernel"], p["bias"]
    from_x = convolved(x, W) + b
    rz = sigmoid(from_x[..., : 2 * H] + convolved(h, U[..., : 2 * H]))
    r, z = rz[..., :H], rz[..., H:]
    n = np.tanh(from_x[..., 2 * H :] + convolved(r * h, U[..., 2 * H :]))
    return (1 - z) * n + z * h


def timed(cell, x):
    """The features of an input, and the time since the one before, ``(*B, 1)``."""
    return (x[0], x[1][..., None]) if cell.irregular else (x, 1.0)


def ltc_step(cell, p, h, x):
    x, elapsed = timed(cell, x)
    d, tau = elapsed / cell.unfolds, np.exp(p["log_tau"])
    for _ in range(cell.unfolds):
        f = sigmoid(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"])
        h = (h + d * f * p["reversal"]) / (1 + d * (1 / tau + f))
    return h


def cfc_step(cell, p, h, x):
    x, elapsed = timed(cell, x)
    u = x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"]
    if cell.backbone_size is not None:
        u = 1.7159 * np.tanh(2 * u / 3) @ p["head_kernel"] + p["head_bias"]
    if cell.mode == "pure":
        w, f = (np.where(a.real < 0, -a, a) for a in (p["rate"], u))
        return p["rest_state"] * (1 - np.exp(-(w + f) * elapsed) * u)
    f, s, g, n = np.split(u, 4, -1)
    later = sigmoid(f * elapsed + s)
    share = 1 if cell.mode == "no_gate" else later
    return (1 - later) * np.tanh(g) + share * np.tanh(n)


def mamba_step(cell, p, carry, x):
    """One number after another, as a loop over channels and state variables."""
    H, n = cell.hidden_size, cell.state_size
    packed = x @ p["input_kernel"]
    u, recent = packed[..., :H], None
    if cell.conv is not None:
        recent = np.concatenate([carry.recent[..., 1:, :], u[..., None, :]], -2)
        u = p["conv_bias"] + np.zeros_like(u)
        for j in range(cell.conv):
            u = u + p["conv_kernel"][j] * recent[..., cell.conv - 1 - j, :]
    u, z = (a * sigmoid(a) for a in (u, packed[..., H:]))
    chosen = u @ p["select_kernel"]
    rank = chosen.shape[-1] - 2 * n
    dt = np.log(1 + np.exp(chosen[..., :rank] @ p["dt_kernel"] + p["dt_bias"]))
    kind = np.result_type(chosen, carry.s, *jax.tree.leaves(p))
    s, y = carry.s.astype(kind), (p["skip"] * u).astype(kind)
    for c in range(H):
        for k in range(n):
            decay = np.exp(-dt[..., c] * np.exp(p["A_log"][c, k]))
            write = dt[..., c] * u[..., c] * chosen[..., rank + k]
            s[..., c, k] = decay * s[..., c, k] + write
            y[..., c] = y[..., c] + s[..., c, k] * chosen[..., rank + n + k]
    return y * z, s, recent


def mamba_output(cell, p, carry, x):
    return carry[0] @ p["output_kernel"]


# Their twins are loops over a whole sequence, in files of their own.
TWINS_ELSEWHERE = {"RWKV7", "MLSTMMixer", "Mamba2", "Mamba3", "GLA", "RetNet"}
TWINS_ELSEWHERE |= {"HGRN2", "RWKV6"}
NUMPY_STEPS = {
    "Mamba": mamba_step,
    **dict.fromkeys(DELTA_RULES, delta_step),
    "LTC": ltc_step,
    "CfC": cfc_step,
    "ConvLSTM": conv_lstm_step,
    "ConvGRU": conv_gru_step,
    "RTU": rtu_step,
    "NonlinearRTU": nonlinear_rtu_step,
    "OrthogonalRNN": orthogonal_step,
    "CTRNN": ctrnn_step,
    "MGU": mgu_step,
    "MinGRU": min_gru_step,
    "MinLSTM": min_lstm_step,
    "RGLRU": rg_lru_step,
    "Elman": elman_step,
    "LSTM": lstm_step,
    "GRU": gru_step,
    "MLSTM": mlstm_step,
    "SLSTM": slstm_step,
    "S5": s5_step,
    "IndRNN": indrnn_step,
    "DiagonalGRU": diagonal_gru_step,
    "DiagonalLSTM": diagonal_lstm_step,
}
NUMPY_OUTPUTS = {
    **dict.fromkeys(DELTA_RULES, delta_output),
    "Mamba": mamba_output,
    "CTRNN": ctrnn_output,
    "RTU": rtu_output,
}


def numpy_output(cell, p, carry, x):
    """What a cell shows: by default the first part of its carry."""
    show = NUMPY_OUTPUTS.get(type(cell).__name__)
    return jax.tree.leaves(carry)[0] if show is None else show(cell, p, carry, x)
