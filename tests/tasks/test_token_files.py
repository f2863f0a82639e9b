"""Texts as token files: the same numbers as in memory, whole or not there at all, and
memory that does not grow with the text.
"""

import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxrnn.tasks import charlm, load, runner, train
from jaxrnn.tasks.data import character_texts, characters, text, token_files, tokens
from jaxrnn.tasks.data.character_texts import Texts
from jaxrnn.tasks.metrics import ngrams
from jaxrnn.training import InputError, Run
from jaxrnn.training.announced import Work

pytestmark = pytest.mark.usefixtures("optax_promotion")
ROOT = Path(__file__).parents[2]
SMALL = {"hidden": 8, "embed": 4, "batch": 4, "tbptt": 8, "devices": 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, in which every file of more than 100 bytes is mapped."""
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "LARGE", 100)
    return tmp_path / "cache" / "tokens"


def some_text(seed, length=400, alphabet="ab \n\r\u00e9\u65e5\U0001f600"):
    return "".join(np.random.default_rng(seed).choice(list(alphabet), length))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("mark", [b"", characters.MARK])
def test_pieces_of_any_size_give_the_characters_of_the_text(size, mark):
    for seed in range(4):
        raw = mark + some_text(seed).replace("\n", "\r\n").encode()
        alphabet = characters.Alphabet()
        read, parts = io.BytesIO(raw).read, []
        for _, piece in characters.pieces_of(read, size):
            piece.decode()  # no character is cut
            parts.append(alphabet.encode(piece))
        found = np.concatenate(parts)
        wanted = raw.decode("utf-8-sig").replace("\r\n", "\n")
        assert "".join(alphabet.characters[i] for i in found) == wanted
        assert alphabet.counts.tolist() == [
            wanted.count(character) for character in alphabet.characters
        ]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_mapped_text_is_the_text_in_memory(tmp_path, cache, held_out):
    words = [some_text(0, 3000), some_text(1, 500) + "zzz"]
    for name, part in zip("ab", words, strict=True):
        (tmp_path / name).write_text(part, encoding="utf-8", newline="")
    sources = [str(tmp_path / name) for name in ("ab" if held_out else "a")]
    texts = Texts.read(sources)
    assert texts.is_large
    whole = [text.read_text(source) for source in sources]
    cut = len(whole[0]) - int(0.05 * len(whole[0]))
    expected = whole if held_out else [whole[0][:cut], whole[0][cut:]]
    vocabulary = text.Vocabulary.of(expected[0])
    assert texts.vocabulary == vocabulary
    for found, one in zip((texts.train, texts.held_out), expected, strict=True):
        numbers = vocabulary.encode(one)
        assert len(found) == len(numbers)
        assert np.asarray(found).dtype == numbers.dtype
        np.testing.assert_array_equal(found, numbers)
        np.testing.assert_array_equal(found[5:9], numbers[5:9])
        rows = np.array([[0, 3], [7, 2]])
        np.testing.assert_array_equal(found[rows], numbers[rows])
        assert found.counts()[found.table == 0].sum() == (numbers == 0).sum()


def test_a_run_on_a_mapped_text_is_that_on_the_text_in_memory(
    tmp_path, cache, monkeypatch, capsys
):
    (tmp_path / "book.txt").write_text(some_text(2, 4000), encoding="utf-8")
    flags = {**SMALL, "data": (str(tmp_path / "book.txt"),)}
    budget = {"steps": 6, "report_every": 2, "evaluate_every": 2}
    train("charlm", flags, budget, out=tmp_path / "mapped")
    monkeypatch.setattr(text, "LARGE", 10**6)
    train("charlm", flags, budget, out=tmp_path / "memory")
    for name in ("metrics.jsonl", "config.json"):
        mapped, memory = (tmp_path / run / name for run in ("mapped", "memory"))
        assert mapped.read_bytes() == memory.read_bytes()
    # and the commands that read the text again
    scores = []
    for large in (100, 10**6):
        monkeypatch.setattr(text, "LARGE", large)
        model, _ = load(tmp_path / "mapped")
        scores.append(model.evaluate(str(tmp_path / "book.txt")))
        assert train("charlm", out=tmp_path / "mapped", resume=True)[1]
    assert scores[0] == scores[1]
    assert scores[0]["characters"] == len(text.read_text(flags["data"][0]))


def test_wider_numbers_when_more_characters_come(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 500)
    monkeypatch.setattr(characters, "PIECE", 700)
    few = "ab" * 900
    many = few + "".join(map(chr, range(0x4E00, 0x4E00 + 600))) + few
    most = many + "".join(map(chr, range(0x10000, 0x10000 + 66_000)))
    for name, one, size in (("few", few, 1), ("many", many, 2), ("most", most, 4)):
        (tmp_path / name).write_text(one, encoding="utf-8")
        coded = text.coded_text(str(tmp_path / name))
        assert coded.file is not None
        assert coded.file.parent == cache
        assert str(coded.file) in Texts.read([str(tmp_path / name)]).notes[-1]
        assert coded.codes.dtype.itemsize == size
        assert "".join(coded.characters[i] for i in coded.codes) == one
        in_memory = token_files.coded_bytes(one.encode(), name)
        assert in_memory.codes.dtype == coded.codes.dtype
        np.testing.assert_array_equal(in_memory.codes, coded.codes)


def test_the_file_is_made_once_and_again_where_it_is_not_whole(tmp_path, cache):
    book = tmp_path / "book.txt"
    book.write_text(some_text(3, 3000), encoding="utf-8")
    first = np.array(text.coded_text(str(book)).codes)
    (file,), (about,) = cache.glob("*.tokens"), cache.glob("*.json")
    made = file.stat().st_mtime_ns, file.stat().st_ino
    np.testing.assert_array_equal(text.coded_text(str(book)).codes, first)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == made
    # what a killed process may leave: a part, no JSON file, or half of one
    left = file.with_name(f"{file.name}.0.part")
    whole = about.read_text()
    known = json.loads(whole)
    without_characters = json.dumps({k: known[k] for k in known if k != "characters"})
    for damage in (
        lambda: (about.unlink(), left.write_bytes(b"half")),
        lambda: about.write_text(whole[: len(whole) // 2]),
        lambda: about.write_text("{}"),
        lambda: about.write_bytes(b"\xff"),
        lambda: about.write_text(without_characters),
        lambda: about.write_text(whole.replace('"counts": [', '"counts": [7, ')),
        lambda: file.write_bytes(file.read_bytes()[:-1]),
        file.unlink,
    ):
        damage()
        np.testing.assert_array_equal(text.coded_text(str(book)).codes, first)
        assert json.loads(about.read_text())["length"] == len(first)
        assert not left.exists()
    # another text is another file
    book.write_text(some_text(4, 3000), encoding="utf-8")
    assert not np.array_equal(text.coded_text(str(book)).codes, first)
    assert len(list(cache.glob("*.tokens"))) == 2


def test_what_is_wrong_is_one_line(tmp_path, cache, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_bytes(b"good\n" * 60 + b"b\xe4d\n" + b"good\n" * 60)
    mistake = rf"{book}:61: byte 301 \(0xe4\) is not UTF-8"
    with pytest.raises(InputError, match=mistake):
        text.coded_text(str(book))
    with pytest.raises(InputError, match=mistake):
        text.read_text(str(book))  # the words are the same
    assert not list(cache.glob("*.part"))
    assert not list(cache.glob("*.tokens"))
    book.write_bytes(b"\xff\xfe" + "good\n".encode("utf-16-le") * 60)
    with pytest.raises(InputError, match="is UTF-16, as Windows programs write it"):
        text.coded_text(str(book))
    book.write_text("good\n" * 60)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for nowhere in (tmp_path / "file", tmp_path / "link", "/proc/none"):
        monkeypatch.setenv("JAXRNN_CACHE", str(nowhere))
        wanted = rf"^{nowhere}.*cannot be written.*JAXRNN_CACHE=FOLDER"
        with pytest.raises(InputError, match=wanted):
            text.coded_text(str(book))
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        text.coded_text(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="is empty"):
        text.coded_text(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="is a directory"):
        text.coded_text(str(tmp_path))


@pytest.mark.parametrize("read", [text.read_text, text.coded_text])
def test_a_mark_at_the_beginning_moves_no_position(tmp_path, read):
    book = tmp_path / "book.txt"
    book.write_bytes(characters.MARK + b"abc\n\xff")
    with pytest.raises(InputError, match=rf"{book}:2: byte 7 \(0xff\) is not UTF-8"):
        read(str(book))


def test_a_damaged_digest_is_computed_again(tmp_path, cache):
    book = tmp_path / "book.txt"
    book.write_text(some_text(5, 3000), encoding="utf-8")
    texts = Texts.read((str(book),))
    wanted = texts.digest()
    (file,) = cache.glob("*.text")
    for damage in (b"", b"\xff"):
        file.write_bytes(damage)
        assert texts.digest() == wanted
        assert file.read_text() == wanted


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXRNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert token_files.cache_folder() == tmp_path / "jaxrnn"
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "mine"))
    assert token_files.cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("JAXRNN_CACHE", "~/mine")  # from a file that no shell reads
    assert token_files.cache_folder() == Path.home() / "mine"


def test_rare_characters_become_the_unknown_one(tmp_path, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text("ab" * 100 + "xyyx" + "z" + "ab" * 100)
    texts = Texts.read((str(book),), min_count=2)
    assert texts.vocabulary.characters == f"{text.UNKNOWN}abxy"
    assert texts.vocabulary.decode(texts.train[200:206]) == f"xyyx{text.UNKNOWN}a"
    assert texts.notes == (
        "unknown symbol: 1 of the 5 different characters, seen fewer than 2 times, 1 "
        "of all 385; --min-count 1 keeps them",
    )
    assert Texts.read((str(book),)).notes == ()
    assert len(Texts.read((str(book),)).vocabulary) == 6
    # of large texts some are rare unless told otherwise
    monkeypatch.setattr(character_texts, "LARGE", 300)
    assert Texts.read((str(book),)).vocabulary.characters == f"{text.UNKNOWN}ab"
    assert len(Texts.read((str(book),), min_count=1).vocabulary) == 6
    with pytest.raises(InputError, match=r"--min-count 500 leaves no character.* 19"):
        Texts.read((str(book),), min_count=500)
    book.write_text(text.UNKNOWN * 100, encoding="utf-8")
    with pytest.raises(InputError, match="no character but U\\+FFFD"):
        Texts.read((str(book),))


def test_evaluation_costs_what_is_asked_for_and_is_whole_at_the_end(
    tmp_path, monkeypatch
):
    scored = []
    original = charlm.bits_per_token

    def counting(functions, params, held_out, *, most=0, work=None):
        work = work or Work("scoring", None, "")
        value = original(functions, params, held_out, most=most, work=work)
        scored.append((most, work.done))
        return value

    monkeypatch.setattr(charlm, "bits_per_token", counting)
    rng = np.random.default_rng(0)
    (tmp_path / "a.txt").write_text("".join(rng.choice(list("abc "), 2000)))
    (tmp_path / "b.txt").write_text("".join(rng.choice(list("abc "), 40_001)))
    flags = {
        **SMALL,
        "data": (str(tmp_path / "a.txt"), str(tmp_path / "b.txt")),
        "evaluate_tokens": 6400,
    }
    budget = {"steps": 2, "report_every": 1, "evaluate_every": 1}
    run, result, _ = train("charlm", flags, budget, out=tmp_path / "run")
    assert scored == [(6400, 6400), (6400, 6400), (0, 40_000)]
    *_, capped, whole = (
        record.get("held_out_bits_per_char", record.get("bits_per_char"))
        for record in run.records("metrics.jsonl")
        if "held_out_bits_per_char" in record or "final" in record
    )
    assert whole == result["bits_per_char"] != capped
    assert capped == pytest.approx(whole, rel=0.02)


def test_a_cap_of_at_least_the_text_changes_nothing():
    functions, params = charlm.build(
        charlm.Options(hidden=6, embed=4), {"vocabulary": "abcd"}
    )
    numbers = np.random.default_rng(1).integers(0, 4, 300)
    scores = [
        charlm.bits_per_token(functions, params, numbers, most=most)
        for most in (0, 299, 1000)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_a_run_that_is_older_than_the_options_keeps_all_characters(tmp_path):
    """It had no cap, and no character was rare."""
    config = {"task": "charlm", "options": {"hidden": 8}}
    run = Run.create(tmp_path / "old", config)
    options = runner._stored(run, charlm.Options, "options")
    assert (options.min_count, options.evaluate_tokens) == (1, 0)
    config["options"] |= {"min_count": 0, "evaluate_tokens": 50}
    run = Run.create(tmp_path / "new", config)
    options = runner._stored(run, charlm.Options, "options")
    assert (options.min_count, options.evaluate_tokens) == (0, 50)


def plain_baselines(train, held_out, size):
    """The formulas of `ngram_baselines`, a dictionary at a time."""
    unigram = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
    pairs, before = {}, {}
    for a, b in zip(train[:-1].tolist(), train[1:].tolist(), strict=True):
        pairs[a, b] = pairs.get((a, b), 0) + 1
        before[a] = before.get(a, 0) + 1
    bits = [0.0, 0.0]
    for a, b in zip(held_out[:-1].tolist(), held_out[1:].tolist(), strict=True):
        bits[0] -= np.log2(unigram[b])
        bits[1] -= np.log2(
            (pairs.get((a, b), 0) + size * unigram[b]) / (before.get(a, 0) + size)
        )
    return np.array(bits) / (len(held_out) - 1)


@pytest.mark.parametrize(("few", "dense"), [(512, 4096), (0, 4096), (0, 0)])
def test_baselines_part_by_part_are_those_of_the_whole_text(monkeypatch, few, dense):
    monkeypatch.setattr(ngrams, "FEW", few)
    monkeypatch.setattr(ngrams, "DENSE", dense)
    monkeypatch.setattr(ngrams, "PART", 37)
    rng = np.random.default_rng(5)
    for size, length in ((3, 38), (7, 300), (40, 75)):
        text_, held_out = rng.integers(0, size, length), rng.integers(0, size, 90)
        found = ngrams.ngram_baselines(text_, held_out, size)
        np.testing.assert_allclose(
            list(found.values()), plain_baselines(text_, held_out, size), rtol=1e-12
        )
        codes = tokens.Tokens(text_.astype(np.uint8), np.arange(size, dtype=np.int32))
        assert ngrams.ngram_baselines(codes, held_out, size) == found


# --- memory and processes -------------------------------------------------------------


def test_memory_does_not_grow_with_the_text(tmp_path, cache):
    """Traced allocations of two sizes; the slow test below measures the process."""
    peaks = []
    for count in (2_000_000, 6_000_000):
        book = tmp_path / f"{count}.txt"
        piece = some_text(6, 10_000)
        book.write_text(piece * (count // 10_000), encoding="utf-8", newline="")
        tracemalloc.start()
        texts = Texts.read((str(book),))
        texts.digest()
        length = len(texts.train)
        peaks.append((tracemalloc.get_traced_memory()[1], length))
        tracemalloc.stop()
    (small, few), (large, many) = peaks
    assert (large - small) / (many - few) < 0.5


MEASURED = """
import re, sys, threading, time
from jaxrnn.tasks.data.character_texts import Texts

def anonymous():
    status = open("/proc/self/status").read()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) * 1024

