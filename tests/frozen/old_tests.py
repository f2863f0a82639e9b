"""Where each test function of before the redesign is today.

    PYTHONPATH=.:tests python -m frozen.old_tests

prints a line for each of ``data/test_functions.txt``: the old function, and the new one
or the reason why there is none. A function that kept its name is found by it: in the
file of the same name, wherever that was moved, or else in the only file that has it.
`BY_HAND` says it of the others, so whoever renames an old test adds a line there.
"""

import functools
from typing import NamedTuple

from .make_test_ids import functions
from .paths import DATA


class Today(NamedTuple):
    """Where a test is now, as ``file::function``, and what has changed."""

    place: str
    reason: str


BY_HAND = {
    "tests/test_devices.py::test_a_run_on_two_devices_is_not_resumed_on_one": Today(
        "tests/training/test_devices.py::test_a_run_on_two_devices_goes_on_on_one",
        "a run goes on on any number of devices",
    ),
    "tests/test_gradients_command.py::test_of_cells_at_initialisation": Today(
        "tests/tasks/test_gradients_command.py::test_of_cells_at_initialization",
        "public names are spelled as in America",
    ),
    "tests/test_linear.py::test_published_initialisation": Today(
        "tests/engines/test_linear.py::test_published_initialization",
        "public names are spelled as in America",
    ),
    "tests/test_orbax.py::test_the_readme_says_these_lines": Today(
        "tests/training/test_orbax.py::test_the_guide_says_these_lines",
        "the lines moved from the README to a guide",
    ),
    "tests/test_readme.py::test_every_public_name_is_in_the_reference": Today(
        "tests/repository/test_readme.py::"
        "test_every_public_name_is_on_the_page_of_names",
        "the reference moved from the README to a page of its own",
    ),
    "tests/test_readme.py::test_the_code_runs": Today(
        "tests/repository/test_readme.py::test_the_code_prints_what_is_shown",
        "the README has one block of code, and what it prints is compared, too",
    ),
    "tests/test_training.py::"
    "test_killed_five_times_and_resumed_a_run_ends_with_the_same_metrics": Today(
        "tests/training/test_training.py::"
        "test_killed_and_resumed_a_run_ends_with_the_same_metrics",
        "killed once in the default tier, and five times in the slow one",
    ),
    "tests/test_modern_cells.py::test_associative_refuses_what_it_cannot_walk": Today(
        "tests/cells/test_modern_cells.py::test_associative_refuses_what_it_cannot_run",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_empty.py::test_nothing_to_walk": Today(
        "tests/core/test_empty.py::test_nothing_to_run",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_cudnn.py::test_it_walks_as_scan_does": Today(
        "tests/engines/test_cudnn.py::test_it_runs_as_scan_does",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_cudnn.py::test_arrays_that_only_jaxs_loop_walks": Today(
        "tests/engines/test_cudnn.py::test_arrays_that_only_jaxs_loop_runs",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_fused_cells.py::"
    "test_a_walk_backwards_that_does_not_fit_is_refused_by_name": Today(
        "tests/engines/test_fused_cells.py::"
        "test_a_run_backwards_that_does_not_fit_is_refused_by_name",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_linear.py::test_every_walk_is_the_python_loop_at_any_length": Today(
        "tests/engines/test_linear.py::test_every_run_is_the_python_loop_at_any_length",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_linear.py::"
    "test_a_step_of_its_own_is_walked_as_it_is_and_refused_by_name": Today(
        "tests/engines/test_linear.py::"
        "test_a_step_of_its_own_is_run_as_it_is_and_refused_by_name",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_explain.py::test_windows_are_those_walked": Today(
        "tests/explaining/test_explain.py::test_windows_are_those_run",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_laws_forward.py::"
    "test_a_sequence_may_be_walked_in_two_parts_wherever_it_is_cut": Today(
        "tests/laws/test_laws_forward.py::"
        "test_a_sequence_may_be_run_in_two_parts_wherever_it_is_cut",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_own_layers.py::test_a_subclass_is_walked_by_its_own_methods": Today(
        "tests/layers/test_own_layers.py::test_a_subclass_is_run_by_its_own_methods",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_own_layers.py::test_explain_says_why_the_loop_walks_a_subclass": Today(
        "tests/layers/test_own_layers.py::"
        "test_explain_says_why_the_loop_runs_a_subclass",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_own_layers.py::"
    "test_a_cell_that_unrolls_in_its_step_walks_over_another_time": Today(
        "tests/layers/test_own_layers.py::"
        "test_a_cell_that_unrolls_in_its_step_runs_over_another_time",
        "a layer runs over a sequence; the word for it was another",
    ),
    "tests/test_nnx_flax.py::test_built_in_cells_are_walked_as_jaxrnns_own": Today(
        "tests/nnx/test_nnx_flax.py::test_built_in_cells_are_run_as_jaxrnns_own",
        "a layer runs over a sequence; the word for it was another",
    ),
}


def functions_before() -> list[str]:
    """``file::function`` of every old test."""
    return (DATA / "test_functions.txt").read_text(encoding="utf-8").splitlines()


@functools.cache
def places_today() -> dict[str, list[str]]:
    """Where there is a test of a name, its class included: ``file::function``."""
    places: dict[str, list[str]] = {}
    for place in functions():
        places.setdefault(place.partition("::")[2], []).append(place)
    return places


def today(before: str) -> Today | None:
    """Where an old test is now, or None where it is lost."""
    if before in BY_HAND:
        name = BY_HAND[before].place.partition("::")[2]
        there = BY_HAND[before].place in places_today().get(name, ())
        return BY_HAND[before] if there else None
    file, _, name = before.partition("::")
    found = places_today().get(name, [])
    ending = f"/{file.rpartition('/')[2]}::{name}"
    for places in ([each for each in found if each.endswith(ending)], found):
        if len(places) == 1:
            return Today(places[0], "moved")
    return None


def main() -> None:
    """Print the table."""
    for before in functions_before():
        now = today(before)
        print(f"{before} -> {'LOST' if now is None else '  # '.join(now)}")


if __name__ == "__main__":
    main()
