"""Optimizers and schedules of optax by name, for the options of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax
from jaxtyping import Array

from ..training import constant, make_optimizer, warmup_cosine
from ..training.state import RESOLUTION, over_progress
from .config import choice

WARMUP = 0.02  # share of a run over which the rate rises, as for warmup_cosine
FINAL = 0.01  # the last rate, relative to the largest
ADAMW_DECAY = 1e-4  # optax's own default

# Each takes Adam's place in make_optimizer; None is Adam itself.
RULES: Mapping[str, Callable[[], optax.GradientTransformation | None]] = {
    "adam": lambda: None,
    "adamw": lambda: None,
    "nadam": lambda: optax.scale_by_adam(nesterov=True),
    "radam": optax.scale_by_radam,
    "adabelief": optax.scale_by_belief,
    "lion": optax.scale_by_lion,
    "rmsprop": optax.scale_by_rms,
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
}


def _linear(peak: float) -> Callable[[Array], Array]:
    """Rise to ``peak``, and then fall along a line."""
    rise = int(WARMUP * RESOLUTION)
    lines = [
        optax.linear_schedule(0.0, peak, rise),
        optax.linear_schedule(peak, FINAL * peak, RESOLUTION - rise),
    ]
    return over_progress(optax.join_schedules(lines, [rise]))


def _exponential(peak: float) -> Callable[[Array], Array]:
    """Rise to ``peak``, and then fall by the same share in equal times."""
    rise = int(WARMUP * RESOLUTION)
    return over_progress(
        optax.warmup_exponential_decay_schedule(
            0.0, peak, rise, RESOLUTION - rise, FINAL
        )
    )


def _onecycle(peak: float) -> Callable[[Array], Array]:
    """Rise to ``peak`` over 30 % of the run, and fall, each along a cosine."""
    return over_progress(optax.cosine_onecycle_schedule(RESOLUTION, peak))


SCHEDULES: Mapping[str, Callable[[float], Callable[[Array], Array]]] = {
    "constant": constant,
    "cosine": warmup_cosine,
    "linear": _linear,
    "exponential": _exponential,
    "onecycle": _onecycle,
}


def optimizer_field() -> Any:
    """Return the option for the optimizer."""
    return choice(
        "adam",
        RULES,
        f"optimizer (adamw: weight decay {ADAMW_DECAY:g}, unless one is given; "
        f"momentum: sgd with momentum 0.9)",
    )


def schedule_field(default: str = "cosine") -> Any:
    """Return the option for the schedule of the learning rate."""
    return choice(
        default,
        SCHEDULES,
        "schedule of the learning rate, all but constant with a warm-up",
    )


def named_optimizer(
    name: str, *, clip: float = 1.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return `make_optimizer` with the rule of this name.

    Adam and AdamW have the moments of `make_optimizer`; the others are optax's, with
    its defaults.

    Args:
        name: one of `RULES`.
        clip: the largest global norm of the gradient.
        weight_decay: the decoupled weight decay.
    """
    if name == "adamw":
        weight_decay = weight_decay or ADAMW_DECAY
    return make_optimizer(clip=clip, weight_decay=weight_decay, rule=RULES[name]())


def named_schedule(name: str, peak: float) -> Callable[[Array], Array]:
    """Return the schedule of this name over the progress in [0, 1].

    Args:
        name: one of `SCHEDULES`.
        peak: the largest learning rate.
    """
    return SCHEDULES[name](peak)
