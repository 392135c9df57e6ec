"""Files made to harm: refused with a message of one line, and nothing is executed, read or written outside."""

import io
import json
import pickle
import resource
import shutil
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml

from mbt_core.evaluate import memory
from mbt_core.io import remote
from mbt_core.media.shards import BLOCK, INDEX
from mbt_core.training.state import load_state, read_progress, save_state
from range_server import serving
from small import clips_of, mbt, tiny_sets

HEADER = "id,path,label,split\n"


@pytest.fixture
def trap(tmp_path):
    """An object that leaves a trace where it is unpickled."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    yield Trap()
    assert not (tmp_path / "sprung").exists()


def said(done, code, *parts):
    """The command failed with one line that has these parts."""
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.splitlines()
    for part in ("Error: ", *parts):
        assert part in line, line


def train(*arguments):
    sets = [x for s in tiny_sets("rgb") for x in ("--set", s)]
    return mbt("train", "-m", "rgb", "--out", "out", "-q", *sets, *arguments)


@pytest.fixture
def manifest(demo, tmp_path):
    """A manifest in a folder of its own, with the demo's clips in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ""
    for number, clip in enumerate(clips_of(demo)):
        shutil.copy(clip, folder / f"{number}.mp4")
        rows += f"c{number},{number}.mp4,{'ab'[number % 2]},\n"
    (folder / "m.csv").write_text(HEADER + rows)
    return folder / "m.csv"


# pickles


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.bin", "w.npz", "checkpoint_1"])
@pytest.mark.parametrize("how", ["pickle", "torch", "in a dictionary"])
def test_a_pickle_as_weights_to_start_from(manifest, tmp_path, trap, name, how):
    path = tmp_path / name
    match how:
        case "pickle":
            path.write_bytes(pickle.dumps(trap))
        case "torch":
            torch.save({"cls_token": torch.zeros(1, 1, 32), "trap": trap}, path)
        case _:
            torch.save({"cls_token": trap}, path, _use_new_zipfile_serialization=False)
    done = train("--data", manifest, "--set", f"model.pretrained={path}")
    said(done, 1, str(path))
    assert not Path("out").exists()


def test_a_pickle_in_place_of_a_run_s_files(run, demo, tmp_path, trap):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    for name in ("model.safetensors", "config.json", "config.yaml"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(pickle.dumps(trap))
        said(mbt("predict", copy, clips_of(demo)[0]), 2 if name.endswith("yaml") else 1, f"{copy}/{name}: ")
        (copy / name).write_bytes(content)
    (copy / "state" / "state.safetensors").write_bytes(pickle.dumps(trap))
    said(mbt("train", "--resume", copy, "-q"), 1, "not a saved state, or a damaged one")


def test_a_pickle_to_convert(tmp_path, trap):
    (tmp_path / "checkpoint_1").write_bytes(pickle.dumps(trap))
    said(mbt("convert", "scenic", tmp_path / "checkpoint_1", "--out", "out"), 1, "a Python pickle, where")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [touch sprung]", "!!python/name:os.system ''", "!ruby/object x"]
)
def test_tags_in_yaml(run, tmp_path, tag):
    (tmp_path / "r.yaml").write_text(f"modalities: {{rgb: {{}}}}\ntrain: {{steps: {tag}}}\n")
    said(mbt("train", "--recipe", "r.yaml"), 2, "r.yaml: not valid YAML: could not determine a constructor for the tag")
    said(mbt("train", "--data", tmp_path, "-m", "rgb", "--set", f"train.steps={tag}"), 2, "is not a YAML value")
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / "config.yaml").write_text(f"modalities: {tag}\n")
    said(mbt("eval", copy), 2, f"{copy}/config.yaml: not valid YAML")
    assert not (tmp_path / "sprung").exists()


# paths


