"""Whether the kernels compile: ``python -m benchmarks.accelerator.kernels`` has the
makers' own compilers make machine code of them.

No chip is needed, so this says nothing of speed. For NVIDIA GPUs (an H100 is described
to XLA; needs jax-cuda13-plugin, jax-cuda13-pjrt and nvidia-cuda-nvcc) the table has
registers a thread, bytes spilled and of shared memory, as ptxas tells them; for TPUs
(needs libtpu) whether libtpu's compiler took it. Each line is a value and gradient of
`jaxrnn.unroll` with `Fused()`: a kernel forwards and one backwards.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn.explaining.chips import MissingCompilerError, compile_for, place_on

from ..harness.host import versions
from ..harness.options import Parser
from ..harness.save_run import RESULTS

TPUS = ("v4", "v5e", "v5p", "v6e")
F32, BF16 = jnp.float32, jnp.bfloat16
# Cell, units, examples, steps, dtype, mask and resets.
CASES: tuple[tuple[str, int, int, int, Any, bool], ...] = (
    ("LSTM", 128, 16, 1024, BF16, False),
    ("LSTM", 128, 2048, 1024, BF16, False),
    ("LSTM", 64, 16, 1024, F32, False),
    ("LSTM", 96, 3, 33, BF16, True),
    ("GRU", 128, 16, 1024, BF16, False),
    ("GRU", 192, 16, 1024, BF16, False),
    ("GRU", 64, 3, 33, F32, True),
    ("Elman", 256, 16, 1024, BF16, False),
    ("Elman", 128, 3, 33, F32, True),
    ("IndRNN", 256, 16, 1024, F32, False),
    ("DiagonalGRU", 256, 16, 1024, F32, False),
    ("DiagonalLSTM", 256, 16, 1024, F32, True),
    ("MinGRU", 1536, 8, 16_384, F32, False),
    ("MinLSTM", 256, 3, 33, F32, True),
    ("RGLRU", 256, 8, 1024, BF16, False),
    ("LRU", 256, 8, 1024, F32, True),
    ("S5", 256, 8, 1024, F32, False),
    ("SLSTM", 64, 16, 1024, F32, False),
    ("LSTM", 1024, 256, 1024, BF16, True),
)


def compiled(
    chip: str,
    name: str,
    units: int,
    batch: int,
    steps: int,
    dtype: Any,
    flags: bool,
) -> None:
    """Compile a value and gradient for a chip that is described only."""
    cell = getattr(jaxrnn, name)(units)
    features = units if name == "RGLRU" else 64

    def init() -> Any:
        params = cell.init(jax.random.key(0), features)
        return jax.tree.map(
            lambda a: (
                a if jnp.issubdtype(a.dtype, jnp.complexfloating) else a.astype(dtype)
            ),
            params,
        )

    def loss(params, xs, mask):
        carry, ys = jaxrnn.unroll(
            cell,
            params,
            xs,
            engine=jaxrnn.Fused(),
            mask=mask if flags else None,
            resets=mask if flags else None,
        )
        return sum(jnp.abs(a).astype(F32).sum() for a in jax.tree.leaves((carry, ys)))

    inputs = (
        jax.eval_shape(init),
        jax.ShapeDtypeStruct((steps, batch, features), dtype),
        jax.ShapeDtypeStruct((steps, batch), bool),
    )
    compile_for(chip, jax.value_and_grad(loss, (0, 1)), *inputs)


def of_ptxas(folder: pathlib.Path) -> dict[str, list[int]]:
    """What the assembler said of the kernels of a program, one entry a kernel."""
    found: dict[str, list[int]] = {
        "registers": [],
        "spilled_bytes": [],
        "shared_bytes": [],
    }
    for log in sorted(folder.glob("*.ptxas")):
        text = log.read_text(encoding="utf-8", errors="replace")
        registers, spilled = (
            re.search(r"Used (\d+) registers", text),
            re.search(r"(\d+) bytes spill stores", text),
        )
        resources = log.with_name(log.name.replace(".ptxas", ".resources.txt"))
        shared = re.search(
            r"smem_scratch_bytes=(\d+)",
            resources.read_text(encoding="utf-8") if resources.exists() else "",
        )
        for key, match in zip(found, (registers, spilled, shared), strict=True):
            if match:
                found[key].append(int(match[1]))
    return found


def compile_all(chips: list[str], cases: Any) -> list[dict]:
    """A row for every chip and case."""
    rows = []
    for chip in chips:
        try:
            place_on(chip)
        except MissingCompilerError as error:
            print(f"left out: {error}", flush=True)
            continue
        for name, units, batch, steps, dtype, flags in cases:
            row: dict[str, Any] = {
                "chip": chip,
                "cell": name,
                "H": units,
                "B": batch,
                "T": steps,
                "dtype": jnp.dtype(dtype).name,
            }
            row |= {"mask_and_resets": flags}
            with tempfile.TemporaryDirectory() as folder:
                os.environ["MOSAIC_GPU_DUMP_TO"] = folder
                os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
                start = time.perf_counter()
                try:
                    compiled(
                        chip,
                        name,
                        units,
                        batch,
                        steps,
                        dtype,
                        flags,
                    )
                    row |= {
                        "compiled": True,
                        "seconds": round(time.perf_counter() - start, 1),
                    }
                except Exception as error:
                    row |= {
                        "compiled": False,
                        "reason": f"{type(error).__name__}: {error}".splitlines()[0][
                            :400
                        ],
                    }
                if chip == "H100" and row["compiled"]:
                    row |= of_ptxas(pathlib.Path(folder))
            print(row, flush=True)
            rows.append(row)
    return rows


def table(content: dict) -> str:
    """The result as markdown."""
    lines = [
        "# Kernels compiled by the makers' compilers, no chip at hand",
        "",
        "`python -m benchmarks.accelerator.kernels`",
        "",
    ]
    lines += [
        "| chip | cell | H | B | T | dtype | mask, resets | compiled | registers | "
        "spilled bytes | shared bytes |"
    ]
    lines += ["|" + "---|" * 11]
    for r in content["rows"]:
        numbers = [
            ", ".join(map(str, r.get(key, [])))
            for key in ("registers", "spilled_bytes", "shared_bytes")
        ]
        said = "yes" if r["compiled"] else r["reason"]
        cells = [
            r["chip"],
            r["cell"],
            r["H"],
            r["B"],
            r["T"],
            r["dtype"],
            "yes" if r["mask_and_resets"] else "",
            said,
            *numbers,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", json.dumps(content["versions"]), ""])


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("accelerator.kernels", __doc__ or "", devices=False)
    every = ["H100", *TPUS]
    parser.add_argument(
        "--chips",
        nargs="+",
        default=every,
        choices=every,
        help=f"of {', '.join(every)} (default: all)",
    )
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # or JAX would look for the chips
    rows = compile_all(options.chips, CASES[2:3] if options.quick else CASES)
    content = {"rows": rows, "versions": versions()}
    if not rows:
        parser.exit(2, "nothing was compiled\n")
    if options.quick and not options.out:
        return
    path = (
        pathlib.Path(options.out)
        if options.out
        else RESULTS / f"kernels_compiled_jax{jax.__version__}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(
        json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    path.with_name(path.name + ".md").write_text(table(content), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
