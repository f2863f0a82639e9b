"""Divisions of a carry into groups, and their labels."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.engines.jaxpr.dependence import MANY, NONE, join, join_over
from jaxrnn.engines.jaxpr.grouping import Grouping


@pytest.mark.parametrize(
    ("grouping", "shapes", "groups", "size"),
    [
        (Grouping(1, 3), [(2, 3), (2, 6)], (2, 3), 3),
        (Grouping(0, 3), [(3,), (3,)], (3,), 2),
        (Grouping(1, 2, 3), [(2, 6), (2, 12)], (2, 2), 9),
        (Grouping(0, 3, 2), [(6,), (6,)], (3,), 4),
        (Grouping(1), [(2, 3), (2, 3, 2)], (2,), 9),
        (Grouping(2), [(2, 3), (2, 3, 2)], (2, 3), 3),
        (Grouping(0), [(), (2, 2)], (), 5),
    ],
)
def test_join_is_the_inverse_of_split_and_labels_name_the_group(
    grouping, shapes, groups, size
):
    random = np.random.default_rng(0)
    parts = [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]
    vectors = grouping.split(parts)
    assert vectors.shape == (*groups, size)
    for a, b in zip(grouping.join(vectors, parts), parts, strict=True):
        np.testing.assert_array_equal(a, b)
    mapped = grouping.join(jnp.stack([vectors, 2 * vectors]), parts)
    for a, b in zip(mapped, parts, strict=True):
        np.testing.assert_array_equal(a[1], 2 * b)
    labels = grouping.labels(parts)
    split = np.asarray(grouping.split([jnp.asarray(a, jnp.float32) for a in labels]))
    index = np.arange(np.prod(groups, dtype=int)).reshape(*groups, 1)
    np.testing.assert_array_equal(split, np.broadcast_to(index, split.shape))


def test_labels_join():
    a = np.array([NONE, 3, 3, MANY, NONE])
    b = np.array([NONE, 3, 4, NONE, 5])
    assert join(a, b).tolist() == [NONE, 3, MANY, MANY, 5]
    rows = np.array(
        [[NONE, 3, NONE], [NONE, NONE, NONE], [3, 3, 4], [MANY, MANY, NONE]]
    )
    assert join_over(rows, [1])[:, 0].tolist() == [3, NONE, MANY, MANY]
    assert join_over(np.zeros((2, 0), int), [1]).tolist() == [[NONE], [NONE]]
