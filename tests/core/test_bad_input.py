"""Every bad input is refused at trace time, by the right type of error, in words
that say what came and what to do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError
from subjects import draw_params

import jaxrnn
from jaxrnn import (
    GRU,
    LSTM,
    TBPTT,
    Elman,
    Scan,
    Window,
    bidirectional,
    dropout,
    residual,
    stack,
    truncated_unroll,
    unroll,
    zoneout,
)
from jaxrnn.decoding.sampling import generate
from jaxrnn.nnx import RNN

KEY, XS = jax.random.key(0), jnp.ones((5, 2, 3))
LOGITS = jnp.ones((5, 5))
MASK = jnp.ones((5, 2), bool)
CELL, OTHER = LSTM(4), Elman(4)
# drawn and not by `init`, which every process that collects this file would compile
PARAMS, OTHER_PARAMS = (
    draw_params(cell, np.random.default_rng(0)) for cell in (CELL, OTHER)
)
CARRY = CELL.initial_carry(PARAMS, (2,))
DROPPING = stack(dropout(0.5), CELL)
DROPPING_PARAMS = {"layer_0": {}, "layer_1": PARAMS}


@dataclasses.dataclass(frozen=True)
class Bare(jaxrnn.Cell):
    hidden_size: int = 4


@dataclasses.dataclass
class Thawed(jaxrnn.Cell):
    hidden_size: int = 4


class Undecorated(jaxrnn.Cell):
    pass


@dataclasses.dataclass(frozen=True)
class WithArray(jaxrnn.Cell):
    weights: object
    hidden_size: int = 4


@dataclasses.dataclass(frozen=True)
class Sizeless(jaxrnn.Cell):
    def step(self, params, carry, z):
        return carry


@dataclasses.dataclass(frozen=True)
class Narrowing(jaxrnn.Cell):
    """Its step changes the carry's dtype, or its shape."""

    hidden_size: int
    change: str

    def step(self, params, carry, z):
        return carry.astype(jnp.bfloat16) if self.change == "dtype" else carry[..., :1]


@dataclasses.dataclass(frozen=True)
class NarrowingState(Narrowing):
    """The same for one part of a carry of two."""

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jaxrnn.LSTMState(
            jnp.zeros((*batch_shape, 4)), jnp.zeros((*batch_shape, 4))
        )

    def step(self, params, carry, z):
        return carry._replace(c=carry.c.astype(jnp.bfloat16))


def run(cell=CELL, params=PARAMS, xs=XS, carry=None, **how):
    return unroll(cell, params, xs, carry, **how)


def tbptt(window=None, losses=None, k1=2, params=PARAMS, batch=(2,), **how):
    """One gradient of a TBPTT over XS, with something wrong with it."""

    def good(params, carry, window):
        flags = {"mask": window.mask, "resets": window.resets}
        _, ys, carries = unroll(
            CELL, params, window.inputs, carry, **flags, return_carries=True
        )
        return ys.mean(-1), carries

    process = TBPTT(losses or good, CELL.initial_carry, k1, **how)
    start = process.init(params, Window(XS, XS), batch)
    return process.value_and_grad(params, window or Window(XS, XS), start)


def write(prompt=None, length=3, **how):
    prompt = jnp.zeros((2, 3), jnp.int32) if prompt is None else prompt
    return generate(
        lambda carry, token: (carry, jnp.zeros((*token.shape, 5))),
        (),
        prompt,
        length,
        **how,
    )


def module(layer=CELL, xs=None, **how):
    return RNN(layer, 3, rngs=nnx.Rngs(0))(
        jnp.ones((2, 5, 3)) if xs is None else xs, **how
    )