peak, over = [anonymous()], threading.Event()

def sample():
    while not over.wait(0.005):
        peak[0] = max(peak[0], anonymous())

thread = threading.Thread(target=sample)
thread.start()
texts = Texts.read((sys.argv[1],))
texts.digest()
over.set()
thread.join()
print(peak[0], len(texts.train) + len(texts.held_out))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_anonymous_memory_grows_by_less_than_three_bytes_a_character(tmp_path):
    found = []
    for count in (30_000_000, 120_000_000):
        book = tmp_path / f"{count}.txt"
        piece = some_text(7, 100_000)
        book.write_text(piece * (count // 100_000), encoding="utf-8", newline="")
        printed = subprocess.run(
            [sys.executable, "-c", MEASURED, str(book)],
            env={**os.environ, "JAXRNN_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found.append([int(number) for number in printed.split()])
    (small, few), (large, many) = found
    assert (large - small) / (many - few) < 3
    assert large < 400e6


READ = """
import sys, time
from jaxrnn.tasks.data import text
text.LARGE = 100
print("reading", flush=True)
print(text.coded_text(sys.argv[1]).codes[-5:].tolist(), flush=True)
"""


def reading(book, folder):
    return subprocess.Popen(
        [sys.executable, "-c", READ, str(book)],
        env={**os.environ, "JAXRNN_CACHE": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_share_one_file_and_a_kill_leaves_nothing_broken(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(some_text(8, 1_000_000) * 20, encoding="utf-8", newline="")
    folder = tmp_path / "cache" / "tokens"
    for delay in (0.02, 0.1, 0.3):
        process = reading(book, tmp_path / "cache")
        process.stdout.readline()
        timer = threading.Timer(delay, process.kill)
        timer.start()
        process.wait()
        timer.join()
        process.stdout.close()
    both = [reading(book, tmp_path / "cache") for _ in range(2)]
    printed = [process.communicate()[0].splitlines()[-1] for process in both]
    wanted = token_files.coded_bytes(book.read_bytes(), "book").codes
    assert printed == [str(wanted[-5:].tolist())] * 2
    (file,) = folder.glob("*.tokens")
    np.testing.assert_array_equal(np.fromfile(file, wanted.dtype), wanted)
    assert not list(folder.glob("*.part"))
