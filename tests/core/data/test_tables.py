"""The formats of a manifest, and files that are none."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mbt_core.config import DataConfig
from mbt_core.data.manifest import Manifest
from mbt_core.data.tables import read_table
from mbt_core.errors import DataError

READS = {"p": "frames", "w": "text"}
ROWS = [
    {"id": "001", "path": "x/1.mp4", "w": "say, hello\nthere", "start": "0.5", "end": "2", "label": "dog", "split": ""},
    {"id": "002", "path": "", "w": "", "start": "", "end": "", "label": "dog", "split": "test"},
    {"id": "2020-01-01", "path": "x/3.mp4", "w": "ü", "start": "1", "end": "", "label": "a, b", "split": "train"},
]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix in (".csv", ".tsv"):
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0])] + [mark.join('"' + v.replace('"', '""') + '"' for v in r.values()) for r in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        typed = [{k: float(v) if k in ("start", "end") else v for k, v in row.items() if v != ""} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in typed), encoding="utf-8")
    return path


def read(path: Path, **config: object) -> Manifest:
    return Manifest.read(path, READS, DataConfig(**config))


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.parquet", "m.jsonl"])
def test_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    manifest = read(write(tmp_path / name))
    first, second, third = (manifest.row(i) for i in range(3))
    assert (first.id, first.index, first.start, first.end) == ("001", 0, 0.5, 2.0)
    assert first.sources["p"].path == str(tmp_path / "x/1.mp4")
    assert first.sources["w"].text == "say, hello\nthere"
    assert first.labels == {"label": "dog"}
    assert second.sources == {"p": None, "w": None}
    assert (second.start, second.end) == (None, None)
    assert third.id == "2020-01-01"
    assert (third.start, third.end, third.labels["label"]) == (1.0, None, "a, b")
    assert {split: rows.tolist() for split, rows in manifest.splits.items()} == {"train": [0, 2], "test": [1]}


def test_bom_blank_lines_and_spaces_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfid, path,w,extra\r\n\r\na,1.mp4,x,7\r\n\r\nb,2.mp4,,8\r\n")
    manifest = read(path)
    assert [manifest.row(i).id for i in range(len(manifest))] == ["a", "b"]
    assert manifest.row(1).sources["p"].path == str(tmp_path / "2.mp4")


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "m.jsonl"])
def test_spaces_around_names_of_columns(tmp_path: Path, name: str) -> None:
    spaced = [{f" {key} ": value or "x" for key, value in row.items()} for row in ROWS]
    rows = [{key.strip(): value for key, value in row.items()} for row in spaced]
    table = pa.Table.from_pylist(spaced)
    path = tmp_path / name
    if name == "m.parquet":
        pq.write_table(table, path)
    elif name == "m.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in spaced), encoding="utf-8")
    else:
        pa.csv.write_csv(table, path)
    found, names = read_table(path, {"id", "w"}.__contains__)
    assert names == list(rows[0])
    assert found.to_pylist() == [{"id": row["id"], "w": row["w"]} for row in rows]


def test_parquet_with_typed_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([7, 8], pa.int64()),
            "path": pa.array(["a", None]).dictionary_encode(),
            "w": pa.nulls(2),
            "start": pa.array([1, None], pa.int32()),
            "label": pa.array([["x", "y"], ["x"]]),
            "embedding": pa.array([[0.5], [0.25]]),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = read(tmp_path / "m.parquet")
    row = manifest.row(0)
    assert (row.id, row.start, row.labels["label"]) == ("7", 1.0, "x;y")
    assert manifest.row(1).sources == {"p": None, "w": None}
    assert manifest.kinds == {"label": "multilabel"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, r"gone\.csv: there is no such file or folder; expected a manifest"),
        ("m.mp4", b"x", r"cannot be a \.mp4; expected a manifest \(\.csv"),
        ("m", b"x", "file without suffix"),
        ("m.csv", b"", "empty; expected a header"),
        ("m.csv", b"\n\n", "empty; expected a header"),
        ("m.csv", b"id,path,w\n", "no rows"),
        ("m.csv", b"id,path,w\na,b\n", r"malformed: .*Row #2: Expected 3 columns, got 2"),
        ("m.csv", b"id,path,w\na,b,c\nd,e,f,g\n", r"Row #3: Expected 3 columns, got 4"),
        ("m.csv", b'id,path,w\na,"b,c\n', "line 2: a quote is opened and not closed"),
        ("m.csv", b"id,id,path\na,b,c\n", "column 'id' is there twice"),
        ("m.csv", b"id,path,w\na,b\0c,d\n", "column 'path': row 1 contains a NUL byte"),
        ("m.csv", b"id,path,w\na,\xff\xfe,c\n", "not UTF-8 text; save it as UTF-8"),
        ("m.csv", "id,path,w\na,b,c\n".encode("utf-16"), "not UTF-8 text"),
        (
            "m.csv",
            b"name,file\na,b\n",
            r"nothing for modality 'p': expected a column 'p' .* or 'path' .*\. Columns found: 'name', 'file'",
        ),
        ("m.csv", b"paths,w\na,b\n", r"or 'path' \(files that modalities share\)\. Did you mean 'paths'\?"),
        ("m.csv", b"p,w\na,b\n", r"no column 'id', a name of its own for each row\. Columns found: 'p', 'w'"),
        ("m.csv", b"id;file\na;b\n", r"Columns found: 'id;file'; columns are parted by commas"),
        ("m.csv", b"ids,path,w\na,b,c\n", r"no column 'id', a name of its own for each row\. Did you mean 'ids'\?"),
        ("m.csv", b"ID,path,w\na,b,c\n", r"no column 'id', a name of its own for each row\. Did you mean 'ID'\?"),
        ("m.csv", b"path,w\na,b\na,c\n", "the id 'a' is in rows 1 and 2; .*; give a column 'id', as paths do not tell"),
        ("m.csv", b"path,w\na,b\n,c\n", "row 2 has no id and no path that would name it; give a column 'id', or"),
        ("m.csv", b"path,w,start\na,b,0\n,b,0\n,b,0\n", "row 2 has no id and no path that would name it"),
        ("m.csv", b"id,file,w\na,b,c\n", r"modality 'p': expected a column 'p' .*or 'path' .*found: 'id', 'file', 'w'"),
        ("m.csv", b"id,path,text\na,b,c\n", r"modality 'w': expected a column 'w' \(texts\) or 'w\.path' \(files\)"),
        ("m.csv", b"id,path,w\na,b,c\n,d,e\n", "row 2 has no id"),
        (
            "m.csv",
            b"id,path,w\na,b,c\nb,d,e\na,f,g\n",
            r"the id 'a' is in rows 1 and 3; ids must be unique \(1 are not",
        ),
        ("m.csv", b"id,path,w,start\na,b,c,soon\n", "column 'start': row 1: expected seconds, got 'soon'"),
        ("m.csv", b"id,path,w,start\na,b,c,-1\n", "column 'start': row 1: expected seconds >= 0, got -1"),
        ("m.csv", b"id,path,w,end\na,b,c,inf\n", "column 'end': row 1: expected seconds >= 0, got inf"),
        ("m.csv", b"id,path,w,start,end\na,b,c,5,2\n", "row 1 ends at 2 s, but starts at 5 s"),
        ("m.csv", b"id,path,w,end\na,b,c,0\n", "row 1 ends at 0 s, but starts at 0 s"),
        ("m.csv", b"id,path,w,label.Verb\na,b,c,d\n", r"column 'label\.Verb': the name 'Verb' is not of the form"),
        ("m.csv", b"id,path,w,label,label.label\na,b,c,d,e\n", r"columns 'label' and 'label\.label' are the same task"),
        ("m.parquet", b"PAR1 no", "malformed: "),
        ("m.parquet", b"", "malformed: "),
        ("m.jsonl", b"", "empty; expected one JSON object per line"),
        ("m.jsonl", b'{"id": "a"\n', "malformed: JSON parse error"),
        ("m.jsonl", b'{"id": "a"}\n[1]\n', "malformed: JSON parse error"),
        ("m.jsonl", b'{"id": "a", "path": {"b": 1}, "w": "c"}\n', "column 'path': expected text, got struct"),
        ("m.jsonl", b'{"id": "a", "path": "b\\u0000", "w": "c"}\n', "NUL byte"),
    ],
)
def test_hostile_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('id,path,w\n1,a,"dog\n2,b,cat\n', 2),  # up to the end
        ('id,path,w\n1,a,"dog\n2,b,cat', 2),
        ('id,path,w\n1,a,"dog\n', 2),
        ('id,path,w,note\n1,a,b,c\n2,"x\ny",b,"c\n3,a,b,c\n', 4),  # of a column that is not read
        ('id,path,w\n1,a,"dog\n2,b,c\n3,a,"cat"\n4,a,b\n', 2),  # up to the next quote
        ('id,path,w\n1,a,"dog\n2,b,c\n3,"a",b\n', 2),
        ('id,path,"w\n1,a,dog\n', 1),
        ('id,path,w\n1,a,"dog\n' + "2,b,cat\n" * (1 << 21), 2),  # beyond what is parsed at a time
    ],
)
def test_a_quote_that_is_not_closed(tmp_path: Path, content: str, line: int) -> None:
    for name, text in (("m.csv", content), ("m.tsv", content.replace(",", "\t"))):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name}: line {line}: a quote is opened and not closed; close it"):
            read(tmp_path / name)


def test_quotes_that_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('id,path,w\n\n1,a,6" wide\n2,a,"a ""b""\n\n""c"""\n3,"a",""\n4,a,"x" y\n', newline="\r\n")
    manifest = read(path)
    assert [manifest.row(i).id for i in range(len(manifest))] == ["1", "2", "3", "4"]
    assert manifest.row(0).sources["w"].text == '6" wide'
    assert manifest.row(1).sources["w"].text == 'a "b"\r\n\r\n"c"'


