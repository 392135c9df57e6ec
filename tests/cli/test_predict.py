"""`mbt predict` over folders: answers in a file as they come, and going on with them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from media_files import counting, sine, write_media
from PIL import Image

from mbt_core.errors import ConfigError
from mbt_core.evaluate import predict as predicting
from mbt_core.evaluate.answers import Answers
from mbt_core.evaluate.predict import FilePrediction, find_files
from mbt_core.run import load
from small import clips_of, mbt


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """Clips in a folder of folders, one of them damaged."""
    folder = tmp_path_factory.mktemp("clips")
    for number, clip in enumerate(clips_of(demo)):
        place = folder / ("deep/er" if number % 2 else ".") / f"clip {number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)
    (folder / "deep" / "bad.mp4").write_bytes(b"nothing")
    (folder / ".hidden.mp4").write_bytes(b"nothing")
    return folder


def answers_in(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return {row["file"]: row for row in csv.DictReader(file)}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({answer["file"] for answer in found}) == len(found)
    return {answer["file"]: answer for answer in found}


def test_files_are_found_in_the_order_of_their_paths(folder):
    found = [str(file) for file in find_files([folder, folder / "gone"])]
    expected = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    assert found == [*map(str, expected), str(folder / "gone")]


@pytest.fixture
def pictures(tmp_path):
    """A folder of stored fields, one of frames, and one of frames beside a note."""
    for name in ("field/u/0.png", "field/v/0.png", "frames/0.png", "frames/1.png", "mixed/0.png", "mixed/note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("reads", "fps", "clips"),
    [
        ({"frames"}, None, []),
        ({"frames"}, 25, ["field/u", "field/v", "frames"]),
        ({"array"}, None, ["field"]),
        ({"array", "frames"}, 25, ["field", "frames"]),
        ({"waveform"}, 25, []),
    ],
)
def test_a_folder_of_pictures_is_one_clip_for_who_reads_it_as_one(pictures, reads, fps, clips):
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    expected = [path for path in files if not any(path.is_relative_to(pictures / clip) for clip in clips)]
    assert list(find_files([pictures], reads, fps)) == sorted([*expected, *(pictures / clip for clip in clips)])
    assert list(find_files([pictures / clip for clip in clips], reads, fps)) == [pictures / clip for clip in clips]


def test_a_wrong_rate():
    with pytest.raises(ConfigError, match="--fps 0: expected a positive number of frames a second"):
        list(find_files([], (), 0.0))


def test_a_folder_of_frames_is_classified_and_explained_as_a_clip(run, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, picture in enumerate(counting(20)):
        Image.fromarray(picture).save(folder / f"frame_{number:04d}.png")
    done = mbt("predict", run.path, folder, "--fps", 10, "--every", 0.5, "--json")
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert {answer["file"] for answer in answers} == {str(folder)}
    assert [answer["start"] for answer in answers] == pytest.approx([0, 0.5, 0.72])  # of 2 s, windows of 1.28 s
    assert answers[0]["modalities"] == ["rgb"]
    done = mbt("explain", run.path, folder, "--fps", 10, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert f"{folder}  (rgb)" in done.out


def test_an_empty_folder_and_one_that_cannot_be_listed(tmp_path, monkeypatch):
    assert list(find_files([tmp_path])) == [FilePrediction(str(tmp_path), error="no file in this folder")]

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(find_files([tmp_path])) == [FilePrediction(str(tmp_path), error="cannot be listed: Permission denied")]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.csv"])
def test_what_was_answered_is_left_out(run, folder, tmp_path, name):
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    done = mbt("predict", run.path, folder, "--out", whole, "--top", 2)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        f"{folder}/deep/bad.mp4: cannot open it: Invalid data found when processing input",
        f"9 answers added to {whole}",
        "Error: 1 of 10 could not be classified",
    ]
    expected = answers_in(whole)
    assert list(expected) == [str(file) for file in find_files([folder])]
    lines = whole.read_bytes().splitlines(keepends=True)
    # killed while writing: in another order, with a failed file, and a last line that is cut off
    kept = [lines[i] for i in ((0, 3, 2, 7, 6, 5) if name.endswith("csv") else (2, 1, 6, 5, 4))]
    out.write_bytes(b"".join(kept) + lines[9][:-4])
    done = mbt("predict", run.path, folder, "--out", out, "--top", 2, "--resume")
    assert done.code == 1
    before = sum(b"bad.mp4" not in line for line in kept) - name.endswith("csv")
    assert f"{9 - before} answers added to {out}, {before} were there before" in done.err
    assert answers_in(out) == expected


def test_a_file_that_was_mended_is_tried_again(run, demo, tmp_path):
    clip, out = tmp_path / "clips" / "a.mp4", tmp_path / "clips" / "out.jsonl"
    clip.parent.mkdir()
    clip.write_bytes(b"nothing")
    assert mbt("predict", run.path, clip.parent, "--out", out).code == 1
    shutil.copy(clips_of(demo)[0], clip)
    done = mbt("predict", run.path, clip.parent, "--out", out, "--resume")  # the answers' own file is no clip
    assert (done.code, done.err) == (0, f"1 answers added to {out}\n")
    assert [list(answer) for answer in answers_in(out).values()] == [["file", "modalities", "top"]]
    done = mbt("predict", run.path, clip.parent, "--out", out, "--resume")
    assert (done.code, done.err) == (0, f"0 answers added to {out}, 1 were there before\n")


def test_windows_are_answered_one_by_one(run, demo, tmp_path):
    out, long = tmp_path / "out.csv", tmp_path / "long.mp4"
    write_media(long, counting(75), sine(3.0, 16000))
    arguments = ("predict", run.path, long, clips_of(demo)[0], "--every", 0.5, "--out", out)
    assert mbt(*arguments).code == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) > 4
    out.write_text("".join(lines[:2]))
    assert mbt(*arguments, "--resume").code == 0
    assert out.read_text() == whole


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_the_file_of_the_answers_is_not_cut_into_windows(run, demo, tmp_path, name):
    clip, out = tmp_path / "clips" / "a.mp4", tmp_path / "clips" / name
    clip.parent.mkdir()
    shutil.copy(clips_of(demo)[0], clip)
    for more in ((), ("--resume",)):
        done = mbt("predict", run.path, clip.parent, "--every", 1, "--out", out, *more)
        assert (done.code, done.err.count("\n")) == (0, 1), done.err


@pytest.mark.parametrize("wrong", [("--every", "0"), ("--every", "nan"), ("--fps", "-1"), ("--device", "abacus")])
def test_wrong_usage_leaves_no_file_behind(run, demo, tmp_path, wrong):
    out = tmp_path / "out.jsonl"
    done = mbt("predict", run.path, clips_of(demo)[0], "--out", out, *wrong)
    assert (done.code, out.exists()) == (2, False), done.err
    assert mbt("predict", run.path, clips_of(demo)[0], "--out", out).code == 0


@pytest.mark.parametrize("top", [
    [{"label": "a", "score": 1.0}],
    {"kind": [{"label": "a", "score": 1.0}]},
    {"kind": [{}, {}], "sum": [{}]},
    {"kind": [{}], "sum": [{}], "more": [{}]},
])  # fmt: skip
def test_answers_of_another_model_are_not_gone_on_with(run, demo, tmp_path, top):
    out = tmp_path / "out.jsonl"
    content = json.dumps({"file": "x.mp4", "modalities": ["rgb"], "top": top}) + "\n"
    out.write_text(content)
    done = mbt("predict", run.path, clips_of(demo)[0], "--out", out, "--top", 1, "--resume")
    assert done.code == 2
    start = f"Error: --out {out}: its answers are not those of this run and --top; line 1 has labels of "
    assert done.err.startswith(start), done.err
    assert done.err.endswith(", expected kind (1), sum (1); choose another --out\n")
    assert out.read_text() == content


@pytest.mark.parametrize(("content", "code", "message"), [
    ("a poem\nof two lines\n", 1, "poem.jsonl: line 1 is no prediction; choose another --out"),
    ("file,label\na,b\n", 2, "--out poem.csv: its columns are not those of this run and --top; expected file, start, "
     "end, modalities, error, kind/label_1, kind/score_1, ..."),
])  # fmt: skip
def test_a_file_of_something_else_is_left_alone(run, folder, tmp_path, content, code, message):
    out = tmp_path / message.replace("--out ", "").partition(":")[0]
    out.write_text(content)
    done = mbt("predict", run.path, folder, "--out", out.name, "--resume")
    assert (done.code, done.err) == (code, f"Error: {message}\n")
    assert out.read_text() == content


@pytest.mark.parametrize(("arguments", "message"), [
    (["--resume"], "--resume goes on with the answers of --out FILE; give it"),
    (["--out", "x.jsonl", "--json"], "--json is for the answers on stdout; leave out --out, or --json"),
    (["--data", "m.csv"], "expected files or folders, or --data MANIFEST, not both"),
    (["--split", "test"], "--split is for the rows of --data; leave it out"),
    (["--out", "x.txt"], "--out x.txt: expected a file that ends in .jsonl or .csv"),
    (["--out", "old.csv"], "--out old.csv is there already; go on with it by --resume, or choose another"),
])  # fmt: skip
def test_wrong_usage(run, tmp_path, arguments, message):
    (tmp_path / "old.csv").write_text("")
    done = mbt("predict", run.path, tmp_path, *arguments)
    assert (done.code, done.err) == (2, f"Error: {message}\n")


def test_rows_of_a_manifest(run, demo):
    """Each modality from a file of its own, without labels; a row that has nothing is an error by itself."""
    first, second, third = clips_of(demo)[:3]
    lines = ["id,rgb,audio", f"a,{first},{first}", f"b,{second},", "c,,", f"d,,{third}"]
    Path("new.csv").write_text("\n".join(lines) + "\n")
    done = mbt("predict", run.path, "--data", "new.csv", "--json")
    found = json.loads(done.out)
    assert (done.code, [row["file"] for row in found]) == (1, ["a", "b", "c", "d"])
    assert found[0] == {**json.loads(mbt("predict", run.path, first, "--json").out)[0], "file": "a"}
    assert [row.get("modalities") for row in found] == [["rgb", "audio"], ["rgb"], None, ["audio"]]
    Path("new.csv").write_text("\n".join([lines[0], lines[1], *lines[3:]]) + "\n")
    assert mbt("predict", run.path, "--data", "new.csv", "--out", "o.csv").code == 1
    Path("new.csv").write_text("\n".join([*lines[:3], lines[4]]) + "\n")
    done = mbt("predict", run.path, "--data", "new.csv", "--out", "o.csv", "--resume")
    assert (done.code, done.err) == (0, "1 answers added to o.csv, 2 were there before\n")
    neither = mbt("predict", run.path)
    assert (neither.code, neither.err) == (2, "Error: expected files or folders, or --data MANIFEST\n")


def test_names_and_messages_of_all_kinds_come_back(run, tmp_path):
    head = run.model.config.head
    scores = {"kind": [("x", float("nan"))], "sum": [("0", 1.0)]}
    odd = [FilePrediction('a,"b"\n\u2028\r.mp4', ["rgb"], scores, 0.1, 0.3), FilePrediction("b;ü", ["rgb"], scores)]
    for name in ("a.csv", "a.jsonl"):
        with Answers(tmp_path / name, head, 1, resume=False) as answers:
            for prediction in odd:
                answers.add(prediction)
        with Answers(tmp_path / name, head, 1, resume=True) as answers:
            assert answers.kept == 2
            assert (odd[0].file, 0.1) in answers
            assert (odd[1].file, None) in answers
            assert (odd[1].file, 0.1) not in answers


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.csv"])
def test_names_with_ends_of_lines_are_gone_on_with(run, demo, tmp_path, name):
    names = ["a\rb.mp4", "c\nd.mp4", "e\r\nf.mp4", "g.mp4"]
    for file in names:
        shutil.copy(clips_of(demo)[0], tmp_path / file)
    files, out = [tmp_path / file for file in names], tmp_path / name
    assert mbt("predict", run.path, *files, "--out", out).code == 0
    complete = out.read_bytes()
    done = mbt("predict", run.path, *files, "--out", out, "--resume")
    assert (done.code, done.err) == (0, f"0 answers added to {out}, 4 were there before\n")
    assert out.read_bytes() == complete
    at = complete.index(b"e\\r\\nf" if name.endswith("jsonl") else b"e\r\nf") + 4
    out.write_bytes(complete[:at])  # killed in the middle of a name
    done = mbt("predict", run.path, *files, "--out", out, "--resume")
    assert (done.code, done.err) == (0, f"2 answers added to {out}, 2 were there before\n")
    assert out.read_bytes() == complete


@pytest.mark.parametrize("name", ["answers.jsonl", pytest.param("answers.csv", marks=pytest.mark.slow)])
def test_one_command_writes_to_a_file_of_answers(run, demo, tmp_path, name):
    """The second one is refused before it writes a line, with --resume too; nothing is lost."""
    out, clip = tmp_path / name, clips_of(demo)[0]
    script = f"""