@pytest.mark.parametrize(
    "cell", ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4", "..", "link.mp4", "folder/secret.mp4"]
)
def test_paths_out_of_the_root(manifest, cell):
    """Refused if `data.confine` says so; else a manifest is the user's own, and may point anywhere."""
    folder = manifest.parent
    shutil.copy(folder / "0.mp4", folder.parent / "secret.mp4")
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "folder").symlink_to(folder.parent)
    (folder / "a").mkdir()
    manifest.write_text(manifest.read_text() + f"z,{cell},a,\n")
    done = train("--data", manifest, "--set", "data.confine=true")
    said(done, 1, "leaves the root", "data.confine forbids")


def write_shards(folder, members):
    """A folder of one shard with one row, of (TarInfo, content) as they are, whatever they are."""
    folder.mkdir()
    records = []
    with tarfile.open(folder / "shard-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, content in members:
            place = (tar.offset + BLOCK, len(content), 0.0, zlib.crc32(content))
            records.append((b"000000000", entry.name.encode(), *place))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    np.save(folder / "shard-000000.index.npy", np.array(records, INDEX))
    cell = "shard-000000.tar/000000000/path"
    table = pa.table({"id": ["a"], "path": [cell], "label": ["x"], "split": ["test"]})
    pa.parquet.write_table(table.replace_schema_metadata({"report": "{}"}), folder / "shard-000000.parquet")
    packing = {"rows": 1, "digest": "", "reads": {"rgb": "frames"}, "fps": 25.0, "short_side": 32, "quality": 85,
               "window": 8.0, "shard_size": 1, "version": 2}  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(packing))
    return folder


