"""Captioning: glyphs by typeface, folders of pictures of every kind, a killed run,
the command line.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from killing import killed_and_resumed

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.tasks import captioning
from jaxrnn.tasks.data import images
from jaxrnn.tasks.data.augment import (
    augmented,
    half_warped,
    with_serifs,
    with_strokes,
)
from jaxrnn.tasks.data.images import read_captioned, read_folder, read_picture
from jaxrnn.tasks.metrics.text import text_scores, word_f1
from jaxrnn.tasks.models.captioner import (
    PLANS,
    Batch,
    Block,
    Captioner,
    PictureEncoder,
    halved,
)
from jaxrnn.tasks.runner import load
from jaxrnn.training import InputError

Image = pytest.importorskip("PIL.Image")
rng = np.random.default_rng


# --- the model
# --------------------------------------------------------------------------------------


def pictures_of(n=3, size=16, seed=0):
    return jnp.asarray(rng(seed).uniform(size=(n, size, size, 1)), jnp.float32)


@pytest.mark.parametrize("attention", ["none", "additive"])
def test_captions_alone_and_padded_have_the_same_loss(attention):
    options = {
        "picture_size": 16,
        "channels": 2,
        "features": 8,
        "embed": 4,
        "size": 6,
        "attention": attention,
    }
    model = Captioner(7, jaxrnn.LSTM(8), rngs=nnx.Rngs(0), **options)
    captions = jnp.asarray(
        [[1, 2, 6, 6, 6], [3, 1, 4, 5, 6], [6, 6, 6, 6, 6]], jnp.int32
    )
    batch = Batch(pictures_of(), captions, jnp.array([3, 5, 0]))
    loss = nnx.jit(lambda model, batch: model.loss(batch))
    total, count = loss(model, batch)
    assert int(count) == 8
    # what the padding holds does not matter
    other = batch._replace(captions=captions.at[0, 3:].set(2))
    np.testing.assert_allclose(loss(model, other)[0], total, rtol=1e-6)
    alone = [
        loss(model, Batch(*(part[i : i + 1] for part in batch)))[0] for i in (0, 1)
    ]
    np.testing.assert_allclose(sum(alone), total, rtol=1e-5)
    found = nnx.jit(lambda model: model.write(batch.pictures, 2, 5, 1.0))(model)
    assert found.tokens.shape == (5, 3, 2)
    assert not (
        found.tokens == 0
    ).any()  # the symbol for words that training did not show


def test_augmentation_is_small_and_by_key():
    images = jnp.tile(pictures_of(size=32), (22, 1, 1, 1))[:64]
    draw = jax.jit(augmented, static_argnums=2)
    np.testing.assert_allclose(draw(jax.random.key(0), images, 0.0), images, atol=1e-6)
    one, same, other = (draw(jax.random.key(seed), images, 1.0) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert jnp.abs(one - other).max() > 0.1
    assert one.min() >= 0
    assert one.max() <= 1 + 1e-6
    dot = jnp.zeros((64, 32, 32, 1)).at[:, 15:17, 15:17].set(1.0)
    moved = np.asarray(draw(jax.random.key(2), dot, 1.0)[..., 0])
    centre = (moved.sum(axis=1) @ np.arange(32)) / moved.sum(axis=(1, 2))
    assert np.abs(centre - 15.5).max() < 4
    assert np.ptp(centre) > 1


def test_half_of_the_images_stay_sharp():
    images = jnp.tile(pictures_of(size=16), (40, 1, 1, 1))
    draw = jax.jit(half_warped, static_argnums=2)
    one, same = (draw(jax.random.key(0), images, 0.8) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    unchanged = np.asarray((one == images).all((1, 2, 3)))
    assert 0.35 < unchanged.mean() < 0.65
    dot = jnp.zeros((120, 16, 16, 1)).at[:, 7:9, 7:9].set(1.0)
    moved = np.asarray(draw(jax.random.key(1), dot, 0.8)[..., 0])
    center = (moved.sum(axis=1) @ np.arange(16)) / moved.sum(axis=(1, 2))
    assert 0 < np.abs(center - 7.5).max() < 1


def test_folders_are_distorted_less_and_older_runs_as_they_were():
    options = captioning.Options
    assert captioning.distortion(options()) is augmented
    assert captioning.distortion(options(data="icons")) is half_warped
    assert captioning.distortion(options(distort="shape")) is half_warped
    icons = options(data="icons", distort="typeface")
    assert captioning.distortion(icons) is augmented
    (field,) = (f for f in dataclasses.fields(options) if f.name == "distort")
    assert field.metadata["before"] == "typeface"


def test_strokes_and_serifs():
    """An upright stroke gets a line at both ends and nowhere else; its sides move,
    and those of a level one otherwise.
    """
    upright = jnp.zeros((64, 32, 32, 1)).at[:, 8:24, 15:17].set(1.0)
    drawn = np.asarray(
        jax.jit(with_serifs, static_argnums=2)(jax.random.key(0), upright, 1.0)
    )
    added = (drawn - upright)[..., 0].max(0)
    assert (
        added[[8, 23], 13:19] > 0.5
    ).sum() == 8  # two places on either side of the stroke, at both ends
    assert added[9:23].max() == added[:8].max() == added[24:].max() == 0
    untouched = (drawn == upright).all((1, 2, 3)).mean()
    assert 0.2 < untouched < 0.6
    cross = upright.at[:, 15:17, 4:28].set(1.0)
    drawn = np.asarray(
        jax.jit(with_strokes, static_argnums=2)(jax.random.key(0), cross, 1.0)
    )[..., 0]
    widths = drawn[:, 9:14].sum(2).mean(1), drawn[:, :, 5:13].sum(1).mean(1)
    assert min(map(min, widths)) < 1.5 < 2.5 < min(map(max, widths))
    assert abs(np.corrcoef(widths)[0, 1]) < 0.5  # each axis for itself


def test_halved_is_max_pooling_and_kernels_are_standardised():
    x = jnp.asarray(rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    np.testing.assert_array_equal(halved(x), nnx.max_pool(x, (2, 2), strides=(2, 2)))
    block = Block(3, 4, rngs=nnx.Rngs(0))
    found = block(x)
    block.kernel[...] = 5 * block.kernel[...] + 2
    np.testing.assert_allclose(block(x), found, atol=1e-4)
    assert Block(4, 4, rngs=nnx.Rngs(0))(found).shape == found.shape
    # no example's output depends on others
    np.testing.assert_allclose(block(x[:1]), block(x)[:1], atol=1e-6)


def strided_block(x, kernel, scale, bias, stride):
    """`Block` by loops over places, in float64."""
    side = kernel.shape[0]
    kernel = kernel - kernel.mean((0, 1, 2))
    kernel = kernel / np.sqrt((kernel**2).sum((0, 1, 2)) + 1e-6)
    n, size = x.shape[:2]
    places = size // stride
    missing = (places - 1) * stride + side - size
    ends = (missing // 2, missing - missing // 2)
    x = np.pad(x, ((0, 0), ends, ends, (0, 0)))
    y = np.zeros((n, places, places, kernel.shape[-1]))
    for row in range(places):
        for column in range(places):
            part = x[:, row * stride :, column * stride :][:, :side, :side]
            y[:, row, column] = np.tensordot(part, kernel, 3)
    mean = y.mean((1, 2, 3), keepdims=True)
    y = (y - mean) / np.sqrt(y.var((1, 2, 3), keepdims=True) + 1e-6)
    return np.maximum(y * scale + bias, 0)


def test_a_strided_block_is_a_loop_over_places(optax_promotion):
    with jax.enable_x64(True):
        draw = rng(3).normal
        x, scale, bias = draw(size=(2, 8, 8, 3)), draw(size=4), draw(size=4)
        block = Block(3, 4, side=5, stride=2, rngs=nnx.Rngs(0))
        kernel = draw(size=block.kernel.shape)
        block.kernel = nnx.Param(jnp.asarray(kernel))
        block.normalize = nnx.GroupNorm(
            4, num_groups=1, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        block.normalize.scale[...] = jnp.asarray(scale)
        block.normalize.bias[...] = jnp.asarray(bias)
        found = block(jnp.asarray(x))
        np.testing.assert_allclose(
            found, strided_block(x, kernel, scale, bias, 2), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("plan", PLANS)
def test_an_encoder_reads_a_quarter_of_the_side(plan):
    encoder = PictureEncoder(16, 2, 5, PLANS[plan], rngs=nnx.Rngs(0))
    cells, features = encoder(pictures_of(3, 16))
    assert cells.shape == (3, 4 * 4, encoder.cell_size)
    assert features.shape == (3, 5)


def test_word_f1():
    assert word_f1(["a b c"], ["a b c"]) == 1
    assert word_f1(["a a b", ""], ["a b", "c"]) == pytest.approx(2 * 2 / 6)
    assert word_f1([""], [""]) == 0
    assert text_scores(["LATIN SMALL LETTER A"], ["LATIN SMALL LETTER A"])[
        "bleu"
    ] == pytest.approx(100)


# --- the data
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serif():
    return images.glyphs("DejaVuSerif", 32)


def test_glyphs_are_those_of_the_notes(serif):
    assert len(serif) == 1478
    assert not {*images.TRAIN} & {*images.VALIDATION, *images.TEST}
    assert len(images.glyphs("STIXGeneral", 32)) == 565
    by_name = {row.caption: row.picture for row in serif}
    small, capital = by_name["LATIN SMALL LETTER O"], by_name["LATIN CAPITAL LETTER O"]
    assert small.shape == (32, 32)
    # one base line, one scale
    assert np.flatnonzero(small.any(1))[0] > np.flatnonzero(capital.any(1))[0] + 3
    assert sum(row.picture.any() for row in serif) == len(serif)


def folder(path, rows, table=None, **files):
    """A folder of small pictures, ``rows`` of file and caption, and its
    captions.csv.
    """
    path.mkdir()
    for name, _ in rows:
        Image.fromarray(rng(len(name)).integers(0, 255, (20, 12), np.uint8)).save(
            path / name
        )
    text = table or "file,caption\n" + "".join(
        f"{name},{caption}\n" for name, caption in rows
    )
    (path / "captions.csv").write_bytes(text.encode())
    return str(path)


def test_pictures_of_every_size_and_mode(tmp_path):
    """The same square, black on white or opaque on nothing, comes out alike."""
    grey = np.full((64, 32), 255, np.uint8)
    grey[16:48, 8:24] = 0
    image = Image.fromarray(grey)
    clear = np.zeros((64, 32, 4), np.uint8)
    clear[..., 3] = 255 - grey
    files = {mode: image.convert(mode) for mode in ("L", "RGB", "1", "P", "LA")}
    files["16 bits"] = Image.fromarray(grey.astype(np.uint16) * 257)
    files["clear"] = Image.fromarray(clear, "RGBA")
    files["large"] = image.resize((320, 640), Image.Resampling.NEAREST)
    found = {}
    for name, picture in files.items():
        picture.save(tmp_path / f"{name}.png")
        found[name] = read_picture(tmp_path / f"{name}.png", 32)
    assert found["L"].shape == (32, 32)
    assert found["L"][12:20, 14:18].min() > 240
    # white beside it, but for the resampling's ringing
    assert found["L"][:, :10].max() < 8
    for name, picture in found.items():
        assert np.abs(picture.astype(int) - found["L"]).max() < 40, name
    one = Image.fromarray(np.zeros((1, 1), np.uint8))
    one.save(tmp_path / "one.png")
    assert read_picture(tmp_path / "one.png", 32).min() == 255


TABLE = (
    '\ufefffile,caption,split\r\na.png,"one, ""quoted""",train\r\n\r\nb.png,"두 '
    '줄\r\n입니다",test\r\nc.png,x,\r\n'
)