import sys, time
from pathlib import Path
from mbt_core.evaluate.answers import Answers
from mbt_core.run import load
with Answers(Path({str(out)!r}), load({str(run.path)!r}).model.config.head, 5, False):
    print("writing", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "writing\n"
        before = out.read_bytes()
        for more in ([], ["--resume"]):
            done = mbt("predict", run.path, clip, "--out", out, *more)
            assert done.code == 2
            assert f"--out {out}" in done.err
            assert out.read_bytes() == before
        assert "another process is writing there" in done.err
    finally:
        other.kill()
        other.communicate()
    assert mbt("predict", run.path, clip, "--out", out, "--resume").code == 0
    assert len(answers_in(out)) == 1


def test_an_entry_that_leads_to_itself_loses_no_other(run, demo, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(clips_of(demo)[0], folder / "good.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    done = mbt("predict", run.path, folder, "--json")
    assert done.code == 1
    answers = {Path(answer["file"]).name: answer for answer in json.loads(done.out)}
    assert list(answers) == ["gone.mp4", "good.mp4", "loop.mp4"]
    assert answers["good.mp4"]["top"]
    for name in ("gone.mp4", "loop.mp4"):
        assert answers[name]["error"] == "a link that leads to no file"


def test_folders_are_walked_while_they_are_classified(run, demo, monkeypatch):
    """Of an endless stream of files only a few batches are ahead."""
    monkeypatch.setattr(predicting, "BATCH", 4)
    asked, clip = [], clips_of(demo)[0]

    def endless():
        while True:
            asked.append(clip)
            yield clip

    model = load(run.path)
    model.experiment.data.workers = 1
    stream = model.predict_stream(endless())
    answers = [next(stream) for _ in range(20)]
    stream.close()
    assert {answer.file for answer in answers} == {str(clip)}
    assert len({answer.top["kind"][0] for answer in answers}) == 1
    assert len(asked) <= 40
