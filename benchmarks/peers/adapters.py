"""A library's layer on given work: how it is compiled, run and checked. Peers differ
in `forward`, `mapping` and layout.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..harness.timing import Program, compiled
from ..harness.workload import Work, difference, training

EXTRAS = {"flax": "."}  # flax comes with jaxrnn itself, every other peer with the extra


class SkipEntryError(Exception):
    """Why an entry does not run here; the others go on."""


def require(module: str) -> Any:
    """Import a peer, or raise `SkipEntryError` with its name and the command that
    installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise SkipEntryError(
            f"{missing} is not installed: pip install "
            f"'{EXTRAS.get(missing, '.[peers]')}'"
        ) from None
    except (
        Exception
    ) as error:  # a peer that lags behind this jax breaks while it is imported
        raise SkipEntryError(
            f"{module} cannot be imported beside jax {jax.__version__}: "
            f"{type(error).__name__}: {error}"
        ) from None


@dataclasses.dataclass
class Model:
    """A layer as functions of its weights.

    ``mapping`` turns weights in jaxrnn's layout into the library's own: traceable, so
    that its transpose brings gradients back. ``reference`` is the cell whose naive scan
    it must equal. ``note`` says where its work is not quite the same.
    """

    mapping: Callable[[dict], Any] = dict
    reference: Any = None  # default: the work's own cell
    batch_first: bool = False
    note: str = ""

    def programs(self, work: Work) -> dict[str, Program]:
        """A program for each mode that it has."""
        raise NotImplementedError

    def layout(self, array: np.ndarray) -> np.ndarray:
        """A time-major array as this library takes it; its own inverse."""
        return (
            np.ascontiguousarray(np.swapaxes(array, 0, 1))
            if self.batch_first
            else array
        )

    def parts(self, mode: str, result: Any) -> dict[str, Any]:
        """What a program returned, named as in `Work.answer`, in this library's
        layout.
        """
        if mode == "forward":
            return {"outputs": result}
        return {"weight_gradient": result[1][0], "input_gradient": result[1][1]}

    def check(self, work: Work, programs: dict[str, Program]) -> dict[str, float]:
        """Relative differences of outputs, input gradient and weight gradient from
        the naive scan's.
        """
        cell = work.cell if self.reference is None else self.reference
        expected, found = work.answer(cell), {}
        for mode, program in programs.items():
            for name, value in self.parts(mode, program.run()).items():
                if (
                    name == "weight_gradient"
                ):  # back to jaxrnn's layout, by the transpose of the mapping
                    value = jax.vjp(self.mapping, work.weights_of(cell))[1](value)[0]
                else:
                    value = self.layout(np.asarray(value))
                found[name] = difference(value, expected[name])
        return found


@dataclasses.dataclass
class JaxModel(Model):
    """A layer written in JAX: ``forward(weights, xs) -> ys``, time-major unless
    ``batch_first``.
    """

    forward: Callable[[Any, Any], Any] = None  # type: ignore[assignment]

    def function(self, mode: str) -> Callable:
        return self.forward if mode == "forward" else training(self.forward)

    def arguments(self, work: Work) -> tuple:
        """Weights, inputs and cotangent on the device, in this library's layout."""
        cell = work.cell if self.reference is None else self.reference
        return jax.device_put(
            (
                self.mapping(work.weights_of(cell)),
                self.layout(work.xs),
                self.layout(work.cotangent),
            ),
            jax.devices()[0],
        )

    def programs(self, work: Work) -> dict[str, Program]:
        weights, xs, cotangent = self.arguments(work)
        return {
            "forward": compiled(self.function("forward"), weights, xs),
            "train": compiled(self.function("train"), weights, xs, cotangent),
        }

    def compile_for_memory(self, work: Work) -> Any:
        """The compiled training program, from shapes alone: no input is allocated."""
        cell = work.cell if self.reference is None else self.reference
        B, T, I, H = work.shape
        lead = (B, T) if self.batch_first else (T, B)
        abstract = [
            jax.ShapeDtypeStruct((*lead, features), np.float32) for features in (I, H)
        ]
        return (
            jax.jit(self.function("train"))
            .lower(self.mapping(work.weights_of(cell)), *abstract)
            .compile()
        )
