"""Write torch.json: reference values and gradients of PyTorch's recurrent modules, in
float64.

For each case the file holds the weights under torch's own names (`state_dict`), the
`inputs` (x, h0, c0), the `outputs` (y, h_n, c_n), one random cotangent for each output,
and the `gradients` of the loss

    sum(y * cotangent_y) + sum(h_n * cotangent_h_n) + sum(c_n * cotangent_c_n)

Everything drawn at random is rounded to three decimals to keep the file readable;
everything computed is in full. The file in the repository was written with torch 2.13.0
(CPU). To write it again:

    python -m venv torchvenv
    torchvenv/bin/pip install torch==2.13.0 jax numpy
    torchvenv/bin/python tests/golden/make_torch.py
"""

from pathlib import Path

import torch
from common import to_json
from torch import nn

# with this one, each unit of the relu case is on for some steps and off for others
SEED = 6
BATCH = 2


def draw(*shape):
    return torch.randn(*shape).round(decimals=3).requires_grad_()


def golden(
    module_class, steps, input_size, hidden_size, weight_gradients=True, **options
):
    """Build one module, run it forwards and backwards, and return all that went in
    and came out.
    """
    # for each case, so that adding one leaves the others as they are
    torch.manual_seed(SEED)
    module = module_class(input_size, hidden_size, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.round(decimals=3))

    states = module.num_layers * (2 if module.bidirectional else 1)
    inputs = {
        "x": draw(steps, BATCH, input_size),
        "h0": draw(states, BATCH, module.proj_size or hidden_size),
    }
    if module_class is nn.LSTM:
        inputs["c0"] = draw(states, BATCH, hidden_size)
        y, (h_n, c_n) = module(inputs["x"], (inputs["h0"], inputs["c0"]))
        outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    else:
        y, h_n = module(inputs["x"], inputs["h0"])
        outputs = {"y": y, "h_n": h_n}

    cotangents = {name: draw(*value.shape) for name, value in outputs.items()}
    sources = (
        dict(module.named_parameters()) | inputs
        if weight_gradients
        else {"x": inputs["x"]}
    )
    loss = sum((outputs[name] * cotangents[name]).sum() for name in outputs)
    gradients = torch.autograd.grad(loss, list(sources.values()))
    return {
        "state_dict": module.state_dict(),
        "inputs": inputs,
        "outputs": outputs,
        "cotangents": cotangents,
        "gradients": dict(zip(sources, gradients)),
    }


def main():
    torch.set_default_dtype(torch.float64)
    sizes = {"steps": 4, "input_size": 3, "hidden_size": 3}
    cases = {
        "meta": {"torch": torch.__version__, "seed": SEED},
        "rnn_tanh": golden(nn.RNN, **sizes, nonlinearity="tanh"),
        "rnn_relu": golden(nn.RNN, **sizes, nonlinearity="relu"),
        "lstm": golden(nn.LSTM, **sizes),
        "lstm_projected": golden(nn.LSTM, **sizes | {"hidden_size": 4}, proj_size=2),
        "gru": golden(nn.GRU, **sizes),
        "lstm_two_layers_bidirectional": golden(
            nn.LSTM,
            steps=3,
            input_size=2,
            hidden_size=2,
            num_layers=2,
            bidirectional=True,
            weight_gradients=False,
        ),
    }
    Path(__file__).with_name("torch.json").write_text(to_json(cases) + "\n")


if __name__ == "__main__":
    main()
