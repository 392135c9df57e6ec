"""Atomic writing, and readers that say what is wrong with a file."""

import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import mbt_core as mbt
from mbt_core.errors import InUseError
from mbt_core.io.files import only_writer, read_json, read_safetensors, write_atomically

WRITER = """
import sys, time
from pathlib import Path
from mbt_core.io.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("writing", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_to_a_file_at_a_time(tmp_path):
    out = tmp_path / "new" / "answers.csv"
    other = subprocess.Popen([sys.executable, "-c", WRITER, out], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(InUseError, match=rf"--out {out}: another process is writing there"), only_writer(out):
            pass
        with only_writer(out, ".part-1-2"):  # another part of the same folder
            pass
        other.kill()
        other.wait()
        with only_writer(out):  # a killed process holds nothing
            pass
    finally:
        other.kill()
        other.communicate()
    assert os.listdir(tmp_path / "new") == []


def test_written_in_one_go(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_atomically(path, lambda p: p.write_text("one"))

    def write(temporary):
        temporary.write_text("two")
        assert path.read_text() == "one"
        assert temporary.parent == path.parent

    write_atomically(path, write)
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("own mistake"), KeyboardInterrupt()])
def test_what_goes_wrong_inside_goes_through(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt"):
        with pytest.raises(mbt.MBTError) as error:
            write_atomically(path, lambda p: p.write_text("x"))
        assert str(error.value).startswith(f"{path}: cannot be written: ")
        assert str(error.value).endswith(". What was saved before is untouched")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "save", [lambda p: p.write_bytes(bytes(9999)), lambda p: save_file({"w": torch.ones(9999)}, p)]
)
def test_disk_full(save, tmp_path):
    """A process that may write 1000 bytes only."""
    path = tmp_path / "a.bin"
    path.write_text("old")
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        message = ""
        try:
            write_atomically(path, save)
        except mbt.MBTError as error:
            message = str(error)
        os._exit(0 if message.startswith(f"{path}: cannot be written: ") and "File too large" in message else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "not valid JSON: Expecting value"),
        (b"{'a': 1}", "not valid JSON: Expecting property name"),
        (b"\xff\xfe", "not valid JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "not valid JSON: "),
    ],
)
def test_wrong_json(content, message, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(mbt.DataError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_wrong_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(mbt.DataError, match=r"a\.safetensors: cannot be read: .*No such file"):
        read_safetensors(path)
    save_file({"w": torch.zeros(30)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:-1], pickle.dumps({"w": sys.path})):
        path.write_bytes(content)
        with pytest.raises(mbt.DataError, match=r"a\.safetensors: no safetensors file, or a truncated one: "):
            read_safetensors(path)
    path.write_bytes(whole)
    assert read_safetensors(path)["w"].shape == (30,)
