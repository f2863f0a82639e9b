"""Many sequences in few arrays, and files that are read line by line, beside the lists
and whole texts that they stand for.
"""

import csv
import functools
import hashlib
import io
import json
import tracemalloc

import numpy as np
import pytest

from jaxrnn.tasks import supervised
from jaxrnn.tasks.data import characters, tables, text, text_lines
from jaxrnn.tasks.data.bucketing import Rows, padded
from jaxrnn.tasks.data.encoded import EncodedSentences, Ragged
from jaxrnn.tasks.data.packed import Packed, joined, take
from jaxrnn.tasks.data.splits import Split, by_name, split_by, spread, with_validation
from jaxrnn.tasks.data.vocabulary import WordVocabulary, pad
from jaxrnn.training import InputError

WORDS = ["Good", "good", "bad", "\u00e7ok", "a" * 40, "...", "\u65e5\u672c"]


def sentences(seed, count=30):
    rng = np.random.default_rng(seed)
    return [list(rng.choice(WORDS, rng.integers(0, 9))) for _ in range(count)]


@pytest.mark.parametrize("least", [1, 4, 10**6])
def test_sentences_in_few_arrays_are_those_of_the_vocabulary(least):
    given = sentences(0)
    found = EncodedSentences(iter(given), least=least)
    vocabulary = WordVocabulary.of(given, least)
    assert found.vocabulary == vocabulary
    other = EncodedSentences(iter(sentences(1)), vocabulary)
    for encoded, plain in ((found, given), (other, sentences(1))):
        expected = [vocabulary.encode(sentence) for sentence in plain]
        assert len(encoded) == len(expected)
        assert encoded.lengths.tolist() == [len(words) for words in plain]
        for one, two in zip(encoded, expected, strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])
        rows = np.array([3, -1, 0, 17])
        batch = encoded.padded(rows, 16)
        wanted = pad([None if i < 0 else expected[i] for i in rows], 16)
        for one, two in zip(batch, wanted, strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)


def test_nothing_to_encode():
    vocabulary = WordVocabulary.of([["a"]], 1)
    assert len(EncodedSentences([], vocabulary)) == 0
    (one,) = EncodedSentences([[]], vocabulary)
    assert [part.shape for part in one] == [(0,), (0, 20)]


def test_ragged_sequences_are_a_list_of_arrays():
    rng = np.random.default_rng(2)
    given = [rng.integers(-5, 5, rng.integers(0, 7)).tolist() for _ in range(20)]
    ragged = Ragged(iter(given))
    assert [one.tolist() for one in ragged] == given
    assert [one.tolist() for one in ragged[3:15:4]] == given[3:15:4]
    assert ragged[-1].tolist() == given[-1]
    with pytest.raises(IndexError):
        ragged[20]
    rows = Rows(np.array([4, -1, 19]), 8)
    for one, two in zip(padded(ragged, rows, 9), padded(given, rows, 9), strict=True):
        np.testing.assert_array_equal(one, two)


def test_packed_rows_are_a_list_of_rows(tmp_path):
    rng = np.random.default_rng(3)
    rows = [
        tables.Example(
            " ".join(rng.choice(WORDS, 4)) + str(i), *map(str, rng.integers(0, 3, 2))
        )
        for i in range(40)
    ]
    packed = Packed(tables.Example, iter(rows))
    assert packed == rows
    assert packed != rows[1:]
    assert packed[-3] == rows[-3]
    assert isinstance(packed[0], tables.Example)
    assert packed[5:30:4] == rows[5:30:4]
    chosen = [7, 3, 39, 0]
    assert packed[3:].taken([4, 0, 36]) == take(rows, [7, 3, 39])
    assert take(packed, chosen) == take(rows, chosen)
    both = joined(packed[:5], packed[20:22])
    assert isinstance(both, Packed)
    assert both == joined(rows[:5], rows[20:22]) == [*rows[:5], *rows[20:22]]
    assert joined(packed[:2], rows[:1]) == [*rows[:2], rows[0]]
    texts = packed.made(lambda text, label, split: (label, text))
    assert texts[4] == (rows[4].label, rows[4].text)
    longer = Packed(lambda *fields: fields, iter(rows), long=2)
    assert longer == [tuple(row) for row in rows]
    with pytest.raises(IndexError):
        packed[40]
    # the same parts, whether examples are packed or not
    for split in (
        lambda examples: split_by(examples, lambda row: row.text),
        lambda examples: by_name(
            examples, (("", "test", "validation")[int(row.label)] for row in examples)
        ),
        lambda examples: with_validation(
            Split(examples, [], examples[:3]), lambda row: row.text
        ),
    ):
        for part, wanted in zip(split(packed), split(rows), strict=True):
            assert list(part) == list(wanted)
            assert len(part) == len(wanted)