def folder_of(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def test_folder_per_class(tmp_path: Path) -> None:
    folder_of(
        tmp_path, "dog/b.mp4", "dog/a.mp4", "cat/a.mp4", "cat/.DS_Store", "readme.txt", ".git/x/y", "cat/Thumbs.db"
    )
    manifest = Manifest.read(tmp_path, {"p": "frames"}, DataConfig(test_fraction=0))
    assert [manifest.row(i).id for i in range(3)] == ["cat/a.mp4", "dog/a.mp4", "dog/b.mp4"]
    assert manifest.row(2).sources["p"].path == str(tmp_path / "dog/b.mp4")
    assert manifest.classes == {"label": ["cat", "dog"]}
    assert manifest.class_counts("label", "train").tolist() == [1, 2]


def test_folder_with_splits_and_classes_json(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/dog/1.mp4", "train/cat/1.mp4", "validation/dog/2.mp4", "test/cat/3.mp4")
    (tmp_path / "classes.json").write_text(json.dumps({"label": ["dog", "cat", "cow"]}))
    manifest = Manifest.read(tmp_path, {"p": "frames"}, DataConfig(test_fraction=0))
    assert {split: len(rows) for split, rows in manifest.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert manifest.classes["label"] == ["dog", "cat", "cow"]
    assert manifest.class_counts("label", "test").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no files in sub-folders; expected .*\[train\|val\|test/\]CLASS/file"),
        (("a.mp4",), "no files in sub-folders"),
        (("train/dog/1.mp4", "extra/dog/2.mp4"), "dog: a folder inside the folder of class 'extra'; expected"),
    ],
)
def test_folders_of_another_form(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Manifest.read(folder_of(tmp_path, *files), {"p": "frames"}, DataConfig())


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "m.jsonl"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Flipped, cut and inserted bytes: whatever comes, it is a manifest or a message."""
    whole = write(tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(content)))
            match rng.integers(3):
                case 0:
                    content[at] = int(rng.integers(256))
                case 1:
                    del content[at : at + int(rng.integers(1, 20))]
                case 2:
                    content[at:at] = rng.bytes(int(rng.integers(1, 5)))
        (tmp_path / name).write_bytes(content)
        try:
            manifest = read(tmp_path / name)
        except DataError as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
            refused += 1
        else:
            assert [manifest.row(i).index for i in range(len(manifest))] == list(range(len(manifest)))
    assert refused > 50
