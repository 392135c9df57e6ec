"""From annotation files in their own formats and a folder of media to a manifest."""

import csv
import json

import media_files
import numpy as np
import pytest

from mbt_benchmarks.audioset import balanced_subset
from mbt_benchmarks.media import MediaFolder, Segment, YouTubeFiles
from mbt_core.config import DataConfig
from mbt_core.data.build import build_manifest
from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError, DataError
from mbt_core.media import MediaError, open_clip

READS = {"rgb": "frames", "audio": "waveform"}
MIDS = ["/m/09x0r", "/m/05zppz", "/t/dd00003"]
SEGMENTS = "# a comment\n# YTID, start_seconds, end_seconds, positive_labels\n"


def movie(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    return media_files.write_media(path, media_files.counting(round(5 * seconds)), None, fps=5)


def audioset(folder, balanced=(), evaluation=(), unbalanced=()):
    folder.mkdir(exist_ok=True)
    names = ["Speech", "Male speech, man speaking", 'Man, "loud"']
    with (folder / "class_labels_indices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "mid", "display_name"])
        writer.writerows(reversed([(i, mid, name) for i, (mid, name) in enumerate(zip(MIDS, names, strict=True))]))
    for name, rows in (("balanced_train", balanced), ("eval", evaluation), ("unbalanced_train", unbalanced)):
        if rows:
            lines = "".join(
                f'{video}, {start}, {end}, "{",".join(mids)}"\n'
                if len(mids) > 1
                else f"{video},{start},{end},{mids[0]}\n"
                for video, start, end, mids in rows
            )
            (folder / f"{name}_segments.csv").write_text(SEGMENTS + lines)
    return folder


def rows_of(path):
    manifest = Manifest.read(path, READS, DataConfig(val_fraction=0))
    return manifest, {manifest.row(i).id: manifest.row(i) for i in range(len(manifest))}


def test_audioset(tmp_path):
    annotations = audioset(
        tmp_path / "annotations",
        [("-aaaaaaaaa_", "30.000", "40.000", MIDS[:2]), ("bbbbbbbbbbb", "0.000", "10.000", [MIDS[2]])],
        [("ccccccccccc", "110.000", "120.000", [MIDS[1]])],
    )
    movie(tmp_path / "media/balanced/-aaaaaaaaa__30.000.mp4")
    report = build_manifest("audioset", annotations, tmp_path / "media", tmp_path / "m.parquet")
    assert report.splits == {
        "train": {"rows": 2, "present": {"path": 1}, "missing": {"path": 1}},
        "test": {"rows": 1, "present": {"path": 0}, "missing": {"path": 1}},
    }
    manifest, rows = rows_of(tmp_path / "m.parquet")
    assert manifest.classes == {"label": ["Speech", "Male speech, man speaking", 'Man, "loud"']}
    assert rows["-aaaaaaaaa__30"].labels == {"label": "Speech;Male speech, man speaking"}
    assert rows["-aaaaaaaaa__30"].sources["rgb"].path == str(tmp_path / "media/balanced/-aaaaaaaaa__30.000.mp4")
    assert rows["bbbbbbbbbbb_0"].sources == {"rgb": None, "audio": None}
    assert (tmp_path / "m.parquet.missing.csv").read_text().splitlines() == [
        '"id","column","expected"',
        '"bbbbbbbbbbb_0","path","bbbbbbbbbbb_0.mp4"',
        '"ccccccccccc_110","path","ccccccccccc_110.mp4"',
    ]


@pytest.mark.parametrize(
    "name", ["{v}_30", "{v}_30.000", "{v}_30000", "{v}_000030", "Y{v}_30_40", "{v}_30000_40000", "{v}"]
)
def test_common_names_are_recognised(name):
    for video in ("abcdefghijk", "Y-_defghijk", "YYYYYYYYYYY"):
        files = YouTubeFiles({name.format(v=video): ["x"], f"{video}_31": ["y"], "zzzzzzzzzzz_30": ["z"]})
        assert files.find(Segment(video, 30.0, 40.0)) == ("x", name == "{v}")
    assert YouTubeFiles({"abcdefghijklm_30": ["x"], "abc": ["y"]}).find(Segment("abcdefghijk", 30.0, 40.0)) is None


def test_a_file_of_the_segment_is_taken_before_one_of_the_video():
    files = YouTubeFiles({"abcdefghijk": ["video"], "abcdefghijk_5": ["segment"]})
    assert files.find(Segment("abcdefghijk", 5.0, 15.0)) == ("segment", False)
    assert files.find(Segment("abcdefghijk", 7.0, 17.0)) == ("video", True)


@pytest.mark.parametrize(
    ("seconds", "whole"), [((3, 3), [False, False]), ((6, 7), [True, True]), ((3, 7), [False, True])]
)
def test_lengths_tell_whole_videos_from_cut_ones(tmp_path, seconds, whole):
    annotations = audioset(
        tmp_path / "annotations", [(v * 11, "2", "5", MIDS[:1]) for v in "ab"] + [("c" * 11, "1", "4", MIDS[:1])]
    )
    for video, length in zip("ab", seconds, strict=True):
        movie(tmp_path / f"media/{video * 11}.mp4", length)
    movie(tmp_path / "media" / f"{'c' * 11}_1.mp4", 3)
    build_manifest("audioset", annotations, tmp_path / "media", tmp_path / "m.csv")
    _, rows = rows_of(tmp_path / "m.csv")
    found = [(rows[f"{v * 11}_2"].start, rows[f"{v * 11}_2"].end) for v in "ab"]
    assert found == [(2.0, 5.0) if is_whole else (None, None) for is_whole in whole]
    assert rows[f"{'c' * 11}_1"].start is None


def test_sound_files_beside_the_videos_are_the_audio_column(tmp_path):
    annotations = audioset(tmp_path / "annotations", [(v * 11, "2", "5", MIDS[:1]) for v in "abcd"])
    for name in (f"{'a' * 11}_2", f"{'b' * 11}_2"):
        movie(tmp_path / f"media/video/{name}.mp4")
    for name in (f"{'a' * 11}_2", f"{'c' * 11}_2"):
        media_files.write_media(
            tmp_path / "x.wav", None, media_files.sine(0.1, 8000), audio_codec="pcm_s16le", rate=8000
        )
        (tmp_path / "media/audio").mkdir(exist_ok=True)
        (tmp_path / "x.wav").rename(tmp_path / f"media/audio/{name}.wav")
    build_manifest("audioset", annotations, tmp_path / "media", tmp_path / "media" / "m.jsonl")
    _, rows = rows_of(tmp_path / "media" / "m.jsonl")
    kinds = {id_[0]: [s and s.path[-3:] for s in row.sources.values()] for id_, row in rows.items()}
    assert kinds == {"a": ["mp4", "wav"], "b": ["mp4", "mp4"], "c": ["wav", "wav"], "d": [None, None]}
    first = json.loads((tmp_path / "media" / "m.jsonl").read_text().splitlines()[0])
    assert first["path"] == f"video/{'a' * 11}_2.mp4"  # relative to the manifest's folder


def test_media_elsewhere_is_named_absolutely(tmp_path):
    annotations = audioset(tmp_path / "annotations", [("a" * 11, "2", "5", MIDS[:1])])
    movie(tmp_path / "media" / f"{'a' * 11}_2.mp4")
    (tmp_path / "elsewhere").mkdir()
    build_manifest("audioset", annotations, tmp_path / "media", tmp_path / "elsewhere/m.csv")
    _, rows = rows_of(tmp_path / "elsewhere/m.csv")
    assert rows[f"{'a' * 11}_2"].sources["rgb"].path == str(tmp_path / "media" / f"{'a' * 11}_2.mp4")


def test_balanced_subset_keeps_rare_classes_whole():
    rng = np.random.default_rng(0)
    labels = [["common"] + ["rare"] * (i < 20) + ["middle"] * (i % 5 == 0) for i in range(1000)]
    labels = [labels[i] for i in rng.permutation(1000)]
    ids = [f"clip{i}" for i in range(1000)]
    chosen = balanced_subset(labels, ids, 300, 0)
    count = {name: sum(name in labels[i] for i in chosen) for name in ("common", "rare", "middle")}
    assert len(chosen) == 300
    assert count["rare"] == 20
    assert count["middle"] > 120  # of 200, against 60 by chance
    np.testing.assert_array_equal(chosen, balanced_subset(labels, ids, 300, 0))
    assert set(balanced_subset(labels, ids, 100, 0)) < set(chosen)
    assert set(balanced_subset(labels, ids, 300, 1)) != set(chosen)
    assert len(balanced_subset(labels, ids, 5000, 0)) == 1000
    # for some number c it is the first c rows of every class, and no more than one row beyond them all
    order = rng.permutation(1000)
    again = balanced_subset([labels[i] for i in order], [ids[i] for i in order], 300, 0)
    assert {ids[i] for i in chosen} == {ids[order[i]] for i in again}


def test_parts_of_audioset(tmp_path, monkeypatch):
    unbalanced = [(f"u{i:010d}", "0", "10", MIDS[:1] if i < 7 else MIDS[1:2]) for i in range(9)]
    annotations = audioset(
        tmp_path / "a", [("b" * 11, "0", "10", MIDS[2:])], [("e" * 11, "0", "10", MIDS[:1])], unbalanced
    )
    (tmp_path / "media").mkdir()
    monkeypatch.setattr("mbt_benchmarks.audioset.HALF_MILLION", 4)

    def train(subset, seed=0):
        report = build_manifest("audioset", annotations, tmp_path / "media", tmp_path / "m.csv", subset, seed)
        _, rows = rows_of(tmp_path / "m.csv")
        return report.splits["train"]["rows"], {rows[i].labels["label"] for i in rows}, sorted(rows)

    assert train(None)[0] == train("mini")[0] == 1
    assert train("full")[0] == 10
    count, labels, ids = train("500k")
    assert (count, labels) == (4, {"Speech", "Male speech, man speaking"})
    assert {"u0000000007_0", "u0000000008_0"} < set(ids)
    assert train("500k")[2] == ids != train("500k", 5)[2]
    with pytest.raises(ConfigError, match=r"unknown part of AudioSet 'maxi'\..*500k, full, mini"):
        train("maxi")


def test_vggsound_csv_wins_over_the_older_files(tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "test.csv").write_text('aaaaaaaaaaa_000300.mp4,"bird chirping, tweeting"\n')
    (annotations / "train.csv").write_text("bbbbbbbbbbb_000001.mp4,zebra braying\n")
    (tmp_path / "media").mkdir()
    movie(tmp_path / "media/aaaaaaaaaaa_000300.mp4")
    out = tmp_path / "m.parquet"
    build_manifest("vggsound", annotations, tmp_path / "media", out)
    manifest, rows = rows_of(out)
    assert {split: len(found) for split, found in manifest.splits.items()} == {"train": 1, "test": 1}
    assert manifest.classes["label"] == ["bird chirping, tweeting", "zebra braying"]
    assert rows["aaaaaaaaaaa_000300"].sources["audio"] is not None

    (annotations / "vggsound.csv").write_text(
        'aaaaaaaaaaa,300,"bird chirping, tweeting",test\nccccccccccc,7,air horn,train\n'
    )
    (annotations / "stat.csv").write_text(
        'zebra braying,1,animals\n"bird chirping, tweeting",2,animals\nair horn,3,vehicle\n'
    )
    report = build_manifest("vggsound", annotations, tmp_path / "media", out)
    manifest, rows = rows_of(out)
    assert list(rows) == ["aaaaaaaaaaa_000300", "ccccccccccc_000007"]
    assert manifest.classes["label"] == ["air horn", "bird chirping, tweeting", "zebra braying"]
    assert report.classes == {"label": 3}


def test_vggsounder(tmp_path):
    (tmp_path / "stat.csv").write_text("zebra braying,1,animals\nair horn,3,vehicle\n")
    (tmp_path / "vggsounder.csv").write_text(
        "video_id,label,modality,background_music,static_image,voice_over\n"
        "---g-f_I2yQ_000001,zebra braying,A,True,False,False\n---g-f_I2yQ_000001,air horn,AV,True,False,False\n"
        "bbbbbbbbbbb_000010,silence,V,False,True,False\n"
    )
    movie(tmp_path / "media/---g-f_I2yQ_000001.mp4")
    build_manifest("vggsounder", tmp_path, tmp_path / "media", tmp_path / "m.csv")
    manifest, rows = rows_of(tmp_path / "m.csv")
    assert manifest.classes == {"label": ["air horn", "zebra braying", "silence"]}
    assert rows["---g-f_I2yQ_000001"].labels == {"label": "zebra braying;air horn"}
    assert manifest.kinds == {"label": "multilabel"}
    with (tmp_path / "m.csv").open(newline="") as file:
        cells = {row["id"]: row for row in csv.DictReader(file)}
    assert cells["---g-f_I2yQ_000001"]["visible"] == "air horn"
    assert cells["---g-f_I2yQ_000001"]["background_music"] == "True"
    assert cells["bbbbbbbbbbb_000010"]["audible"] == ";"

    report = build_manifest("vggsounder", tmp_path, tmp_path / "media", tmp_path / "m.csv", "visible")
    assert report.splits["test"]["rows"] == 2
    assert rows_of(tmp_path / "m.csv")[1]["---g-f_I2yQ_000001"].labels == {"label": "air horn"}
    report = build_manifest("vggsounder", tmp_path, tmp_path / "media", tmp_path / "m.csv", "audible")
    assert report.splits["test"]["rows"] == 1


def test_kinetics(tmp_path):
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(f"{header}zumba,aaaaaaaaaaa,5,15,train\n")
    (tmp_path / "kinetics400_val.csv").write_text(f"{header}abseiling,bbbbbbbbbbb,0,10,val\n")
    movie(tmp_path / "media/train/zumba/aaaaaaaaaaa_000005_000015.mp4")
    report = build_manifest("kinetics400", tmp_path, tmp_path / "media", tmp_path / "m.csv")
    assert [report.splits[s]["present"]["path"] for s in ("train", "val")] == [1, 0]
    assert rows_of(tmp_path / "m.csv")[0].classes["label"] == ["abseiling", "zumba"]


EPIC = (
    "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,verb_class,noun_class\n"
)


def epic(folder):
    folder.mkdir(exist_ok=True)
    (folder / "EPIC_100_train.csv").write_text(
        f"{EPIC}P01_01_0,P01,P01_01,00:00:00.40,00:00:01.00,4,10,1,0\nP02_03_0,P02,P02_03,00:01:02.50,00:01:03.00,9,9,0,1\n"
    )
    (folder / "EPIC_100_validation.csv").write_text(f"{EPIC}P01_01_1,P01,P01_01,00:00:01.00,00:00:01.60,10,16,0,0\n")
    for task, names in (("verb", ("take", "put")), ("noun", ("tap", "extract:vanilla"))):
        lines = "".join(f"{i},{name},\"['{name}', 'x']\",c\n" for i, name in enumerate(names))
        (folder / f"EPIC_100_{task}_classes.csv").write_text(f"id,key,instances,category\n{lines}")
    (folder / "EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\nP01_01,2.0,10.0,64x48\n")
    return folder


def test_epic_kitchens_out_of_untrimmed_videos(tmp_path):
    movie(tmp_path / "media/P01/videos/P01_01.MP4", 2.0)
    report = build_manifest("epic-kitchens-100", epic(tmp_path / "a"), tmp_path / "media", tmp_path / "m.parquet")
    assert {split: found["rows"] for split, found in report.splits.items()} == {"train": 2, "val": 1}
    manifest, rows = rows_of(tmp_path / "m.parquet")
    assert manifest.classes == {"verb": ["take", "put"], "noun": ["tap", "extract:vanilla"]}
    row = rows["P01_01_0"]
    assert (row.start, row.end, row.labels, row.fps) == (0.4, 1.0, {"verb": "put", "noun": "tap"}, {})
    assert rows["P02_03_0"].sources["rgb"] is None
    assert rows["P02_03_0"].start == 62.5


def test_epic_kitchens_out_of_frames_and_sound(tmp_path):
    frames = tmp_path / "media/P01/rgb_frames/P01_01"
    frames.mkdir(parents=True)
    for i, picture in enumerate(media_files.counting(20), start=1):
        media_files.write_image(frames / f"frame_{i:010d}.jpg", picture, "yuvj420p")
    flow = tmp_path / "media/P01/flow_frames/P01_01/u"
    flow.mkdir(parents=True)
    media_files.write_image(flow / "frame_0000000001.jpg", media_files.counting(1)[0], "yuvj420p")
    media_files.write_media(
        tmp_path / "media/P01_01.wav", None, media_files.sine(2.0, 8000), audio_codec="pcm_s16le", rate=8000
    )
    build_manifest("epic-kitchens-100", epic(tmp_path / "a"), tmp_path / "media", tmp_path / "m.parquet")
    _, rows = rows_of(tmp_path / "m.parquet")
    row = rows["P01_01_1"]
    assert row.sources["rgb"].path == str(frames)
    assert row.sources["audio"].path == str(tmp_path / "media/P01_01.wav")
    assert row.rate(["rgb"]) == 10.0
    with open_clip(row.sources["rgb"].path, fps=10.0) as clip:
        assert media_files.shown(clip.frames([row.start, row.end])) == [10, 16]
    assert rows["P02_03_0"].sources == {"rgb": None, "audio": None}


def test_epic_kitchens_sound_in_one_file_and_flow_at_half_the_rate(tmp_path):
    h5py = pytest.importorskip("h5py")
    annotations = epic(tmp_path / "a")
    lines = ["video_id,duration,fps,resolution", "P01_01,2.0,10.0,64x48", "P02_03,63.0,8.0,64x48"]
    (annotations / "EPIC_100_video_info.csv").write_text("\n".join(lines) + "\n")
    movie(tmp_path / "media/P02_03.MP4", 1.0)
    for video, fields in (("P01_01", 10), ("P02_03", 504)):
        for axis in "uv":
            folder = tmp_path / f"media/flow_frames/{video}/{axis}"
            folder.mkdir(parents=True)
            media_files.write_image(folder / "frame_0000000001.jpg", media_files.counting(1)[0], "yuvj420p")
            for i in range(2, fields + 1):
                (folder / f"frame_{i:010d}.jpg").symlink_to(folder / "frame_0000000001.jpg")
    with h5py.File(tmp_path / "media/EPIC_audio.hdf5", "w") as file:
        file["P01_01"] = media_files.sine(2.0, 24000)[0]
    report = build_manifest("epic-kitchens-100", annotations, tmp_path / "media", tmp_path / "m.parquet")
    assert "1 of 2 videos are recordings in HDF5" in report.notes
    manifest = Manifest.read(tmp_path / "m.parquet", {**READS, "flow": "array"}, DataConfig(val_fraction=0))
    rows = {manifest.row(i).id: manifest.row(i) for i in range(len(manifest))}
    sound, flow = (rows["P01_01_0"].sources[name].path for name in ("audio", "flow"))
    assert sound == str(tmp_path / "media/EPIC_audio.hdf5/P01_01")
    assert rows["P02_03_0"].sources["audio"].path == str(tmp_path / "media/P02_03.MP4")
    assert [rows[name].rate(["flow"]) for name in ("P01_01_0", "P02_03_0")] == [5.0, 8.0]
    with open_clip(flow, fps=rows["P01_01_0"].rate(["flow"])) as clip:
        assert (clip.frame_rate, clip.shape) == (5.0, (2, 10, 48, 64))
    with open_clip(sound) as clip:
        assert clip.duration == 2.0


def test_epic_kitchens_needs_the_rate_of_frames(tmp_path):
    frames = tmp_path / "media/P01_01"
    frames.mkdir(parents=True)
    media_files.write_image(frames / "frame_0000000001.jpg", media_files.counting(1)[0], "yuvj420p")
    (epic(tmp_path / "a") / "EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\n")
    with pytest.raises(DataError, match="no frame rate of 1 videos with frames, e.g. P01_01"):
        build_manifest("epic-kitchens-100", tmp_path / "a", tmp_path / "media", tmp_path / "m.parquet")


def test_what_is_wrong_is_said(tmp_path):
    annotations = audioset(tmp_path / "annotations", [("a" * 11, "2", "5", MIDS[:1])])
    media = tmp_path / "media"
    with pytest.raises(ConfigError, match=r"--media .*: there is no such folder"):
        build_manifest("audioset", annotations, media, tmp_path / "m.csv")
    media.mkdir()
    with pytest.raises(ConfigError, match="unknown data set to build 'audiosett'. Did you mean 'audioset'"):
        build_manifest("audiosett", annotations, media, tmp_path / "m.csv")
    with pytest.raises(ConfigError, match=r"m\.txt: expected a file ending in \.parquet"):
        build_manifest("audioset", annotations, media, tmp_path / "m.txt")
    with pytest.raises(DataError, match=r"no vggsound\.csv or train\.csv or test\.csv; found: balanced_train"):
        build_manifest("vggsound", annotations, media, tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="VGGSound has no parts"):
        build_manifest("vggsound", annotations, media, tmp_path / "m.csv", "mini")
    (annotations / "eval_segments.csv").write_text("a,1,2,/m/none\n")
    with pytest.raises(DataError, match=r"the class '/m/none' is not in class_labels_indices"):
        build_manifest("audioset", annotations, media, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("kinetics400", "train.csv", b"zumba,aaa", r"train\.csv: line 3: it ends before the column 'time_start'"),
        ("kinetics400", "train.csv", b"caf\xe9,aaa,1,2\n", r"train\.csv: not UTF-8 text; save it as UTF-8"),
        ("kinetics400", "train.csv", b"x" * 140_000, r"train\.csv: malformed CSV: field larger than"),
        ("kinetics400", "train.csv", b"zumba,aaa,nan,2\n", r"train\.csv: expected seconds or HH:MM:SS, got 'nan'"),
        ("audioset", "class_labels_indices.csv", b"three,/m/x,Cow\n", r"index: expected a whole number, got 'three'"),
        ("audioset", "eval_segments.csv", b"caf\xe9,1,2,/m/x\n", r"eval_segments\.csv: not UTF-8 text"),
        ("epic-kitchens-100", "EPIC_100_train.csv", None, r"EPIC_100_train\.csv: unknown column 'noun_class'"),
        ("epic-kitchens-100", "EPIC_100_train.csv", b"P01_01_9,P01,P01_01,0,1,0,9", "before the column 'verb_class'"),
        ("epic-kitchens-100", "EPIC_100_video_info.csv", b"x,2,?,1x1\n", r"info\.csv: fps: expected a .* got '\?'"),
        ("epic-kitchens-100", "EPIC_100_video_info.csv", b"x,2,0,1x1\n", r"info\.csv: fps: .* above 0, got '0'"),
    ],
)
def test_damaged_annotation_files(tmp_path, name, file, damage, message):
    annotations = epic(audioset(tmp_path / "a", [("a" * 11, "2", "5", MIDS[:1])], [("b" * 11, "2", "5", MIDS[:1])]))
    (annotations / "train.csv").write_text("label,youtube_id,time_start,time_end\nzumba,bbbbbbbbbbb,1,2\n")
    frames = tmp_path / "media/rgb_frames/P01_01"
    frames.mkdir(parents=True)
    media_files.write_image(frames / "frame_0000000001.jpg", media_files.counting(1)[0], "yuvj420p")
    content = (annotations / file).read_bytes()
    changed = content.replace(b"noun_class", b"noun") if damage is None else content + damage
    (annotations / file).write_bytes(changed)
    with pytest.raises(DataError, match=message):
        build_manifest(name, annotations, tmp_path / "media", tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


def test_clips_that_are_there_twice(tmp_path):
    header = "label,youtube_id,time_start,time_end\n"
    line = "zumba,aaaaaaaaaaa,5,15\n"
    (tmp_path / "train.csv").write_text(f"{header}{line}abseiling,bbbbbbbbbbb,0,10\n{line}")
    movie(tmp_path / "media/aaaaaaaaaaa_000005_000015.mp4")
    report = build_manifest("kinetics400", tmp_path, tmp_path / "media", tmp_path / "m.csv")
    assert report.splits["train"] == {"rows": 2, "present": {"path": 1}, "missing": {"path": 1}}
    assert "1 rows are there more than once in the annotation files: taken once" in report.notes
    assert list(rows_of(tmp_path / "m.csv")[1]) == ["aaaaaaaaaaa_000005_000015", "bbbbbbbbbbb_000000_000010"]
    assert len((tmp_path / "m.csv.missing.csv").read_text().splitlines()) == 2
    (tmp_path / "val.csv").write_text(header + line)
    message = r"'aaaaaaaaaaa_000005_000015' is there twice, with the split 'train' and 'val'; remove one of them"
    with pytest.raises(DataError, match=message):
        build_manifest("kinetics400", tmp_path, tmp_path / "media", tmp_path / "n.csv")
    assert not (tmp_path / "n.csv").exists()


def test_each_folder_is_listed_once_and_frames_never(tmp_path, monkeypatch):
    frames = tmp_path / "rgb_frames" / "P01_01"
    frames.mkdir(parents=True)
    for name in ("a.mp4", "b.MKV", ".hidden.mp4", "c.wav", "notes.txt"):
        (tmp_path / name).touch()
    (frames / "frame_1.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = MediaFolder.listed(tmp_path, {"P01_01"})
    assert found.videos == {"a": ["a.mp4"], "b": ["b.MKV"]}
    assert found.sounds == {"c": ["c.wav"]}
    assert found.folders == {"P01_01": ["rgb_frames/P01_01"]}


def test_a_folder_of_frames_is_a_video(tmp_path):
    for first in (0, 1):
        folder = tmp_path / str(first)
        folder.mkdir()
        for i, picture in enumerate(media_files.counting(37)):
            media_files.write_image(folder / f"img_{i + first:05d}.jpg", picture, "yuvj420p")
        with open_clip(str(folder), fps=12.5) as clip:
            assert clip.has("frames")
            assert not clip.has("waveform")
            assert not clip.has("array")
            assert clip.duration == clip.duration_of("frames") == pytest.approx(37 / 12.5)
            assert (clip.frame_rate, clip.sample_rate, clip.size) == (12.5, None, (48, 64))
            times = [0.0, 0.079, 0.08, 1.0, 36 / 12.5, 99.0]
            assert media_files.shown(clip.frames(times, short_side=24)) == [0, 0, 1, 12, 36, 36]
            since, pictures = clip.frames_between(1.0, 1.2, short_side=24)
            np.testing.assert_allclose(since, [0.96, 1.04, 1.12, 1.2], atol=1e-5)
            assert pictures.shape == (4, 24, 32, 3)
            with pytest.raises(MediaError, match="it has no audio stream|not a file"):
                clip.waveform(0, 1, 8000)
    with open_clip(str(tmp_path / "1")) as clip, pytest.raises(MediaError, match="give it in the column fps"):
        clip.has("frames")
    (tmp_path / "1" / "img_00020.jpg").write_bytes(b"no picture")
    with (
        open_clip(str(tmp_path / "1"), fps=12.5) as clip,
        pytest.raises(MediaError, match="img_00020.jpg: cannot decode"),
    ):
        clip.frames([19 / 12.5])
