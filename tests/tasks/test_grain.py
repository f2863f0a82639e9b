"""The example with grain of docs/howto/large_data.md, where grain is installed."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "large_data.md"


@pytest.mark.usefixtures("optax_promotion")
def test_a_loop_with_grain_learns_and_its_batches_follow_from_the_step():
    pytest.importorskip("grain")
    (example,) = re.findall(r"```py\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names = {}
    exec(example, names)
    state, batches = names["state"], names["batches"]
    total, count = names["loss"](state.params, batches[3], None)
    assert float(total) / int(count) < 0.05
    first = names["loss"](names["params"], batches[3], None)
    assert float(first[0]) > 10 * float(total)
    for one, again in zip(batches[7], batches[7], strict=True):
        np.testing.assert_array_equal(one, again)