def test_a_table_with_quotes_newlines_and_korean(tmp_path):
    path = folder(
        tmp_path / "own", [("a.png", ""), ("b.png", ""), ("c.png", "")], TABLE
    )
    rows = read_folder(path, 32)
    assert [(row.caption, part) for row, part in rows] == [
        ('one, "quoted"', "train"),
        ("두 줄 입니다", "test"),
        ("x", ""),
    ]


MISTAKES = {
    "a missing picture": (
        "file,caption\na.png,x\nnone.png,y\n",
        r"captions\.csv:3: there is no image .*none\.png",
    ),
    "a broken picture": (
        "file,caption\na.png,x\n\nbroken.png,y\n",
        r"captions\.csv:4: .*broken\.png is not an image",
    ),
    "after blank and long rows": (
        '\nfile,caption\n\n\na.png,"x\ny"\n\na.png,\n',
        r"captions\.csv:8: the caption is empty",
    ),
    "quotes without an end": (
        'file,caption\na.png,x\na.png,"y\n',
        r"captions\.csv:3: the row that begins here",
    ),
    "an empty caption": (
        "file,caption\na.png,\n",
        r"captions\.csv:2: the caption is empty",
    ),
    "a comma": ("file,caption\na.png,x,y\n", r"captions\.csv:2: expected 2 columns"),
    "one column": ("file,caption\na.png\n", r"captions\.csv:2: expected 2 columns"),
    "other columns": (
        "name,text\na.png,x\n",
        r"captions\.csv:1: expected the columns file,caption, but got name,text",
    ),
    "another part": (
        "file,caption,split\na.png,x,trian\n",
        r"captions\.csv:2: 'trian' is not the name of a part",
    ),
    "no rows": ("file,caption\n", "has no rows"),
    "too few": ("file,caption\na.png,x\n", "part has no pictures"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_line_is_named(tmp_path, name):
    table, message = MISTAKES[name]
    path = folder(tmp_path / "own", [("a.png", "")], table)
    (tmp_path / "own/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match=message):
        read_captioned(path, 32)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(
        InputError,
        match=r"is not a folder; --data must be a folder with PNG files",
    ):
        read_captioned(str(tmp_path / "none"), 32)
    with pytest.raises(InputError, match=r"has no captions\.csv"):
        read_captioned(str(tmp_path), 32)
    with pytest.raises(InputError, match="--size must be a multiple of 8"):
        captioning.Options(size=20)


# --- runs
# --------------------------------------------------------------------------------------

ROWS = [
    (f"{i}.png", ("red square", "blue circle", "a b c d")[i % 3]) for i in range(40)
]
SMALL = {"hidden": 8, "embed": 4, "channels": 2, "batch": 8, "beam": 2, "size": 16}


def test_killed_and_resumed_it_ends_with_identical_metrics(tmp_path, optax_promotion):
    """Dropout and augmentation draw by key."""
    options = captioning.Options(
        data=folder(tmp_path / "own", ROWS), attention="dot", **SMALL
    )
    alone, resumed = killed_and_resumed(captioning, options, tmp_path, kill=7, steps=12)
    assert alone == resumed


def test_a_users_folder(tmp_path, optax_promotion, capsys):
    data, run = folder(tmp_path / "own", ROWS), str(tmp_path / "run")
    words = ["--steps", "4", "--report-every", "2", "--evaluate-every", "4"]
    small = [
        word for name, value in SMALL.items() for word in (f"--{name}", str(value))
    ]
    assert (
        main(["train", "captioning", "--data", data, *words, *small, "--out", run]) == 0
    )
    assert "split by a hash of the file's name" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["nearest_neighbor_exact_match"] <= 1
    assert 0 < result["nearest_neighbor_word_f1"] <= 1
    assert {"captions.png", "curves.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert main(["predict", run, f"{data}/0.png", f"{data}/1.png"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["predict", run, f"{data}/none.png"]) == 2
    assert "there is no image" in capsys.readouterr().err
    other = folder(
        tmp_path / "other",
        [("a.png", "red 눈사람"), ("long.png", "red " * 2000), ("one.png", "red")],
    )
    assert main(["evaluate", run, "--data", other]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["pictures"], scores["unknown_words"]) == (3, 1)
    assert main(["train", "captioning", "--out", run, "--resume"]) == 0


def test_quick_beats_any_one_caption(tmp_path, optax_promotion):
    """On the slice with names of 4 words: whatever it is, the same caption for all
    has 1 of 296 right, and a lower F1.
    """
    run = tmp_path / "run"
    assert main(["train", "captioning", "--quick", "--out", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    glyphs = images.glyphs("DejaVuSerif", 32, 4)
    wanted = [row.caption for row in glyphs]
    assert result["exact_match"] >= 3 / len(wanted)
    assert (
        result["word_f1"]
        > max(word_f1([caption] * len(wanted), wanted) for caption in wanted) + 0.03
    )
    trained, _ = load(run)
    some = [row.picture for row in glyphs[:3]]
    assert trained.write(some) == [trained.write([picture])[0] for picture in some]
