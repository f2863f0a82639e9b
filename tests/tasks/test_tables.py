"""People's own files: what is read out of them, how they are split, and a line that
names the place of every mistake.
"""

import re

import pytest

from jaxrnn.tasks.data.packed import PackedSentences, joined, take
from jaxrnn.tasks.data.splits import Split, unseen_labels, with_validation
from jaxrnn.tasks.data.tables import (
    Example,
    Tagged,
    read_table,
    read_tagged,
    split_files,
)
from jaxrnn.training import InputError

ROWS = [
    Example("it is good", "good"),
    Example('he said "no",\nand left', "bad"),
    Example("정말 좋은 영화", "good"),
]
CSV = 'text,label\nit is good,good\n\n"he said ""no"",\nand left",bad\n정말 좋은 영화,good\n'  # noqa: E501

SEMICOLONS = re.sub(",(?=label|good|bad)", ";", CSV)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.csv", CSV.encode()),
        ("crlf.csv", CSV.replace("\n", "\r\n").encode()),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("no-last-newline.csv", CSV.rstrip("\n").encode()),
        (
            "tabs.tsv",
            'label\ttext\ngood\tit is good\nbad\t"he said ""no"",\nand left"\ngood\t정말 좋은 영화\n'.encode(),  # noqa: E501
        ),
        (
            "tabs.txt",
            'Label\tText\ngood\tit is good\nbad\t"he said ""no"",\nand left"\ngood\t정말 좋은 영화\n'.encode(),  # noqa: E501
        ),
        ("semicolons.csv", SEMICOLONS.encode()),
        (
            "quoted-semicolons.csv",
            SEMICOLONS.replace("text;label", '"text";"label"').encode(),
        ),
        (
            "more-columns.csv",
            'id,label,text\n1,good,it is good\n2,bad,"he said ""no"",\nand left"\n3,good,정말 좋은 영화'.encode(),  # noqa: E501
        ),
    ],
)
def test_tables(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    assert read_table(str(tmp_path / name)) == ROWS


MISTAKES = {
    "no column": (
        "text,lable\na,b\n",
        ":1: the first line must name the columns, but no column is called label in "
        "'text,lable': write text,label as the first line, or, if these are names, "
        "add --columns text,lable",
    ),
    "two columns": (
        "text,label,text\na,b,c\n",
        ":1: the first line must name the columns, but 2 columns are called text in",
    ),
    "too few": (
        'text,label\n"a\nb",x\n\nonly\n',
        ":5: expected 2 fields (text, label), but this row has 1",
    ),
    "too many": (
        "text,label\none, two,x\n",
        ":2: expected 2 fields (text, label), but this row has 3; a field that "
        "contains a comma",
    ),
    "open quote": (
        'text,label\na,x\n"b,y\nc,z\n',
        ":3: the row that begins here has a field that cannot be read",
    ),
    "text behind a quote": (
        'text,label\n"a" b,x\n',
        ":2: the row that begins here has a field that cannot be read",
    ),
    "latin-1": (
        "text,label\na,x\nr\xe9sum\xe9,y\n".encode("latin-1"),
        ":3: byte 16 (0xe9) is not UTF-8",
    ),
    "no rows": ("text,label\n\n", " has no examples"),
    "nothing": ("", " is empty; --data must be a CSV or TSV file"),
    "no text": ("text,label\n a,x\n ,y\n", ":3: the text is empty"),
    "no label": ("text,label\na,\n", ":2: the label is empty"),
    "no header": (
        "good film,pos\nbad film,neg\n",
        ":1: the first line must name the columns, but no column is called text in "
        "'good film,pos': write text,label as the first line",
    ),
    "one column": (
        "text\nabc\n",
        ":1: the first line must name the columns, but no column is called label in "
        "'text': write text,label as the first line",
    ),
    "JSON lines": (
        '{"text": "a", "label": "x"}\n',
        ":1: this line is JSON; --data must be a CSV or TSV file: pandas.read_json(",
    ),
    "UTF-16": (
        "text,label\na,x\n".encode("utf-16"),
        " is UTF-16, as Windows programs write it, and not UTF-8; convert the file: "
        "iconv -f utf-16 -t utf-8 ",
    ),
    "UTF-32": ("text,label\na,x\n".encode("utf-32"), " is UTF-32, as Windows"),
    "PNG": (b"\x89PNG\r\n\x1a\n\x00\x00", " is a PNG image, and not text"),
    "spreadsheet": (b"PK\x03\x04\xff\x00", " is a ZIP archive, as .xlsx and .docx"),
    "random bytes": (
        b"a\x00\xff\xfe",
        " is not text: it has a zero byte at",
    ),
    "semicolon in a field": (
        "text;label\na;b;x\n",
        ":2: expected 2 fields (text, label), but this row has 3; a field that "
        "contains a semicolon",
    ),
    "no split": (
        "text,label,split\na,x,train\nb,y,trian\n",
        ":3: the split 'trian' is none of train,",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_tables_name_their_line(tmp_path, name):
    body, message = MISTAKES[name]
    path = tmp_path / "a.csv"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(InputError) as caught:
        read_table(str(path))
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "imdb.csv"
    path.write_text(CSV.replace("text,label", "Review,Sentiment"))
    assert read_table(str(path), "review, sentiment") == ROWS
    with pytest.raises(InputError, match="no column is called title in 'Review,Sent"):
        read_table(str(path), "title,sentiment")
    for columns in ("review", "a,a", "a,b,c", "a,"):
        with pytest.raises(InputError, match="--columns takes the names of two"):
            read_table(str(path), columns)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(
        InputError,
        match=r"none.csv cannot be read: No such file or directory; --data must be",
    ):
        read_table(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="is a directory; --data must be a CoNLL"):
        read_tagged(str(tmp_path))


SENTENCES = [
    Tagged(("Ali", "eve", "geldi", "."), ("PROPN", "NOUN", "VERB", "PUNCT")),
    Tagged(("고양이", "#"), ("NOUN", "SYM")),
]
CONLL = "# a comment\nAli\tPROPN\neve\tNOUN\ngeldi\tVERB\n.\tPUNCT\n\n\n고양이\tNOUN\n#\tSYM\n"  # noqa: E501
CONLLU = (
    "# "
    "Ali\n1\tAli\t_\tPROPN{r}\n2-3\teve\t_\t_{r}\n2\teve\t_\tNOUN{r}\n2.1\tx\t_\tX{r}\n3\tgeldi\t_\tVERB{r}\n"
    "4\t.\t_\tPUNCT{r}\n\n1\t고양이\t_\tNOUN{r}\n2\t#\t_\tSYM{r}\n\n"
).replace("{r}", "\t_" * 6)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.conll", CONLL),
        ("a.tsv", CONLL),
        ("a.conllu", CONLLU),
        ("b.conllu", CONLLU.rstrip()),
    ],
)
def test_tagged_sentences(tmp_path, name, body, end):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + body.replace("\n", end).encode())
    assert read_tagged(str(tmp_path / name)) == SENTENCES


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "a.conll",
            "a\tX\nb X\n",
            ":2: expected a word and its tag with a tab between (FORM<TAB>TAG), but "
            "this line has 1",
        ),
        ("a.conll", "a\tX\n\nb\tX\tY\n", ":3: expected a word and its tag"),
        ("a.conll", "a\tX\nb\t \n", ":2: the tag is empty"),
        ("a.conll", "\tX\n", ":1: the word is empty"),
        ("a.conll", "# nothing\n\n", " has no examples; --data must be a CoNLL file"),
        (
            "a.conllu",
            "# c\n1\ta\t_\tX\n",
            ":2: expected the 10 columns of CoNLL-U with tabs between, but this line "
            "has 4",
        ),
    ],
)
def test_mistakes_in_tagged_sentences_name_their_line(tmp_path, name, body, message):
    path = tmp_path / name
    path.write_text(body, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_tagged(str(path))
    assert str(caught.value).startswith(f"{path}{message}")


def table(path, rows):
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    return str(path)


def by_text(example):
    return example.text


def test_the_split_of_one_file_is_a_hash_and_said(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(200)]
    path = table(tmp_path / "a.csv", [("text", "label"), *rows, *rows])
    split, (note,) = split_files([path], read_table, by_text)
    assert [len(part) for part in split] == [
        int(word) for word in note.split() if word.isdigit()
    ]
    texts = [{example.text for example in part} for part in split]
    assert sum(map(len, texts)) == 200  # equal texts stay together
    assert 0.7 < len(split.train) / 400 < 0.9
    longer = table(
        tmp_path / "b.csv",
        [("text", "label"), *rows, *((f"more {i}", "a") for i in range(50))],
    )
    again, _ = split_files([longer], read_table, by_text)
    assert set(map(by_text, split.test)) <= set(map(by_text, again.test))


def test_a_second_file_or_a_column_names_the_held_out_part(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(100)]
    first, second = (
        table(tmp_path / "a.csv", [("text", "label"), *rows]),
        table(tmp_path / "b.csv", [("text", "label"), ("z", "a")]),
    )
    split, (note,) = split_files([first, second], read_table, by_text)
    assert split.test == [Example("z", "a")]
    assert len(split.train) + len(split.validation) == 100
    assert second in note
    named = [
        (*row, part)
        for row, part in zip(
            rows, ["train"] * 60 + ["dev"] * 30 + ["Test"] * 10, strict=True
        )
    ]
    column = table(tmp_path / "c.csv", [("text", "label", "split"), *named])
    split, (note,) = split_files([column], read_table, by_text)
    assert [len(part) for part in split] == [60, 30, 10]
    assert "10 rows whose column split says test" in note
    without = table(
        tmp_path / "d.csv", [("text", "label", "split"), *named[:60], *named[90:]]
    )
    split, _ = split_files([without], read_table, by_text)
    assert len(split.test) == 10
    assert len(split.train) + len(split.validation) == 60 > len(split.train)
    with pytest.raises(InputError, match="give one or the other"):
        split_files([column, second], read_table, by_text)
    with pytest.raises(
        InputError, match="leave none for the test part; give more, or name the parts"
    ):
        split_files(
            [table(tmp_path / "e.csv", [("text", "label", "split"), *named[:90]])],
            read_table,
            by_text,
        )
    with pytest.raises(
        InputError,
        match=r"its 1 examples leave none for the (train|validation|test) part",
    ):
        split_files([second], read_table, by_text)


def test_a_tenth_of_the_training_part_is_moved_to_validation():
    texts = [f"text {i}" for i in range(2_000)]
    split = with_validation(Split(texts, [], ["another"]), key=str)
    assert abs(len(split.validation) - 200) < 40
    assert sorted([*split.train, *split.validation]) == sorted(texts)
    assert split.test == ["another"]
    fewer = with_validation(Split(texts[:1_000], [], []), key=str)
    assert set(fewer.validation) == set(split.validation) & set(texts[:1_000])


def test_parts_of_packed_sentences_are_those_of_a_list():
    """Slices, rows in any order, and parts that are put together again."""
    words = ["Ünï", "日本", "e\u0301", "\U0001f600", "a" * 5_000]
    sentences = [
        [(words[(i + j) % 5], "NV"[j % 2]) for j in range(length)]
        for i, length in enumerate([1, 300, 2, 1, 3, 2])
    ]
    expected = [Tagged(*zip(*pairs, strict=True)) for pairs in sentences]
    packed = PackedSentences(Tagged, iter(sentences))
    assert list(packed) == expected
    assert packed[-1] == expected[-1]
    for part in (slice(2, 5), slice(None, None, -2), slice(0, 0)):
        assert list(packed[part]) == expected[part]
    mixed = take(packed, [4, 0, 4, 2])
    assert list(mixed) == [expected[i] for i in (4, 0, 4, 2)]
    assert list(mixed[1:]) == [expected[i] for i in (0, 4, 2)]
    both = joined(packed[:2], mixed)
    assert isinstance(both, PackedSentences)
    assert list(both) == [*expected[:2], *mixed]
    assert not PackedSentences(Tagged, [])


def test_tagged_sentences_of_a_file_are_split_as_those_of_a_list(tmp_path):
    lines = "".join(f"word{i % 7}\tN\nunit{i}\tV\n\n" for i in range(60))
    (tmp_path / "a.conll").write_text(lines, encoding="utf-8")
    read = read_tagged(str(tmp_path / "a.conll"))
    one, _ = split_files([str(tmp_path / "a.conll")], read_tagged, by_words)
    parts = [row for part in one for row in part]
    assert sorted(parts) == sorted(read)
    assert all(len(part) for part in one)


def by_words(sentence):
    return "\t".join(sentence.words)


def test_labels_that_training_never_shows_are_named():
    parts = [[Example("", label) for label in labels] for labels in ("ab", "ac", "db")]
    assert unseen_labels(Split(*parts), lambda example: [example.label]) == (
        "not in the training part, so never predicted: c, d",
    )
    assert (
        unseen_labels(
            Split(parts[0], parts[0], parts[0][:1]), lambda example: [example.label]
        )
        == ()
    )
