"""Series out of files: what is read, and a line for every mistake."""

import numpy as np
import pytest

from jaxrnn.tasks.data.series import Scaler, Series, cuts_of, filled, until
from jaxrnn.tasks.data.series_tables import Roles, read_series
from jaxrnn.tasks.data.ts_files import read_ts
from jaxrnn.training import InputError

NAN = float("nan")


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_one_series(tmp_path):
    path = write(tmp_path, "A,b\n1,2\n-3.5,?\n1e2,\n")
    table = read_series(path)
    assert table.columns == ("a", "b")
    (series,) = table.series
    assert series.name == "a"  # the file's
    np.testing.assert_array_equal(series.values, [[1, 2], [-3.5, NAN], [100, NAN]])
    assert series.times is None
    assert not table.dated


def test_ragged_labeled_series_with_times(tmp_path):
    text = (
        "series;date;x;label;split\n"
        "u;2026-01-01;1;A;train\nv;2026/01/01 12:00;5;B;test\n"
        "u;2026-01-02 06:00;2;A;train\n\nu;2026-01-03;3;A;train\n"
    )
    table = read_series(write(tmp_path, text))
    assert table.dated
    assert [(s.name, s.label, s.split) for s in table.series] == [
        ("u", "A", "train"),
        ("v", "B", "test"),
    ]
    u, v = table.series
    np.testing.assert_array_equal(u.values, [[1], [2], [3]])
    np.testing.assert_array_equal(np.diff(u.times), [30 * 3600, 18 * 3600])
    assert len(v) == 1


def test_columns_by_any_names(tmp_path):
    path = write(tmp_path, "Who,When,What,Note,Y\n1,0.5,7,text,9\n1,0.75,8,text,9\n")
    table = read_series(path, Roles("y, what", "when", "who"))
    assert table.columns == ("y", "what")
    np.testing.assert_array_equal(table.series[0].values, [[9, 7], [9, 8]])
    np.testing.assert_array_equal(table.series[0].times, [0.5, 0.75])
    # a column with a known name is a value if it is asked for
    path = write(tmp_path, "label,time\n1,2\n")
    assert read_series(path, Roles("label,time")).columns == ("label", "time")


MISTAKES = [
    ("a,a\n1,2\n", Roles(), ":1: the first line must name the columns, but 2 columns"),
    ("a,b\n1,2\n", Roles("c"), ":1: the first line must name the columns, but no col"),
    ("a,b\n1,2\n", Roles(time="when"), ":1: --time when: no columns are called so"),
    ("time\n1\n", Roles(), ":1: no column holds values, since time have other"),
    ("a,label\n1,x\n", Roles(), ":1: the column label gives each series a label"),
    ("a,b\n1,2\n3\n", Roles(), ":3: expected 2 fields (a, b), but this row has 1"),
    (
        "a,b\n1,x\n",
        Roles(),
        ":2: the value of b must be a finite number, but it is",
    ),
    ("a\n1\ninf\n", Roles(), ":3: the value of a must be a finite number"),
    ("a;b\n1;2,5\n", Roles(), ":2: the value of b must be a finite number, but it is"),
    ("time,a\nsoon,1\n", Roles(), ":2: the time must be a number, or a date such as "),
    ("time,a\nnan,1\n", Roles(), ":2: the time must be a number, or a date such as "),
    ("time,a\n2,1\n2,1\n", Roles(), ":3: the time does not come after that of line 2"),
    (
        "series,label,a\nu,x,1\nu,y,1\n",
        Roles(),
        ":3: the label of series 'u' was 'x' in line 2 and is 'y' here",
    ),
    ("series,label,a\nu,,1\n", Roles(), ":2: the label is empty; fill it in"),
    ("split,a\nhalf,1\n", Roles(), ":2: the split 'half' is none of train,"),
    ("a,b\n", Roles(), " has no samples; --data must be a CSV or TSV file with a row"),
]