def test_a_table_takes_little_more_memory_than_its_file(tmp_path):
    """Traced allocations; a list of examples took three times as much."""
    file = tmp_path / "a.csv"
    row = "some words of a text that is as long as a sentence often is,label\n"
    file.write_text("text,label\n" + row * 20_000)
    tables.read_table(str(file))
    tracemalloc.start()
    read = tables.read_table(str(file))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == 20_000
    assert held < 1.6 * file.stat().st_size
    assert peak < 2 * file.stat().st_size + 4e6


def test_a_digest_of_rows_is_that_of_the_whole():
    rows = [tables.Example('a \u00e7 "q"', "x"), tables.Example("b", "y", "test")]
    for split in (Split(rows, [], rows[1:]), Split([], [], [])):
        whole = json.dumps(split, ensure_ascii=False).encode()
        assert supervised.digest_of_parts(split) == supervised.digest(split)
        assert supervised.digest(split) == hashlib.sha256(whole).hexdigest()


def test_spread_examples():
    for count in range(12):
        for most in range(1, 14):
            found = list(spread(range(count), most))
            assert len(found) <= most
            assert found == sorted(set(found))
            assert len(found) == count or len(found) > most // 2


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("ends", ["\n", ""])
def test_lines_are_those_of_the_whole_text(tmp_path, monkeypatch, size, ends):
    file = tmp_path / "a.txt"
    for seed in range(6):
        raw = "".join(
            np.random.default_rng(seed).choice(list('ab\r\n\u00e9\u65e5"\u2028'), 200)
        )
        raw = raw + "x"
        file.write_bytes((characters.MARK if seed % 2 else b"") + raw.encode())
        whole = text.read_utf8(str(file), "a text")
        pieces = functools.partial(characters.pieces_of, size=size)
        monkeypatch.setattr(text_lines, "pieces_of", pieces)
        found = list(text_lines.utf8_lines(str(file), "a text", ends=ends))
        monkeypatch.undo()
        assert found == list(io.StringIO(whole, newline=ends))
        if ends == "\n":
            assert [line.removesuffix("\n") for line in found] == whole.split("\n")


def test_mistakes_in_lines_are_those_of_the_whole_text(tmp_path):
    file = tmp_path / "a.csv"
    for raw in (b"", b"a,b\n\xe9\xe9\n", b"ok\n" * 9 + b"\xff", b"PK\x03\x04\xff\xff"):
        file.write_bytes(raw)
        messages = []
        for read in (
            lambda: text.read_utf8(str(file), "a table"),
            lambda: list(text_lines.utf8_lines(str(file), "a table")),
        ):
            with pytest.raises(InputError) as caught:
                read()
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    for name in (str(tmp_path / "none"), str(tmp_path)):
        messages = []
        for read in (
            text.read_utf8,
            lambda *words: list(text_lines.utf8_lines(*words)),
        ):
            with pytest.raises(InputError) as caught:
                read(name, "a table", "pydoc")
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_rows_with_line_breaks_in_quotes(tmp_path):
    file = tmp_path / "a.csv"
    rows = [["text", "label"], ['one\ntwo, "three"', "x"], ["four\r\nfive", "y"]]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    found = tables.read_table(str(file))
    assert [tuple(row)[:2] for row in found] == [
        ('one\ntwo, "three"', "x"),
        ("four\nfive", "y"),
    ]
    assert found[0].split == ""


def test_equal_labels_and_words_are_one_object(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a text,some label\n" * 3)
    labels = {id(row.label) for row in tables.read_table(str(tmp_path / "a.csv"))}
    assert len(labels) == 1
    (tmp_path / "a.conll").write_text("word\tTAG\nword\tTAG\n\n" * 3)
    read = tables.read_tagged(str(tmp_path / "a.conll"))
    assert len({id(word) for sentence in read for word in sentence.words}) == 1
    assert len({id(tag) for sentence in read for tag in sentence.tags}) == 1
