"""Write fla.json and mamba.json: reference values of layers that flash-linear-attention
and state-spaces/mamba publish, in float64.

The packages need a GPU, so that the layers are written here anew from their papers'
equations, as a loop over time, with the names of their parameters. For each case the
files hold the weights under these names (`state_dict`), the `inputs`, the output y,
a random cotangent of y, and the `gradients` of the inputs by `sum(y * cotangent)`.

Everything drawn at random is rounded to three decimals to keep the files readable;
everything computed is in full. The files in the repository were written with torch
2.13.0 (CPU). To write them again:

    python -m venv torchvenv
    torchvenv/bin/pip install torch==2.13.0 jax numpy
    torchvenv/bin/python tests/golden/make_fla.py
"""

import math
from pathlib import Path

import torch
from common import to_json
from torch import nn
from torch.nn import functional as F

SEED = 8
STEPS, BATCH, INPUTS = 5, 2, 4
NORM_EPS = {"gated_deltanet": 1e-6, "gla": 1e-6, "rwkv7": 1e-5}


def linear(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


class ShortConvolution(nn.Conv1d):
    """A causal depthwise convolution over the last ``width`` steps, before silu."""

    def __init__(self, channels, width, bias=False):
        super().__init__(
            channels, channels, width, groups=channels, padding=width - 1, bias=bias
        )

    def forward(self, x):  # (T, B, C)
        y = super().forward(x.permute(1, 2, 0))[..., : x.shape[0]]
        return F.silu(y.permute(2, 0, 1))


def by_heads(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1)


def unit(x):
    """What fla's kernels of the delta rule do: 1e-6 under the root."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


class GatedDeltaNet(nn.Module):
    """Yang, Kautz & Hatamizadeh (2024, arXiv:2412.06464)."""

    def __init__(self, num_heads, num_v_heads, key, value, width, gate, negative):
        super().__init__()
        self.sizes = num_heads, num_v_heads, key
        self.negative = negative
        keys, values = num_heads * key, num_v_heads * value
        self.q_proj, self.k_proj = linear(INPUTS, keys), linear(INPUTS, keys)
        self.v_proj = linear(INPUTS, values)
        self.a_proj = linear(INPUTS, num_v_heads)
        self.b_proj = linear(INPUTS, num_v_heads)
        self.A_log = nn.Parameter(torch.zeros(num_v_heads))
        self.dt_bias = nn.Parameter(torch.zeros(num_v_heads))
        if width:
            self.q_conv1d = ShortConvolution(keys, width)
            self.k_conv1d = ShortConvolution(keys, width)
            self.v_conv1d = ShortConvolution(values, width)
        if gate:
            self.g_proj = linear(INPUTS, values)
        self.o_norm = nn.RMSNorm(value, NORM_EPS["gated_deltanet"])
        self.o_proj = linear(values, INPUTS)

    def forward(self, x):
        heads, v_heads, key = self.sizes
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if hasattr(self, "q_conv1d"):
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        else:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        q, k, v = by_heads(q, heads), by_heads(k, heads), by_heads(v, v_heads)
        q, k = (unit(part).repeat_interleave(v_heads // heads, -2) for part in (q, k))
        beta = torch.sigmoid(self.b_proj(x)) * (2 if self.negative else 1)
        step = F.softplus(self.a_proj(x) + self.dt_bias)
        alpha = torch.exp(-torch.exp(self.A_log) * step)
        S = torch.zeros(BATCH, v_heads, v.shape[-1], key)
        read = []
        for t in range(len(x)):
            S = alpha[t, ..., None, None] * S
            error = v[t] - (S @ k[t, ..., None])[..., 0]
            S = S + (beta[t, ..., None] * error)[..., None] * k[t, ..., None, :]
            read.append((S @ q[t, ..., None])[..., 0] / math.sqrt(key))
        o = self.o_norm(torch.stack(read)).flatten(-2)
        return self.o_proj(o * F.silu(self.g_proj(x)) if hasattr(self, "g_proj") else o)


class GatedLinearAttention(nn.Module):
    """Yang et al. (2024, arXiv:2312.06635)."""

    def __init__(self, heads, key, value, rank, width, gate):
        super().__init__()
        self.heads, self.key = heads, key
        keys, values = heads * key, heads * value
        self.q_proj, self.k_proj = linear(INPUTS, keys), linear(INPUTS, keys)
        self.v_proj = linear(INPUTS, values)
        self.gk_proj = nn.Sequential(linear(INPUTS, rank), linear(rank, keys, True))
        if width:
            self.q_conv1d = ShortConvolution(keys, width)
            self.k_conv1d = ShortConvolution(keys, width)
            self.v_conv1d = ShortConvolution(values, width)
        if gate:
            self.g_proj = linear(INPUTS, values)
        norm = nn.RMSNorm(value, NORM_EPS["gla"])
        self.norm_name = "g_norm_swish_gate" if gate else "g_norm"
        self.add_module(self.norm_name, norm)
        self.o_proj = linear(values, INPUTS)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if hasattr(self, "q_conv1d"):
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        decay = torch.sigmoid(self.gk_proj(x)) ** (1 / 16)
        q, k, v, decay = (by_heads(part, self.heads) for part in (q, k, v, decay))
        S = torch.zeros(BATCH, self.heads, self.key, v.shape[-1])
        read = []
        for t in range(len(x)):
            S = decay[t, ..., None] * S + k[t, ..., None] * v[t, ..., None, :]
            read.append((q[t, ..., None] * S).sum(-2) / math.sqrt(self.key))
        o = self.get_submodule(self.norm_name)(torch.stack(read)).flatten(-2)
        return self.o_proj(o * F.silu(self.g_proj(x)) if hasattr(self, "g_proj") else o)


class LoRA(nn.Module):
    def __init__(self, outputs, rank, activation, bias=True):
        super().__init__()
        self.lora = nn.Sequential(
            linear(INPUTS, rank), activation, linear(rank, outputs, bias)
        )

    def forward(self, x):
        return self.lora(x)


class RWKV7Attention(nn.Module):
    """Peng et al. (2025, arXiv:2503.14456)."""

    def __init__(self, heads, rank, values, first):
        super().__init__()
        self.heads = heads
        for name in "rwkvag":
            mix = nn.Parameter(torch.zeros(1, 1, INPUTS))
            self.register_parameter(f"x_{name}", mix)
        self.k_k = nn.Parameter(torch.zeros(INPUTS))
        self.k_a = nn.Parameter(torch.zeros(INPUTS))
        self.r_k = nn.Parameter(torch.zeros(heads, INPUTS // heads))
        self.r_proj, self.k_proj = linear(INPUTS, INPUTS), linear(INPUTS, INPUTS)
        self.v_proj, self.o_proj = linear(INPUTS, values), linear(values, INPUTS)
        self.w_lora = LoRA(INPUTS, rank, nn.Tanh())
        if not first:
            self.v_lora = LoRA(values, rank + 1, nn.Identity())
        self.a_lora = LoRA(INPUTS, rank, nn.Identity())
        self.g_lora = LoRA(values, rank + 2, nn.Sigmoid(), bias=False)
        epsilon = INPUTS // heads * NORM_EPS["rwkv7"]
        self.g_norm = nn.GroupNorm(heads, values, epsilon)

    def forward(self, x, v_first=None):
        before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        xr, xw, xk, xv, xa, xg = (
            torch.lerp(x, before, self.get_parameter(f"x_{name}").expand_as(x))
            for name in "rwkvag"
        )
        r, k, v = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(self.w_lora(xw)))
        if v_first is not None:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v_lora(xv)))
        eta = torch.sigmoid(self.a_lora(xa))
        kappa = F.normalize(by_heads(k * self.k_k, self.heads), dim=-1)
        k = k * (1 - self.k_a) + k * eta * self.k_a
        r, w, k, v, eta = (by_heads(part, self.heads) for part in (r, w, k, v, eta))
        S = torch.zeros(BATCH, self.heads, v.shape[-1], k.shape[-1])  # values first
        read = []
        for t in range(len(x)):
            erased = S @ kappa[t, ..., None]
            S = S * w[t, ..., None, :] - erased * (eta[t] * kappa[t])[..., None, :]
            S = S + v[t, ..., None] * k[t, ..., None, :]
            read.append((S @ r[t, ..., None])[..., 0])
        y = torch.stack(read).flatten(-2)
        y = self.g_norm(y.flatten(0, 1)).reshape(y.shape)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.o_proj((y + bonus.flatten(-2)) * self.g_lora(xg))


class Mamba(nn.Module):
    """Gu & Dao (2023, arXiv:2312.00752)."""

    def __init__(self, inner, state, rank, width):
        super().__init__()
        self.splits = [rank, state, state]
        self.in_proj = linear(INPUTS, 2 * inner)
        self.conv1d = ShortConvolution(inner, width, bias=True)
        self.x_proj = linear(inner, sum(self.splits))
        self.dt_proj = linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.zeros(inner, state))
        self.D = nn.Parameter(torch.zeros(inner))
        self.out_proj = linear(inner, INPUTS)

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, -1)
        u = self.conv1d(u)
        r, B, C = self.x_proj(u).split(self.splits, -1)
        dt = F.softplus(self.dt_proj(r))
        h = torch.zeros(BATCH, *self.A_log.shape)
        read = []
        for t in range(len(x)):
            h = torch.exp(-dt[t, ..., None] * torch.exp(self.A_log)) * h
            h = h + (dt[t] * u[t])[..., None] * B[t, :, None, :]
            read.append((h * C[t, :, None, :]).sum(-1) + self.D * u[t])
        return self.out_proj(torch.stack(read) * F.silu(z))


class Mamba2(nn.Module):
    """Dao & Gu (2024, arXiv:2405.21060)."""

    def __init__(self, heads, headdim, state, groups, width):
        super().__init__()
        inner, keys = heads * headdim, groups * state
        self.sizes = heads, groups
        self.splits = [inner, inner + 2 * keys, heads]
        self.inner_splits = [inner, keys, keys]
        self.in_proj = linear(INPUTS, sum(self.splits))
        self.conv1d = ShortConvolution(inner + 2 * keys, width, bias=True)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.zeros(heads))
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.zeros(inner))
        self.out_proj = linear(inner, INPUTS)

    def forward(self, x):
        heads, groups = self.sizes
        z, xBC, dt = self.in_proj(x).split(self.splits, -1)
        u, B, C = self.conv1d(xBC).split(self.inner_splits, -1)
        u, B, C = by_heads(u, heads), by_heads(B, groups), by_heads(C, groups)
        B, C = (part.repeat_interleave(heads // groups, -2) for part in (B, C))
        dt = F.softplus(dt + self.dt_bias)
        S = torch.zeros(BATCH, heads, u.shape[-1], B.shape[-1])
        read = []
        for t in range(len(x)):
            decay = torch.exp(-dt[t] * torch.exp(self.A_log))[..., None, None]
            write = (dt[t, ..., None] * u[t])[..., None] * B[t, ..., None, :]
            S = decay * S + write
            read.append((S @ C[t, ..., None])[..., 0] + self.D[:, None] * u[t])
        y = by_heads(torch.stack(read).flatten(-2) * F.silu(z), groups)
        y = F.rms_norm(y, y.shape[-1:], eps=1e-5).flatten(-2)
        return self.out_proj(y * self.norm.weight)


def draw(*shape):
    return torch.randn(*shape).round(decimals=3)


def golden(build, **inputs):
    """Draw a layer's weights and inputs, and return all that went in and came out."""
    # for each case, so that adding one leaves the others as they are
    torch.manual_seed(SEED)
    layer = build()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            shares = name.startswith("x_") and name != "x_proj.weight"
            drawn = torch.rand(weight.shape) if shares else torch.randn(weight.shape)
            weight.copy_(drawn.round(decimals=3))
    inputs = {
        "x": draw(STEPS, BATCH, INPUTS).requires_grad_(),
        **{name: draw(*shape).requires_grad_() for name, shape in inputs.items()},
    }
    y = layer(*inputs.values())
    cotangent = draw(*y.shape)
    gradients = torch.autograd.grad((y * cotangent).sum(), list(inputs.values()))
    return {
        "state_dict": layer.state_dict(),
        "inputs": inputs,
        "y": y,
        "cotangent": cotangent,
        "gradients": dict(zip(inputs, gradients)),
    }


def main():
    torch.set_default_dtype(torch.float64)
    meta = {"torch": torch.__version__, "seed": SEED}
    values = 6
    fla = {
        "meta": {**meta, "norm_eps": NORM_EPS},
        "gated_deltanet": golden(
            lambda: GatedDeltaNet(2, 2, 2, 3, width=3, gate=True, negative=False)
        ),
        "gated_deltanet_grouped": golden(
            lambda: GatedDeltaNet(1, 2, 3, 2, width=None, gate=False, negative=True)
        ),
        "gla": golden(lambda: GatedLinearAttention(2, 2, 3, 2, width=None, gate=True)),
        "gla_convolved": golden(
            lambda: GatedLinearAttention(2, 2, 2, 3, width=3, gate=False)
        ),
        "rwkv7": golden(lambda: RWKV7Attention(2, 2, values=4, first=True)),
        "rwkv7_later": golden(
            lambda: RWKV7Attention(2, 2, values, first=False),
            v_first=(STEPS, BATCH, values),
        ),
    }
    mamba = {
        "meta": meta,
        "mamba": golden(lambda: Mamba(inner=3, state=2, rank=2, width=4)),
        "mamba2": golden(lambda: Mamba2(2, headdim=2, state=3, groups=1, width=4)),
        "mamba2_groups": golden(
            lambda: Mamba2(4, headdim=1, state=2, groups=2, width=2)
        ),
    }
    for name, cases in {"fla": fla, "mamba": mamba}.items():
        Path(__file__).with_name(f"{name}.json").write_text(to_json(cases) + "\n")


if __name__ == "__main__":
    main()
