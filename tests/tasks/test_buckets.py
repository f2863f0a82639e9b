"""Batches by length, and splits by hash: everything once, nothing that depends on
what came before.
"""

import numpy as np

from jaxrnn.tasks.data.bucketing import Buckets, widths_for
from jaxrnn.tasks.data.splits import share_of, split_by

rng = np.random.default_rng


def test_widths_grow_by_a_half_at_most():
    widths = np.array(widths_for(2000))
    assert widths[:6].tolist() == [8, 12, 16, 24, 32, 48]
    assert widths[-1] >= 2000 > widths[-2]
    assert (widths[1:] / widths[:-1] <= 1.5).all()


def test_an_epoch_shows_every_example_once_and_pads_little():
    lengths = rng(0).integers(0, 90, size=203)
    buckets = Buckets(lengths, 16, seed=3)
    for epoch in range(2):
        seen = []
        for step in range(epoch * buckets.per_epoch, (epoch + 1) * buckets.per_epoch):
            rows, width = buckets(step)
            assert rows.shape == (16,)
            there = rows[rows >= 0]
            assert (lengths[there] <= width).all()
            assert (lengths[there] > width / 2).all() or width == 8
            seen += there.tolist()
        assert sorted(seen) == list(range(203))
    assert sorted(i for rows, _ in buckets.in_order() for i in rows if i >= 0) == list(
        range(203)
    )


def test_coarse_widths_and_bounded_batches():
    assert widths_for(65, 16, coarse=True) == (16, 32, 64, 128)
    assert widths_for(64, 16, coarse=True) == (16, 32, 64)
    assert widths_for(0, 16, coarse=True) == (16,)
    lengths = np.concatenate([rng(0).integers(0, 90, size=203), [0, 2000, 700]])
    buckets = Buckets(lengths, 16, seed=3, most=1024, first=16, coarse=True)
    for find in (
        [buckets(step) for step in range(buckets.per_epoch)],
        buckets.in_order(),
    ):
        assert sorted(i for rows, _ in find for i in rows if i >= 0) == list(range(206))
        assert all(len(rows) * width <= 1024 or len(rows) == 1 for rows, width in find)
        assert {len(rows) for rows, width in find if width == 32} == {16}
        assert {len(rows) for rows, width in find if width == 128} == {8}


def test_a_batch_depends_on_seed_and_step_alone():
    lengths = rng(1).integers(1, 40, size=100)
    one, other = Buckets(lengths, 8, seed=0), Buckets(lengths, 8, seed=0)
    for step in (57, 3, 200, 4):  # in any order
        np.testing.assert_array_equal(other(step).rows, one(step).rows)
    orders = [
        np.concatenate([Buckets(lengths, 8, seed)(step).rows for step in range(13)])
        for seed in (0, 1)
    ]
    assert (orders[0] != orders[1]).any()
    assert any(
        (one(step).rows != one(step + one.per_epoch).rows).any() for step in range(5)
    )


def test_splits_keep_keys_together_and_grow():
    examples = [(f"film {i % 300}", i) for i in range(3000)]
    split = split_by(examples, lambda example: example[0])
    assert sorted(i for part in split for _, i in part) == list(range(3000))
    parts = [{name for name, _ in part} for part in split]
    assert sum(map(len, parts)) == 300
    assert 0.7 < len(split.train) / 3000 < 0.9
    larger = split_by(
        [*examples, *((f"film {i}", i) for i in range(300, 900))],
        lambda example: example[0],
    )
    assert all(set(part) <= set(more) for part, more in zip(split, larger, strict=True))
    assert 0 <= share_of("") < 1
