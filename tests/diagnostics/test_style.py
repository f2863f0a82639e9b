"""The style of pictures: lines labeled at their ends, and settings kept."""

import numpy as np
import pytest

from jaxrnn.diagnostics import style

matplotlib = pytest.importorskip("matplotlib")


def drawn(**curves):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(values, label=name)
    axis.plot([0, 1], [0, 1])  # without a label
    style.label_lines(axis)
    return axis


def test_labels_stand_at_the_ends_of_their_lines_and_apart():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=5), rng.normal(size=5)
    low[-1], high[-1] = -1.0, 2.0
    axis = drawn(low=low, high=high, near=high + 1e-3, nan=[np.nan, np.nan])
    places = {text.get_text(): text.xy[1] for text in axis.texts}
    assert places.keys() == {"low", "high", "near"}
    bottom, top = axis.get_ylim()
    assert places["low"] == pytest.approx((-1 - bottom) / (top - bottom))
    assert places["near"] - places["high"] > 0.03
    assert all(0 <= place <= 1 for place in places.values())


def test_labels_of_lines_that_leave_the_axis_are_in_the_order_of_the_lines():
    from matplotlib.figure import Figure

    axis = Figure(figsize=(5, 3)).subplots()
    for slope in (2, 5, 3):
        axis.plot(-slope * np.arange(10.0), label=f"down {slope}")
        axis.plot(slope * np.arange(10.0), label=f"up {slope}")
    axis.set_ylim(-10, 10)
    style.label_lines(axis)
    places = {text.get_text(): text.xy[1] for text in axis.texts}
    assert sorted(places, key=places.__getitem__) == [
        *("down 5", "down 3", "down 2"),
        *("up 2", "up 3", "up 5"),
    ]


@pytest.mark.parametrize("count", [1, 4, 30])
def test_places_keep_their_order_and_their_distance(count):
    places = sorted(np.random.default_rng(count).uniform(size=count))
    moved = style.apart(places, 0.08)
    assert (np.diff(moved) >= 0.08 - 1e-12).all()
    if count < 12:
        assert 0 <= min(moved) <= max(moved) <= 1


def test_the_callers_settings_are_kept():
    before = dict(matplotlib.rcParams)

    @style.styled
    def draw():
        assert matplotlib.rcParams["axes.spines.top"] is False
        return drawn(a=[1, 2]).get_lines()[0].get_color()

    assert draw() == style.COLORS[0]
    assert dict(matplotlib.rcParams) == before


def test_colors_differ_in_lightness_or_hue_for_people_who_see_two_hues():
    """Deuteranopia after Machado et al. (2009), severity 1."""
    seen = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    )
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in style.COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    shown = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(shown[:, None] - shown[None], axis=-1)
    assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 0.1


def test_dollars_are_plain_text():
    assert style.title("Costs", "charlm on $x$.txt") == "Costs\ncharlm on \\$x\\$.txt"