@pytest.mark.parametrize(("text", "roles", "message"), MISTAKES)
def test_mistakes_in_tables_name_their_line(tmp_path, text, roles, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_series(path, roles)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_a_decimal_comma_is_named(tmp_path):
    with pytest.raises(InputError, match="'2,5': write a decimal point"):
        read_series(write(tmp_path, "a;b\n1;2,5\n"))


TS = """# a comment
@problemName waves
@univariate false
@dimensions 2
@classLabel true up down
@data
1,2,3:4,5,?:up
% another
-1.5,2:NaN,0:down
"""


def test_a_ts_file_of_ragged_series_in_two_dimensions(tmp_path):
    table = read_series(write(tmp_path, TS, "a.ts"))
    assert table.columns == ("dim1", "dim2")
    first, second = table.series
    np.testing.assert_array_equal(first.values, [[1, 4], [2, 5], [3, NAN]])
    np.testing.assert_array_equal(second.values, [[-1.5, NAN], [2, 0]])
    assert [series.label for series in table.series] == ["up", "down"]


def test_a_ts_file_with_times(tmp_path):
    text = (
        "@timestamps TRUE\n@classlabel false\n@DATA\n"
        "(2007-01-01 00:00:00,241.5),(2007-01-01 00:01:30,?)\n(1,2),(2.5,3)\n"
    )
    table = read_ts(write(tmp_path, text, "a.ts"))
    assert table.columns == ("value",)
    first, second = table.series
    np.testing.assert_array_equal(first.values, [[241.5], [NAN]])
    assert first.times[1] - first.times[0] == 90
    np.testing.assert_array_equal(second.times, [1, 2.5])
    assert first.label == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "@problemName waves",
            "waves",
            ":2: this line stands before @data",
        ),
        (
            "@classLabel true up down\n",
            "",
            ":5: the lines above must say whether",
        ),
        ("@dimensions 2", "@targetLabel true", ":6: @targetLabel true says that the"),
        (
            ":up",
            ":left",
            ":7: the label 'left' after the last colon is none of up,",
        ),
        ("1,2,3:", "", ":7: expected 2 dimensions with colons between, but this line"),
        ("4,5,?", "4,5", ":7: the dimensions of a series must have the same samples"),
        ("4,5,?", "4,b,?", ":7: 'b' is no sample: values are finite numbers, or ?"),
        ("4,5,?", "4,inf,?", ":7: 'inf' is no sample"),
        ("4,5,?", "4,,5", None),
        ("4,5,?", " ", ":7: a dimension has no values"),
        ("@dimensions 2", "@timestamps true", ":7: @timeStamps true asks for samples"),
        ("@data\n", "", " has no series; --data must be a .ts file"),
    ],
)
def test_mistakes_in_ts_files_name_their_line(tmp_path, old, new, message):
    path = write(tmp_path, TS.replace(old, new, 1), "a.ts")
    if message is None:  # an empty value is missing
        assert np.isnan(read_ts(path).series[0].values[1, 1])
        return
    if "@data" in old:
        path = write(tmp_path, TS[: TS.index("@data")], "a.ts")
    with pytest.raises(InputError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_scales_are_those_of_numpy_without_what_is_missing():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (40, 3))
    values[:, 2] = 0.1
    values[5:9, 0] = NAN
    times = np.cumsum(rng.choice([1.0, 1.0, 2.5], 40))
    scaler = Scaler.of([Series("a", values, times)])
    np.testing.assert_allclose(scaler.mean, np.nanmean(values, 0), rtol=1e-12)
    deviations = np.nanstd(values, 0)
    np.testing.assert_allclose(scaler.scale[:2], deviations[:2], rtol=1e-12)
    assert scaler.scale[2] == 1
    assert scaler.gap == np.median(np.diff(times))
    assert scaler.irregular
    months = np.cumsum([31.0, 28, 31, 30, 31, 30, 31, 31, 30])
    assert not Scaler.of([Series("a", values[:9], months)]).irregular
    assert Scaler.stored(scaler.stored_values()) == scaler


def test_gaps_hold_the_last_value_and_say_so():
    scaler = Scaler((0.0, 10.0), (1.0, 2.0), gap=2.0)
    values = np.array([[NAN, 12], [1, NAN], [NAN, NAN], [4, 8]])
    found = filled(Series("a", values, np.array([0.0, 2, 3, 7])), scaler)
    np.testing.assert_array_equal(found.values, [[0, 1], [1, 1], [1, 1], [4, -1]])
    np.testing.assert_array_equal(found.seen, np.isfinite(values))
    np.testing.assert_array_equal(found.gaps, [1, 1, 0.5, 2])


def test_time_cuts_a_series_and_short_ones_are_for_training():
    assert cuts_of(100, 5) == (70, 85)
    assert cuts_of(20, 5) == (20, 20)
    series = Series("a", np.arange(6.0)[:, None], np.arange(6.0))
    part = until(series, 4)
    assert len(part) == len(part.times) == 4
    assert part.key != series.key
    assert until(series, 6).key == series.key
