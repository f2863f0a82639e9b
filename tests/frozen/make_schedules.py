"""Write down what `jaxrnn.explain` says of many walks, and what engines refuse.

    PYTHONPATH=.:tests python -m frozen.make_schedules

Shapes are enough, nothing is computed: a walk of 100,000 steps costs as much as one of
20. What is chosen depends on the version of jax, so each has a file of its own,
``schedules_jax0.12.0.1.json`` and the like. ``read`` gives back whole rows, each part
of which stands in the file once, by number.
"""

import itertools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import names
from .paths import DATA


class Size(NamedTuple):
    """Steps, batch axes, features and units (as many), and the dtype."""

    steps: int
    batch: tuple[int, ...]
    units: int
    dtype: str = "float32"


SIZES = {
    "small": Size(20, (3,), 8),
    "medium": Size(600, (16,), 64),
    "long": Size(20_000, (8,), 128),
    "thin": Size(100_000, (), 16),
    "wide": Size(50, (64,), 2_048),
    "bfloat16": Size(600, (16,), 64, "bfloat16"),
    "no step": Size(0, (3,), 8),
    "one step": Size(1, (3,), 8),
}
CELLS = list(names.cells(4, 3))
SOME = [
    *("elman", "irnn", "lstm", "lstm layer norm", "lstm all", "gru", "gru before"),
    *("mlstm", "slstm", "slstm one head", "indrnn", "diagonal lstm", "min gru", "lru"),
    *("user", "user linear", "stack of two ways"),
]
NINE = [
    *("lstm", "lstm layer norm", "gru", "mlstm", "slstm", "min gru", "lru", "user"),
    "stack of two ways",
]
MAIN = [
    *("scan", "scan, gates kept", "scan, carries kept", "scan, all kept"),
    *("checkpoint", "associative", "fused", "cudnn"),
]
FEW = ["lstm", "gru", "mlstm", "min gru", "stack of lstms", "zoneout"]
OPTIONS = {
    "plain": {},
    "mask": {"mask": True},
    "mask and resets": {"mask": True, "resets": True},
    "reverse": {"reverse": True},
    "all carries": {"return_carries": True},
}
QUICK = [
    *("elman | small | default | plain", "lstm | medium | default | plain"),
    *("lstm | long | default | plain", "lstm | medium | checkpoint | plain"),
    *("mlstm | medium | default | plain", "min gru | medium | default | plain"),
    *("gru | medium | scan, carries kept | plain", "lstm | wide | fused | plain"),
]


def cases() -> list[str]:
    """``cell | size | engine | options`` of every walk that is explained."""
    other = [name for name in names.ENGINES if name not in ("default", *MAIN)]
    groups = [
        (CELLS, ["small", "medium"], ["default"], ["plain"]),
        (SOME, ["long", "thin"], ["default"], ["plain"]),
        (NINE, ["medium"], MAIN, ["plain"]),
        (["lstm", "min gru"], ["medium"], other, ["plain"]),
        (["lstm", "min gru"], ["long"], ["checkpoint", "associative"], ["plain"]),
        (["lstm", "gru", "lru"], ["wide"], ["default", "fused"], ["plain"]),
        (["lstm", "gru"], ["bfloat16"], ["default", "fused"], ["plain"]),
        (["lstm", "min gru"], ["no step", "one step"], ["default"], ["plain"]),
        (FEW, ["medium"], ["default"], [name for name in OPTIONS if name != "plain"]),
        (["lstm", "mlstm"], ["medium"], ["associative", "cudnn"], ["all carries"]),
    ]
    rows = itertools.chain(*(itertools.product(*group) for group in groups))
    return list(dict.fromkeys(" | ".join(row) for row in rows))


def given(cell: str, size: Size) -> tuple[Any, Any, Any]:
    """The layer, and its parameters and inputs as shapes."""
    layer = names.cells(size.units, size.units)[cell]
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: layer.init(key, size.units), key)
    params = jax.tree.map(lambda a: of(a.shape, as_wide(a.dtype, size.dtype)), shapes)
    return layer, params, of((size.steps, *size.batch, size.units), size.dtype)


def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def as_wide(dtype: Any, wanted: str) -> Any:
    """``wanted`` in place of another real dtype; complex ones stay."""
    return wanted if jnp.issubdtype(dtype, jnp.floating) else dtype


def options_of(cell: str, name: str, xs: Any) -> dict[str, Any]:
    """The options of that name for a walk over ``xs``, flags as shapes."""
    flags = of(xs.shape[:-1], bool)
    found = {
        o: flags if o in ("mask", "resets") else v for o, v in OPTIONS[name].items()
    }
    noise = {"key": jax.random.key(0)} if cell in names.NOISY else {}
    return found | noise