CASES = {
    # Inputs.
    "xs of rank 1": (
        lambda: run(xs=jnp.ones(3)),
        ValueError,
        r"\(T, D\) or \(T, \*B, D\), but its shape is \(3,\).*xs\[\.\.\., None\]",
    ),
    "xs of another size": (
        lambda: run(xs=jnp.ones((5, 2, 4))),
        ValueError,
        r"made for 3 input features, but the inputs have 4",
    ),
    "xs of another size in a stack": (
        lambda: run(
            stack(CELL, GRU(4)), {"layer_0": PARAMS, "layer_1": GRU(4).init(KEY, 3)}
        ),
        ValueError,
        r"GRU: the parameters were made for 3 input features, but the inputs have 4",
    ),
    "xs of another size, one step": (
        lambda: CELL(PARAMS, CARRY, jnp.ones((2, 4))),
        ValueError,
        r"made for 3 input features",
    ),
    "xs of integers": (
        lambda: run(xs=jnp.ones((5, 2, 3), int)),
        TypeError,
        r"floating-point.*int32.*one_hot",
    ),
    "xs of bools": (
        lambda: run(xs=np.ones((5, 2, 3), bool)),
        TypeError,
        r"floating-point.*dtype is bool",
    ),
    "xs a list": (
        lambda: run(xs=[[1.0]]),
        TypeError,
        r"xs must be an array \(T, \*B, D\), but it is a list",
    ),
    "xs None": (lambda: run(xs=None), TypeError, r"xs must be an array"),
    "xs of another dtype": (
        lambda: run(xs=XS.astype(jnp.bfloat16)),
        TypeError,
        r"bfloat16 but the parameters are float32.*astype",
    ),
    # Parameters.
    "params of another cell": (
        lambda: run(params=OTHER_PARAMS),
        ValueError,
        r"params\['bias'\] has shape \(4,\), expected \(16,\)",
    ),
    "params of another size": (
        lambda: run(LSTM(5)),
        ValueError,
        r"LSTM: params\['bias'\] has shape \(16,\), expected \(20,\)",
    ),
    "params with other names": (
        lambda: run(params={"kernel": XS}),
        TypeError,
        r"a dict of .*'recurrent_kernel'.* got a dict of \['kernel'\]",
    ),
    "params None": (
        lambda: run(params=None),
        TypeError,
        r"got None: init\(key, input_size\) makes the right one",
    ),
    "input size zero": (
        lambda: CELL.init(KEY, 0),
        ValueError,
        r"input_size must be an int of at least 1, but it is 0",
    ),
    "input size a float": (
        lambda: CELL.init(KEY, 3.0),
        ValueError,
        r"input_size must be an int of at least 1, but it is 3\.0",
    ),
    # Mask, resets, lengths.
    "mask of another T": (
        lambda: run(mask=MASK[:4]),
        ValueError,
        r"mask must have shape .* = \(5, 2\), but its shape is \(4, 2\)",
    ),
    "mask batch-first": (
        lambda: run(mask=MASK.T),
        ValueError,
        r"time comes first, so pass mask\.T",
    ),
    "inputs batch-first, by their mask": (
        lambda: unroll(CELL, PARAMS, XS.swapaxes(0, 1), mask=MASK),
        ValueError,
        r"\(2, 5\), but its shape is \(5, 2\): .*jnp.swapaxes\(xs, 0, 1\) if it is xs",
    ),
    "inputs batch-first, by their carry": (
        lambda: unroll(CELL, PARAMS, XS.swapaxes(0, 1), CARRY),
        ValueError,
        r"It fits if xs, which begins with \(T, \*B\) = \(2, 5\), has the batch first",
    ),
    "scale batch-first": (
        lambda: truncated_unroll(CELL, PARAMS, XS, gradient_scale=jnp.ones((2, 5))),
        ValueError,
        r"time comes first, so pass gradient_scale\.T",
    ),
    "mask instead of lengths": (
        lambda: run(mask=MASK[0]),
        ValueError,
        r"mask_from_lengths\(lengths, T\)",
    ),
    "mask of integers": (
        lambda: run(mask=MASK.astype(int)),
        TypeError,
        r"mask must be bool, but its dtype is int32.*astype\(bool\)",
    ),
    "mask a list": (
        lambda: run(mask=[True] * 5),
        TypeError,
        r"mask must be a bool array .*, but it is a list",
    ),
    "resets of another shape": (
        lambda: run(resets=MASK[:, :1]),
        ValueError,
        r"resets must have shape .* = \(5, 2\)",
    ),
    "resets batch-first": (
        lambda: run(resets=MASK.T),
        ValueError,
        r"time comes first, so pass resets\.T",
    ),
    "resets of floats": (
        lambda: run(resets=MASK.astype(float)),
        TypeError,
        r"resets must be bool, but its dtype is float32",
    ),
    "lengths of floats": (
        lambda: jaxrnn.mask_from_lengths(jnp.ones(2), 5),
        TypeError,
        r"lengths must be integers.*astype",
    ),
    "lengths too long": (
        lambda: jaxrnn.mask_from_lengths(jnp.array([2, 6]), 5),
        ValueError,
        r"between 0 and T = 5, .* from 2 to 6",
    ),
    "lengths negative": (
        lambda: jaxrnn.mask_from_lengths([-1, 5], 5),
        ValueError,
        r"between 0 and T = 5, .* from -1 to 5",
    ),
    "lengths None": (
        lambda: jaxrnn.mask_from_lengths(None, 5),
        TypeError,
        r"lengths must be an array of integers .*None",
    ),
    # Carries.
    "carry of another cell": (
        lambda: run(carry=jnp.zeros((2, 4))),
        TypeError,
        r"LSTM: the carry passed in .*is it another cell's\?",
    ),
    "carry of an LSTM": (
        lambda: run(OTHER, OTHER_PARAMS, carry=CARRY),
        TypeError,
        r"Elman: .*LSTMState.*is it another cell's\?",
    ),
    "carry of another dtype": (
        lambda: run(carry=CARRY._replace(c=CARRY.c.astype(jnp.bfloat16))),
        TypeError,
        r"\.c of the carry passed in is bfloat16, expected float32: "
        r".*astype\('float32'\)",
    ),
    "carry of another batch": (
        lambda: run(carry=CELL.initial_carry(PARAMS, (3,))),
        ValueError,
        r"\.h of the carry passed in has shape \(3, 4\), expected \(2, 4\).*batch axes "
        r"of xs",
    ),
    "carry without batch": (
        lambda: run(OTHER, OTHER_PARAMS, carry=jnp.zeros(4)),
        ValueError,
        r"shape \(4,\), expected \(2, 4\)",
    ),
    "carry of a stack": (
        lambda: run(
            stack(CELL, OTHER),
            {"layer_0": PARAMS, "layer_1": OTHER.init(KEY, 4)},
            carry=(CARRY, jnp.zeros((2, 5))),
        ),
        ValueError,
        r"\[1\] of the carry passed in has shape \(2, 5\), expected \(2, 4\)",
    ),
    "step changes the dtype": (
        lambda: run(Narrowing(4, "dtype"), {}),
        TypeError,
        r"Narrowing: .*the carry that step returns is bfloat16, expected float32: "
        r".*not promoted",
    ),
    "step changes a leaf's dtype": (
        lambda: run(NarrowingState(4, ""), {}),
        TypeError,
        r"\.c of the carry that step returns is bfloat16",
    ),
    "step changes the shape": (
        lambda: run(Narrowing(4, "shape"), {}),
        ValueError,
        r"step returns has shape \(2, 1\), expected \(2, 4\)",
    ),
    "carry of another cell, one step": (
        lambda: CELL(PARAMS, jnp.zeros((2, 4)), XS[0]),
        TypeError,
        r"LSTM: .*is it another cell's\?",
    ),
    "carry of another batch, one step": (
        lambda: CELL(PARAMS, CELL.initial_carry(PARAMS, (3,)), XS[0]),
        ValueError,
        r"\.h of the carry passed in has shape \(3, 4\), expected \(2, 4\)",
    ),
    # Truncation.
    "k2 less than k1": (
        lambda: tbptt(k1=4, k2=2),
        ValueError,
        r"k2 = 2 is less than k1 = 4.*Take k2 >= k1",
    ),
    "k1 zero": (
        lambda: tbptt(k1=0),
        ValueError,
        r"k1 must be an int of at least 1, but it is 0",
    ),
    "k2 a float": (
        lambda: tbptt(k1=1, k2=2.0),
        ValueError,
        r"k2 must be an int of at least 1, but it is 2\.0",
    ),
    "window zero": (
        lambda: truncated_unroll(CELL, PARAMS, XS, window=0),
        ValueError,
        r"at least 1 step, but it is 0",
    ),
    "window a float": (
        lambda: truncated_unroll(CELL, PARAMS, XS, window=2.5),
        ValueError,
        r"window must be an int",
    ),
    "one loss for all steps": (
        lambda: tbptt(losses=lambda p, c, w: (jnp.zeros(2), c)),
        ValueError,
        r"losses must return one loss per step, \(T, \*B\) = \(2, 2\), but they have "
        r"shape \(2,\)",
    ),
    "targets of another T": (
        lambda: tbptt(Window(XS, XS[:3])),
        ValueError,
        r"must share their leading axis T",
    ),
    "TBPTT's mask": (
        lambda: tbptt(Window(XS, XS, MASK[:, :1])),
        ValueError,
        r"TBPTT: mask must be bool of shape .* = \(5, 2\)",
    ),
    "TBPTT's resets": (
        lambda: tbptt(Window(XS, XS, MASK, MASK.astype(int))),
        ValueError,
        r"TBPTT: resets must be bool",
    ),
    "the last carry instead of all": (
        lambda: tbptt(losses=lambda p, c, w: (jnp.zeros((2, 2)), c)),
        ValueError,
        r"losses must return the carries after every step.*return_carries=True",
    ),
    # Keys.
    "no key": (
        lambda: run(DROPPING, DROPPING_PARAMS),
        ValueError,
        r"Stack draws random numbers .*key=.*inference\(layer\)",
    ),
    "no key, one step": (
        lambda: DROPPING(DROPPING_PARAMS, ((), CARRY), XS[0]),
        ValueError,
        r"Stack draws random numbers",
    ),
    "a key that is a number": (
        lambda: run(DROPPING, DROPPING_PARAMS, key=3),
        TypeError,
        r"key must be a key such as jax\.random\.key",
    ),
    "a key for a cell": (
        lambda: run(key=KEY),
        ValueError,
        r"a key was given, but LSTM draws no random numbers",
    ),
    "a key for inference": (
        lambda: run(jaxrnn.inference(DROPPING), DROPPING_PARAMS, key=KEY),
        ValueError,
        r"a key was given, but Stack draws no .*use the layer it was made from",
    ),
    "no rngs": (
        lambda: module(DROPPING),
        ValueError,
        r"Stack draws random numbers .*rngs=nnx\.Rngs",
    ),
    # What is run, and how.
    "a class": (
        lambda: run(LSTM),
        TypeError,
        r"expected an instance: LSTM\(\.\.\.\), but got the class LSTM",
    ),
    "a name": (
        lambda: run("lstm"),
        TypeError,
        r"expected a jaxrnn\.Cell or a layer, but got a str",
    ),
    "not frozen": (
        lambda: run(Thawed()),
        TypeError,
        r"Thawed must be decorated with @dataclasses\.dataclass\(frozen=True\)",
    ),
    "not a dataclass": (
        lambda: run(Undecorated()),
        TypeError,
        r"Undecorated must be decorated with",
    ),
    "not hashable": (
        lambda: run(WithArray(jnp.ones(3))),
        TypeError,
        r"WithArray is not hashable .*arrays belong in params",
    ),
    "a list in a cell": (
        lambda: run(WithArray([3])),
        TypeError,
        r"WithArray is not hashable .*sequences in tuples",
    ),
    "no step": (
        lambda: run(Bare(), {}),
        NotImplementedError,
        r"Bare must define step\(self, params, carry, z\) -> carry",
    ),
    "no init": (
        lambda: Bare().init(KEY, 3),
        NotImplementedError,
        r"Bare must define init\(self, key, input_size\) -> params",
    ),
    "no size": (
        lambda: run(Sizeless(), {}),
        TypeError,
        r"Sizeless has no hidden_size.*define initial_carry",
    ),
    "engine a name": (
        lambda: run(engine="scan"),
        TypeError,
        r"engine must be an engine such as jaxrnn\.Scan\(\), but it is 'scan'",
    ),
    "engine a class": (
        lambda: run(engine=Scan),
        TypeError,
        r"engine must be an engine such as jaxrnn\.Scan\(\)",
    ),
    "reverse a number": (
        lambda: run(reverse=1),
        TypeError,
        r"reverse must be True or False, but it is 1",
    ),
    # Layers.
    "an empty stack": (stack, ValueError, r"stack needs at least one cell or layer"),
    "a stack of a list": (
        lambda: stack([CELL, CELL]),
        TypeError,
        r"^stack takes every layer as an argument of its own, stack\(\*layers\), .* a "
        r"list of 2$",
    ),
    "a stack of classes": (
        lambda: stack(LSTM),
        TypeError,
        r"expected an instance: LSTM\(\.\.\.\)",
    ),
    "merge": (
        lambda: bidirectional(CELL, merge="mean"),
        ValueError,
        r"merge must be 'concat' or 'sum', but it is 'mean'",
    ),
    "sum of unequal sizes": (
        lambda: bidirectional(CELL, GRU(3), merge="sum").init(KEY, 3),
        ValueError,
        r"needs outputs of equal size, but they have \[4, 3\] features",
    ),
    "one step both ways": (
        lambda: bidirectional(CELL)(PARAMS, CARRY, XS[0]),
        ValueError,
        r"cannot take one step.*jaxrnn\.unroll",
    ),
    "residual of another size": (
        lambda: residual(CELL).init(KEY, 3),
        ValueError,
        r"inputs have 3 .* outputs of LSTM have 4.*hidden_size=3",
    ),
    "recurrent dropout of a stack": (
        lambda: jaxrnn.recurrent_dropout(stack(CELL), 0.1),
        TypeError,
        r"Stack is not a cell whose step takes",
    ),
    "recurrent dropout of a bare cell": (
        lambda: jaxrnn.recurrent_dropout(Bare(), 0.1),
        TypeError,
        r"Bare is not .*recurrent_h=None",
    ),
    "zoneout of a stack": (
        lambda: zoneout(stack(CELL), 0.1),
        TypeError,
        r"zoneout wraps a cell, but got the layer Stack",
    ),
    "zoneout with three rates": (
        lambda: run(zoneout(CELL, (0.1,) * 3), key=KEY),
        ValueError,
        r"3 rates .* LSTM has 2 floating-point parts",
    ),
    "zoneout with no rates": (
        lambda: zoneout(CELL, ()),
        ValueError,
        r"zoneout: the rate is an empty tuple",
    ),
    # Sizes of engines and projections.
    "unroll zero": (
        lambda: Scan(unroll=0),
        ValueError,
        r"Scan: unroll must be an int of at least 1, but it is 0",
    ),
    "unroll that is a word": (
        lambda: Scan(unroll="all"),
        ValueError,
        r"Scan: unroll must be an int of at least 1 or 'auto', but it is 'all'",
    ),
    "chunk zero": (
        lambda: jaxrnn.Checkpoint(0),
        ValueError,
        r"Checkpoint: chunk must be an int of at least 1, but it is 0",
    ),
    "projection zero": (
        lambda: LSTM(4, projection_size=0),
        ValueError,
        r"projection_size must be an int of at least 1",
    ),
    # Generation.
    "nothing to draw with": (
        write,
        ValueError,
        r"temperature above 0 needs key=jax\.random\.key",
    ),
    "a key for nothing": (
        lambda: write(temperature=0, key=KEY),
        ValueError,
        r"at temperature 0 nothing is drawn, so leave the key out",
    ),
    "an empty prompt": (
        lambda: write(jnp.zeros((0, 3), int), key=KEY),
        ValueError,
        r"the prompt is empty; give at least one token",
    ),
    "a prompt of floats": (
        lambda: write(jnp.zeros((2, 3)), key=KEY),
        TypeError,
        r"integer array \(P, \*B\), but it is .*float32",
    ),
    "a prompt of one number": (
        lambda: write(jnp.array(1), key=KEY),
        TypeError,
        r"integer array \(P, \*B\), but it is .*shape \(\)",
    ),
    "a list as prompt": (
        lambda: write([1, 2], key=KEY),
        TypeError,
        r"integer array \(P, \*B\), but it is a list",
    ),
    "length zero": (
        lambda: write(length=0, key=KEY),
        ValueError,
        r"length must be an int of at least 1, but it is 0",
    ),
    "temperature negative": (
        lambda: write(temperature=-1, key=KEY),
        ValueError,
        r"temperature must be a finite number of at least 0, but it is -1",
    ),
    "temperature a word": (
        lambda: write(temperature="hot", key=KEY),
        ValueError,
        r"temperature must be a finite number",
    ),
    "temperature nan": (
        lambda: write(temperature=float("nan"), key=KEY),
        ValueError,
        r"temperature must be a finite number",
    ),
    "top_k where nothing is drawn": (
        lambda: write(temperature=0, top_k=2),
        ValueError,
        r"nothing is drawn, so leave top_k out",
    ),
    "top_k zero": (
        lambda: write(top_k=0, key=KEY),
        ValueError,
        r"top_k must be an int of at least 1, but it is 0",
    ),
    "top_k of more than V": (
        lambda: write(top_k=6, key=KEY),
        ValueError,
        r"top_k = 6 is more than the 5 symbols there are",
    ),
    # Arrays where sizes are wanted, lists where arguments are.
    "an array for input_size": (
        lambda: CELL.init(KEY, XS),
        ValueError,
        r"^LSTM: input_size .* is an array of shape \(5, 2, 3\) and dtype float32: .*"
        r"xs\.shape\[-1\]$",
    ),
    "a key for input_size": (
        lambda: CELL.init(3, KEY),
        ValueError,
        r"is a key of shape \(\) .*: the key comes first, init\(key, input_size\)$",
    ),
    "an array for input_size of a stack of one's own": (
        lambda: stack(Bare()).init(KEY, XS),
        ValueError,
        r"^Bare: input_size .* is an array of shape \(5, 2, 3\)",
    ),
    "an array for input_size of a block": (
        lambda: jaxrnn.residual_block(CELL, 4).init(KEY, XS),
        ValueError,
        r"^ResidualBlock: input_size .* is an array of shape \(5, 2, 3\)",
    ),
    "bidirectional of a list": (
        lambda: bidirectional([CELL, OTHER]),
        TypeError,
        r"^bidirectional takes .*\(forward, backward\), but it got a list of 2$",
    ),
    "residual of a tuple": (
        lambda: residual((CELL,)),
        TypeError,
        r"got a tuple of 1: jaxrnn\.stack\(\*layers\) makes one layer of several",
    ),
    # Arguments in another order.
    "xs and carry swapped": (
        lambda: unroll(CELL, PARAMS, CARRY, XS),
        TypeError,
        r"^unroll: xs and carry look swapped: xs is LSTMState.* a carry of this LSTM, "
        r"and carry is \(5, 2, 3\), .*: write unroll\(cell, params, xs, carry\)$",
    ),
    "xs and carry swapped, one array and a mask": (
        lambda: truncated_unroll(
            OTHER, OTHER_PARAMS, jnp.ones((2, 4)), XS, window=2, mask=MASK
        ),
        TypeError,
        r"^truncated_unroll: xs and carry look swapped: xs is \(2, 4\)",
    ),
    "another carry is no swap": (
        lambda: unroll(OTHER, OTHER_PARAMS, XS, jnp.ones((2, 5))),
        ValueError,
        r"^Elman: the carry passed in has shape \(2, 5\)",
    ),
    # nnx.
    "nnx: no rngs": (
        lambda: RNN(CELL, 3),
        TypeError,
        r"^RNN: .*RNN\(layer, input_size, rngs=nnx\.Rngs\(0\)\), but no rngs came$",
    ),
    "nnx: nothing": (
        lambda: RNN(CELL),
        TypeError,
        r"but no input_size came and no rngs came$",
    ),
    "nnx: rngs for the size": (
        lambda: RNN(CELL, nnx.Rngs(0)),
        TypeError,
        r"but input_size is an nnx\.Rngs: pass it as rngs=$",
    ),
    "nnx: a key for rngs": (
        lambda: RNN(CELL, 3, rngs=KEY),
        TypeError,
        r"but rngs is a key of shape \(\) .*: make it nnx\.Rngs\(\.\.\.\) of that$",
    ),
    "nnx: a class": (
        lambda: module(LSTM),
        TypeError,
        r"expected an instance: LSTM\(\.\.\.\)",
    ),
    "nnx: integers": (
        lambda: module(xs=jnp.ones((2, 5, 3), int)),
        TypeError,
        r"floating-point features",
    ),
    "nnx: lengths": (
        lambda: module(seq_lengths=jnp.array([1, 6])),
        ValueError,
        r"between 0 and T = 5",
    ),
    "nnx: both": (
        lambda: module(mask=MASK.T, seq_lengths=jnp.array([1, 2])),
        ValueError,
        r"pass a mask or seq_lengths, not both",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_words(case, plain_errors):
    call, kind, words = CASES[case]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert caught.type is kind
    message = str(caught.value)
    assert len(message) < 420
    assert "\n" not in message


DEEP = {  # what would otherwise fail with words that do not help
    "residual of another size, unrolled": (
        lambda: run(residual(CELL)),
        (TypeError, ValueError),
        r"residual: ",
    ),
    "an integer among TBPTT's params": (
        lambda: tbptt(params=PARAMS | {"count": jnp.array(3)}),
        TypeError,
        r"params\['count'\]|\.count|floating",
    ),
    "a TBPTT state of another batch": (
        lambda: tbptt(batch=(3,)),
        ValueError,
        r"state|batch_shape|start\(",
    ),
    "generate's step changes the carry's dtype": (
        lambda: generate(
            lambda s, t: (s.astype(jnp.bfloat16), LOGITS[t]),
            jnp.ones(4),
            jnp.array([0]),
            3,
            key=KEY,
        ),
        TypeError,
        r"^generate: ",
    ),
    "a carry that is one array": (
        lambda: run(OTHER, OTHER_PARAMS, carry=jnp.zeros(4)),
        ValueError,
        r"^Elman: (?!the carry of the carry)",
    ),
}


@pytest.mark.parametrize("case", DEEP)
def test_bad_input_that_would_fail_far_from_its_cause(case, plain_errors):
    call, kind, words = DEEP[case]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize(
    "rate", [-0.1, 1, 1.5, "half", True, None, float("nan")], ids=repr
)
@pytest.mark.parametrize(
    "make",
    [
        dropout,
        lambda r: jaxrnn.recurrent_dropout(CELL, r),
        lambda r: zoneout(CELL, (0.1, r)),
    ],
)
def test_bad_rates(make, rate, plain_errors):
    with pytest.raises(
        ValueError,
        match=r"the rate must be a number in \[0, 1\), the share that is dropped, but it is",  # noqa: E501
    ):
        make(rate)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "3"], ids=repr)
@pytest.mark.parametrize("kind", [Elman, LSTM, GRU])
def test_bad_sizes(kind, size, plain_errors):
    with pytest.raises(
        ValueError,
        match=rf"{kind.__name__}: hidden_size must be an int of at least 1, but it is {size!r}",  # noqa: E501
    ):
        kind(size)


def test_lengths_inside_jit_cannot_be_read():
    assert jax.eval_shape(
        lambda n: jaxrnn.mask_from_lengths(n, 5), jax.ShapeDtypeStruct((2,), int)
    ).shape == (5, 2)


def test_errors_come_at_trace_time(plain_errors):
    with pytest.raises(ValueError, match="input features"):
        jax.eval_shape(
            lambda xs: run(xs=xs), jax.ShapeDtypeStruct((5, 2, 4), jnp.float32)
        )


def test_without_the_fixture_beartype_checks_shapes():
    """`plain_errors` takes effect: without it the same call is refused by the type
    checker of the tests.
    """
    with pytest.raises(TypeCheckError):
        run(resets=jnp.ones(3))
