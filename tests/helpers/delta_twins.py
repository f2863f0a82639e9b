"""One step of the delta rules in numpy, written from the equations in their docstrings:
DeltaNet, Gated DeltaNet, DeltaProduct, KDA and GDN-2.
"""

from types import SimpleNamespace

import jax
import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def silu(x):
    return x * sigmoid(x)


class Columns:
    """Takes one block of columns after another."""

    def __init__(self, x):
        self.x, self.place = x, 0

    def take(self, *shape):
        size = int(np.prod(shape))
        block = self.x[self.place : self.place + size]
        assert len(block) == size
        self.place += size
        return block.reshape(shape)


def delta_step(cell, p, carry, x):
    """A step of a batch: h, S and recent."""
    parts = [
        step_of_one(
            cell, p, *jax.tree.map(lambda part, b=b: part[b], tuple(carry)), x_b
        )
        for b, x_b in enumerate(x)
    ]
    h, S, recent = zip(*parts, strict=True)
    recent = None if recent[0] is None else np.stack(recent)
    return np.stack(h), np.stack(S), recent


def delta_output(cell, p, carry, x):
    return carry[0] @ p["output_kernel"]


def step_of_one(cell, p, h, S, recent, x):
    """The step of one sequence, head by head and key by key."""
    n, N, Nk = cell.micro_steps, cell.num_heads, cell.num_key_heads or cell.num_heads
    K, V = cell.keys, cell.hidden_size // cell.num_heads
    F = Nk * K + n * (Nk * K + N * V)
    z = x @ p["input_kernel"]
    convolved = z[:F]
    if cell.conv:
        recent = np.stack([*recent[1:], convolved])
        convolved = (p["conv_kernel"] * recent[::-1]).sum(0)
    qkv, rest = Columns(convolved), Columns(z[F:])
    q, k, v = qkv.take(Nk, K), qkv.take(n, Nk, K), silu(qkv.take(n, N, V))
    q, k = (features(cell, a) for a in (q, k))
    sizes = SimpleNamespace(N=N, Nk=Nk, K=K, V=V, n=n)
    alpha, erase, write, gate = GATES[type(cell).__name__](cell, p, rest, sizes)
    gate = gate if cell.use_gate else np.ones((N, V))
    assert rest.place == len(rest.x)
    states, shown = [], []
    for head in range(N):
        of = head * Nk // N
        now = np.diag(alpha[head]) @ S[head]
        for j in range(n):
            key = k[j, of]
            now = (np.eye(K) - np.outer(key, erase[j, head] * key)) @ now
            now = now + np.outer(key, write[j, head] * v[j, head])
        states.append(now)
        y = now.T @ q[of] / np.sqrt(K)
        norm = y / np.sqrt((y * y).mean() + 1e-5) * p["norm_scale"]
        shown.append(norm * gate[head])
    return np.concatenate(shown), np.stack(states), recent


def features(cell, a):
    """q or k of every head; only DeltaNet has other maps and norms than these."""
    options = {"feature_map": "silu", "key_norm": "l2", **vars(cell)}
    a = PHI[options["feature_map"]](a)
    square = (a * a).sum(-1, keepdims=True) + 1e-6
    total = a.sum(-1, keepdims=True)
    total = np.where(total.real > 1e-6, total, 1e-6)
    return a / (total if options["key_norm"] == "sum" else np.sqrt(square))


PHI = {
    "silu": silu,
    "elu": lambda x: np.where(x.real > 0, 1 + x, np.exp(x)),
    "relu": lambda x: np.where(x.real > 0, x, 0),
    "identity": lambda x: x,
}


def gates_of_heads(cell, p, rest, s):
    """alpha (N, K), what is erased (n, N, K), what is written (n, N, V), and g."""
    two = 2 if cell.allow_negative else 1
    beta = two * sigmoid(rest.take(s.n, s.N))[..., None]
    alpha = np.ones(s.N)
    if "A_log" in p:
        step = softplus(rest.take(s.N) + p["dt_bias"])
        alpha = np.exp(-np.exp(p["A_log"]) * step)
    gate = silu(rest.take(s.N, s.V)) if cell.use_gate else None
    alpha = alpha[:, None] * np.ones(s.K)
    return alpha, beta * np.ones(s.K), beta * np.ones(s.V), gate


def gates_of_channels(cell, p, rest, s):
    two, heads = 2 if cell.allow_negative else 1, s.N
    if type(cell).__name__ == "KDA":
        beta = sigmoid(rest.take(1, s.N))[..., None]
        erase, write = two * beta * np.ones(s.K), two * beta * np.ones(s.V)
    else:
        heads = s.Nk
        erase = two * sigmoid(rest.take(1, s.Nk, s.K))
        write = sigmoid(rest.take(1, s.N, s.V))
        erase = np.repeat(erase, s.N // s.Nk, 1)
    f = rest.take(s.V) @ p["decay_kernel"] + p["dt_bias"]
    f, rate = f.reshape(heads, s.K), np.exp(p["A_log"])[:, None]
    log_alpha = -5 * sigmoid(rate * f) if cell.safe_gate else -rate * softplus(f)
    alpha = np.repeat(np.exp(log_alpha), s.N // heads, 0)
    gate = None
    if cell.use_gate:
        g = rest.take(s.V) @ p["gate_kernel"] + p["gate_bias"]
        gate = sigmoid(g).reshape(s.N, s.V)
    return alpha, erase, write, gate


GATES = {
    "DeltaNet": gates_of_heads,
    "GatedDeltaNet": gates_of_heads,
    "DeltaProduct": gates_of_heads,
    "KDA": gates_of_channels,
    "GDN2": gates_of_channels,
}