def explained(case: str) -> dict[str, Any]:
    """What explain says of a case, or its error."""
    cell, size, engine, options = case.split(" | ")
    layer, params, xs = given(cell, SIZES[size])
    asked = options_of(cell, options, xs)
    try:
        return names.explain_as_data(layer, params, xs, engine=engine, **asked)
    except (TypeError, ValueError) as error:
        return {"raises": names.as_it_was(f"{type(error).__name__}: {error}")}


def refusals() -> dict[str, dict[str, str]]:
    """By engine and cell, what tracing a small walk and its gradient raises."""
    found = {}
    for engine in names.ENGINES:
        found[engine] = {cell: refusal(engine, cell) for cell in CELLS}
        found[engine] = {cell: text for cell, text in found[engine].items() if text}
    return {engine: texts for engine, texts in found.items() if texts}


def refusal(engine: str, cell: str, **how: Any) -> str | None:
    """The class and words of the error, or None where there is none."""
    layer, params, xs = given(cell, SIZES["small"])
    how |= {"engine": engine} | options_of(cell, "plain", xs)

    def loss(params, xs):
        _, ys = names.walk(layer, params, xs, None, how)
        return jnp.sum(ys)

    try:
        jax.eval_shape(jax.grad(loss, (0, 1), allow_int=True), params, xs)
    except (TypeError, ValueError) as error:
        return names.as_it_was(f"{type(error).__name__}: {error}")
    return None


def refused_flags() -> dict[str, str | None]:
    """What cuDNN and prefixes say of resets and scaled gradients."""
    size = SIZES["small"]
    flags = jnp.zeros((size.steps, *size.batch), bool)
    scale = jnp.ones((size.steps, *size.batch))
    asked = itertools.product(("cudnn", "associative", "fused"), ("lstm", "min gru"))
    found = {}
    for engine, cell in asked:
        found[f"{engine} | {cell} | resets"] = refusal(engine, cell, resets=flags)
        found[f"{engine} | {cell} | scale"] = refusal(engine, cell, scale=scale)
    return found


# --- the file -------------------------------------------------------------------------


def file_for(version: str) -> Any:
    return DATA / f"schedules_jax{version}.json"


def pack(explanations: dict[str, Any]) -> dict[str, Any]:
    """Rows with numbers for ways and errors, which stand in lists, each once."""
    ways: dict[str, int] = {}
    errors: dict[str, int] = {}

    def number(known: dict[str, int], value: Any) -> int:
        return known.setdefault(json.dumps(value), len(known))

    def short(row: dict[str, Any]) -> list[Any]:
        plain = [row[name] for name in names.ROW if name != "error"]
        numbers = [number(ways, row[name]) for name in names.WAYS]
        return [*plain, number(errors, row["error"]), *numbers]

    packed = {}
    for case, told in explanations.items():
        rows = {"rows": [short(row) for row in told["rows"]]} if "rows" in told else {}
        packed[case] = told | rows
    return {
        "cases": packed,
        "ways": [*map(json.loads, ways)],
        "errors": [*map(json.loads, errors)],
    }


def unpack(stored: dict[str, Any]) -> dict[str, Any]:
    """What `pack` was given."""
    plain = [name for name in names.ROW if name != "error"]

    def whole(row: list[Any]) -> dict[str, Any]:
        numbers = row[len(plain) + 1 :]
        ways = [stored["ways"][i] for i in numbers]
        error = {"error": stored["errors"][row[len(plain)]]}
        return {
            **dict(zip(plain, row)),
            **error,
            **dict(zip(names.WAYS, ways, strict=True)),
        }

    return {
        case: told
        | ({"rows": [whole(row) for row in told["rows"]]} if "rows" in told else {})
        for case, told in stored["cases"].items()
    }


def read(version: str) -> dict[str, Any]:
    """``cases``, ``refusals`` and ``refused_flags`` as of that version of jax."""
    stored = json.loads(file_for(version).read_text(encoding="utf-8"))
    return stored | {"cases": unpack(stored)}


def lines(name: str, values: Any) -> str:
    """A list or dict with one entry on each line."""
    if isinstance(values, dict):
        inner = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()]
        return f"{json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n}"
    return f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, values)) + "\n]"


def main() -> None:
    """Explain every case and write the file of this version of jax."""
    told = {}
    for count, case in enumerate(cases(), 1):
        told[case] = explained(case)
        if case not in QUICK:  # a table that follows from the rows
            told[case].pop("printed", None)
        if count % 25 == 0:
            print(f"{count} of {len(cases())}", flush=True)
    found = pack(told) | {"refusals": refusals(), "refused_flags": refused_flags()}
    assert unpack(json.loads(json.dumps(found))) == json.loads(json.dumps(told))
    text = "{\n" + ",\n".join(lines(*item) for item in found.items()) + "\n}\n"
    file_for(jax.__version__).write_text(text, encoding="utf-8")
    print(f"{len(told)} cases, {len(found['ways'])} ways, {len(text):,} bytes")


if __name__ == "__main__":
    main()