def member(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


FACTS = json.dumps({"sources": {"path": {"stop": 1.0, "duration": 1.0, "ends": {"frames": 1.0}}}}).encode()


@pytest.mark.parametrize("entry", [
    member("../000000000.json"), member("/tmp/000000000.json"),
    member("000000000.json", tarfile.SYMTYPE, "/etc/passwd"),
    member("000000000.json", tarfile.LNKTYPE, "../../secret"), member("000000000.json", tarfile.CHRTYPE),
    member("000000000.json", tarfile.FIFOTYPE), member("000000000.json", tarfile.DIRTYPE),
], ids=["../", "absolute", "symbolic link", "hard link", "device", "fifo", "folder"])  # fmt: skip
def test_members_of_a_shard_that_are_no_files_inside(run, tmp_path, entry):
    shards = write_shards(tmp_path / "shards", [(entry, FACTS)])
    before = sorted(tmp_path.rglob("*"))
    done = mbt("predict", run.path, shards / "shard-000000.tar" / "000000000" / "path", "--json")
    assert done.code == 1
    (answer,) = json.loads(done.out)
    assert list(answer) == ["file", "error"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("cell", ["../other.tar/000000000/path", "/etc/passwd", "../secret.mp4"])
def test_cells_of_shards_that_leave_them(run, tmp_path, cell):
    shards = write_shards(tmp_path / "shards", [(member("000000000.json"), FACTS)])
    table = pa.table({"id": ["a"], "path": [cell], "label.kind": ["disc+tone"], "label.sum": ["0"], "split": ["test"]})
    pa.parquet.write_table(table.replace_schema_metadata({"report": "{}"}), shards / "shard-000000.parquet")
    said(mbt("eval", run.path, "--data", shards), 1, "leaves the root", "data.confine forbids")


def test_a_link_in_place_of_a_shard(run, tmp_path):
    shards = write_shards(tmp_path / "shards", [(member("000000000.json"), FACTS)])
    (tmp_path / "real.tar").write_bytes((shards / "shard-000000.tar").read_bytes())
    (shards / "shard-000000.tar").unlink()
    (shards / "shard-000000.tar").symlink_to(tmp_path / "real.tar")
    done = mbt("predict", run.path, shards / "shard-000000.tar" / "000000000" / "path")
    assert done.code == 1
    assert "cannot open the shard" in done.err.splitlines()[0]


# sizes


def npy(shape, dtype="<f4", content=b""):
    """A .npy file whose header says what it likes."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def npz(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def bomb():
    """An .npz of 3 MB that unpacks to 3 GB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("array.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy((2, 1 << 20)))
        file.write(bytes(8 << 20))
    data = bytearray(buffer.getvalue())
    size = data.rindex(b"PK\x01\x02") + 24  # in the directory; that it is not true shows at the end only
    data[size : size + 4] = struct.pack("<I", 3_000_000_000)
    return bytes(data)


ARRAYS = {
    "objects.npy": (npy((1, 2), "|O", pickle.dumps([1, 2])), "allow_pickle=False"),
    "objects.npz": (npz(array=npy((1, 2), "|O", pickle.dumps([1, 2]))), "allow_pickle=False"),
    "giant.npy": (npy((1 << 40, 1 << 20)), ""),
    "giant.npz": (npz(array=npy((1 << 20, 1 << 20))), ""),
    "negative.npy": (npy((-1, 5), content=bytes(20)), ""),
    "wide.npy": (npy((2, 2), "<U4", bytes(64)), "expected numbers"),
    "code.npy": (npy("__import__('os').system('touch sprung')"), ""),
    "bomb.npz": (bomb(), "3,000,000,000 bytes are too large"),
    "slip.npz": (npz(**{"../../evil": npy((1, 2), content=bytes(8)), "b": b"x"}), "expected one array"),
    "pickle.npy": (pickle.dumps([1]), ""),
    "nul.csv": (b"a,b\n1,\0\n", ""),
    "huge.csv": (b'a,b\n1,"' + b"x" * 30_000_000, ""),
    "bad.parquet": (b"PAR1" + bytes(100) + b"PAR1", ""),
}


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """A tiny run that reads arrays."""
    folder = tmp_path_factory.mktemp("signals")
    rng = np.random.default_rng(0)
    for i in range(12):
        np.save(folder / f"{i}.npy", rng.normal(size=(2, 64)).astype(np.float32) + i % 2)
    (folder / "m.csv").write_text(HEADER + "".join(f"c{i},{i}.npy,{'ab'[i % 2]},\n" for i in range(12)))
    sets = [s for s in tiny_sets("rgb") if not s.startswith("modalities.")]
    sets += ["modalities.signal.rate=32", "modalities.signal.seconds=2"]
    done = mbt("train", "--data", folder / "m.csv", "-m", "signal", "--out", folder / "run", "-q",
               *(x for s in sets for x in ("--set", s)))  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run"


def test_arrays_that_claim_too_much(signals, tmp_path):
    for name, (content, _) in ARRAYS.items():
        (tmp_path / "arrays" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "arrays" / name).write_bytes(content)
    done = mbt("predict", signals, "arrays")
    assert (done.code, done.out) == (1, "")
    lines = {Path(line.partition(": ")[0]).name: line for line in done.err.splitlines()[:-1]}
    assert lines.keys() == ARRAYS.keys()
    for name, (_, part) in ARRAYS.items():
        assert part in lines[name], lines[name]
    assert not (tmp_path / "sprung").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays"]


@pytest.mark.parametrize(("rows", "parts"), [
    ("a,x\0y.mp4,a,\n", ["row 1 contains a NUL byte"]),
    (f"a,{'x' * 20_000_000},a,\n", ["there is no such file"]),
    ('a,"x.mp4,a,\n', []),
], ids=["NUL", "20 MB", "an open quote"])  # fmt: skip
def test_cells_of_a_manifest(manifest, rows, parts):
    manifest.write_text(HEADER + rows)
    done = train("--data", manifest)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"Error: {manifest}")
    assert all(part in done.err for part in parts)
    assert len(done.err) < 3000


def test_a_header_of_enormous_fields(manifest):
    manifest.write_text("id,path," + "x" * 1_000_000 + "\na,b,c\n")
    said(train("--data", manifest), 1, "malformed header: field larger than field limit")


@pytest.fixture
def theirs(run, tmp_path, monkeypatch):
    """A function that gives a copy of a run whose data are somewhere else, as if it had been downloaded."""
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_asked", set())
    monkeypatch.setattr(remote, "PAUSES", ())

    def make(data, name="theirs"):
        folder = shutil.copytree(run.path, tmp_path / name)
        config = folder / "config.yaml"
        lines = [f"  path: {data}\n" if ln.startswith("  path: ") else ln for ln in config.read_text().splitlines(True)]
        config.write_text("".join(lines))
        assert f"path: {data}" in config.read_text()
        table = pa.parquet.read_table(folder / "predictions.parquet")
        about = table.schema.metadata | {b"about": json.dumps({"data": str(data)}).encode()}
        (folder / "eval-other").mkdir()
        pa.parquet.write_table(table.replace_schema_metadata(about), folder / "eval-other" / "predictions.parquet")
        return folder

    return make


@pytest.mark.parametrize("how", ["url", *(pytest.param(how, marks=pytest.mark.slow) for how in ("copy", "share"))])
def test_a_downloaded_run_chooses_no_host(theirs, tmp_path, how):
    """Neither by a URL, nor by the path of its copy, which tells it as well."""
    with serving(tmp_path) as served:
        url = f"{served.url}/shards"
        place = {"url": url, "copy": tmp_path / "cache/remote" / url.replace("://", "/"), "share": "//host/shards"}[how]
        named = "//host/shards" if how == "share" else url
        folder = theirs(place)
        refusal = f"{named} is on another machine, and nothing was trained on it here: it is only read if you name it"
        for command in (
            ["eval", folder],
            ["embed", folder, "--out", tmp_path / "e.parquet"],
            ["train", "--recipe", folder / "config.yaml", "--out", tmp_path / "new"],
            ["compare", "--recipe", folder / "config.yaml", "--over", "train.lr=0.1,0.2", "--out", tmp_path / "sweep"],
        ):
            said(mbt(*command), 2, refusal, f"--data {named}")
        for report in (folder, folder / "eval-other"):
            assert mbt("report", report).code == 0
            why = "is on another machine" if how == "url" or report == folder else "no such file"
            assert why in (report / "report.html").read_text()
        shutil.rmtree(folder / "state")
        said(mbt("train", "--resume", folder, "-q"), 2, refusal)
        assert mbt("bench", "--recipe", folder / "config.yaml", "--no-time").code == 0  # which reads no data
        assert mbt("predict", folder, tmp_path / "nothing.mp4").code == 1
        assert served.asked == []
        if how == "url":
            assert mbt("eval", folder, "--data", url).code == 1
            assert served.asked  # there are no shards, but now it looks


HUGE = [
    ("modalities.audio.seconds", 1e7, "modalities.audio.seconds: input should be less than or equal to 86400"),
    ("modalities.audio.seconds", 80_000, "modalities.audio: seconds, rate and mel_bins make samples of"),
    ("modalities.audio.rate", 10**12, "modalities.audio.rate: input should be less than or equal to"),
    ("modalities.audio.mel_bins", 10**9, "modalities.audio.mel_bins: input should be less than or equal to 4096"),
    ("modalities.audio.channels", 10**9, "modalities.audio.channels: input should be less than or equal to 1024"),
    ("modalities.rgb.frames", 10**9, "modalities.rgb.frames: input should be less than or equal to"),
    ("modalities.rgb.frames", 10**6, "modalities.rgb: frames and size (or short_side, scale_jitter) make samples of"),
    ("modalities.rgb.size", 10**6, "modalities.rgb.size: input should be less than or equal to 8192"),
    ("modalities.rgb.short_side", 10**6, "modalities.rgb.short_side: input should be less than or equal to 8192"),
    ("backbone.depth", 10**6, "backbone.depth: input should be less than or equal to 256"),
    ("backbone.dim", 10**5, "backbone.dim: input should be less than or equal to 16384"),
    ("backbone.heads", 10**5, "backbone.heads: input should be less than or equal to 1024"),
    ("backbone.mlp", 10**9, "backbone.mlp: input should be less than or equal to 131072"),
    ("backbone.registers", 10**9, "backbone.registers: input should be less than or equal to 4096"),
    ("fusion.bottlenecks", 10**9, "fusion.bottlenecks: input should be less than or equal to 4096"),
    ("head.tasks.sum", 10**12, "model.head.tasks.sum: expected at most 10,000,000 classes"),
]
MISFITS = [
    ("backbone.depth", 40), ("backbone.dim", 16_384), ("backbone.mlp", 131_072), ("backbone.registers", 4096),
    ("fusion.bottlenecks", 4096), ("head.tasks.sum", 10_000_000), ("modalities.audio.seconds", 2000),
    ("modalities.audio.mel_bins", 4096), ("modalities.rgb.patch", 8),
]  # fmt: skip


def changed(tree, where, value):
    *keys, last = where.split(".")
    for key in keys:
        tree = tree[key]
    tree[last] = value


def peak():
    """MB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(("where", "value", "message"), HUGE)
def test_a_configuration_asks_for_no_more_than_anybody_needs(run, demo, tmp_path, where, value, message):
    """In the model's, and in the run's."""
    before = peak()
    for name in ("config.json", "config.yaml"):
        folder = shutil.copytree(run.path, tmp_path / name)
        load, dump = (json.loads, json.dumps) if name == "config.json" else (yaml.safe_load, yaml.safe_dump)
        tree = load((folder / name).read_text())
        model = where if where.startswith("modalities") and name == "config.yaml" else f"model.{where}"
        changed(tree, model, value)
        (folder / name).write_text(dump(tree))
        done = mbt("predict", folder, clips_of(demo)[0])
        assert done.code in (1, 2)
        assert message in done.err
    assert peak() - before < 200


@pytest.mark.parametrize(("where", "value"), MISFITS)
def test_sizes_are_compared_with_the_weights_before_memory_is_taken(run, demo, tmp_path, where, value):
    folder, before = shutil.copytree(run.path, tmp_path / "theirs"), peak()
    tree = json.loads((folder / "config.json").read_text())
    changed(tree["model"], where, value)
    (folder / "config.json").write_text(json.dumps(tree))
    said(mbt("predict", folder, clips_of(demo)[0]), 1, "model.safetensors does not fit this model: ")
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    changed(tree if where.startswith("modalities") else tree["model"], where, value)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    progress = read_progress(folder / "state")
    weights, optimizer, _ = load_state(folder / "state")
    save_state(folder / "state", weights, optimizer, replace(progress, finished=False, plan={}))
    if not where.startswith("head"):  # its classes are compared with the data already
        said(mbt("train", "--resume", folder, "-q"), 1, "state.safetensors does not fit this model: ")
    assert peak() - before < 300


@pytest.mark.slow
def test_views_are_bounded(run, demo, tmp_path, monkeypatch):
    folder = shutil.copytree(run.path, tmp_path / "theirs")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("  views: 1\n", f"  views: {10**9}\n"))
    said(mbt("eval", folder), 2, "evaluate.views: input should be less than or equal to 1000, got 1000000000")
    (folder / "config.yaml").write_text(config.replace("  views: 1\n", "  views: 1000\n"))
    each = memory.view_bytes(run.model)
    monkeypatch.setattr(memory, "LIMIT", 4 * each)
    refusal = "evaluate.views: 1000 views of a clip would take"
    said(mbt("predict", folder, clips_of(demo)[0]), 2, refusal)
    said(mbt("eval", folder), 2, refusal)
    said(mbt("embed", folder, "--out", tmp_path / "e.npy"), 2, refusal)
    assert [memory.rows_at_once(run.model, 64, views) for views in (1, 2, 3, 4)] == [4, 2, 1, 1]
    assert mbt("eval", folder, "--views", 2).code == 0
