"""Wrong settings, manifests, files and flags: what is said, and the exit code (1 the work failed, 2 wrong usage)."""

import json
import pickle
import re
import shutil

import pytest

from small import clips_of, mbt, tiny_sets

TRAIN_KEYS = "accumulate, batch_size, betas, cache_limit, cache_lower"
KINDS = "audio, flow, rgb, signal, text"
HEADER = "id,path,label,split\n"
EXPECTED = "expected a manifest (.csv, .tsv, .parquet, .jsonl) or a folder with one sub-folder per class"

SETTINGS = {
    # what is set: what is said, `...` standing for anything
    "trian.steps=1": "trian: unknown key. Did you mean 'train'? Known here: data, evaluate, modalities, model, train",
    "train.stpes=1": f"train.stpes: unknown key. Did you mean 'steps'? Known here: {TRAIN_KEYS}, ...",
    "modalities.rgb.frmes=3": "modalities.rgb.frmes: unknown key. Did you mean 'frames'? Known here: brightness, ...",
    "modalities.audio.rate=8000": "--set modalities.audio: unknown modality 'audio'. Known: rgb; see --modalities",
    "modalities=3": "modalities: expected NAME: settings, got 3",
    "modalities={}": f"modalities: none given; known kinds: {KINDS}",
    "modalities.rgb.size=0": "modalities.rgb.size: input should be greater than 0 or a valid tuple or 'auto', got 0.",
    "modalities.rgb.size=[3]": "modalities.rgb.size.1: missing, and it has no default",
    "model=3": "model: input should be a valid dictionary or instance of ModelConfig, got 3.",
    "model.fusion.strategy=botleneck": "model.fusion.strategy: unknown fusion strategy 'botleneck'. Did you mean "
    "'bottleneck'? Known: bottleneck, bottleneck-sequential, cross-attention, late, self-attention (got: 'botleneck')",
    "model.fusion.layer=9": "model.fusion.layer: 9 is above the depth 4; expected 0 to 4",
    "model.fusion.layer=-1": "model.fusion.layer: input should be greater than or equal to 0 or 'auto', got -1.",
    "model.pool=avg": "model.pool: input should be 'cls', 'mean', 'mean-joint' or 'auto', got 'avg'.",
    "model.backbone.dim=30": "model.backbone: dim 30 is not a multiple of heads 4",
    "model.backbone=null": "model.backbone: input should be a valid string or a valid dictionary ..., got None.",
    "model.head.classes=0": "model.head.classes: input should be greater than 0, got 0.",
    "model.head.task=mulitlabel": "model.head.task: input should be 'single', 'multilabel' or 'regression' or a valid "
    "dictionary, got 'mulitlabel'. Did you mean 'multilabel'?",
    "train.steps=many": "train.steps: input should be a valid integer or 'auto', got 'many'.",
    "train.steps=0": "train.steps: expected at least 1 (got: 0)",
    "train.batch_size=0": "train.batch_size: expected at least 1 (got: 0)",
    "train.lr=-1": "train.lr: input should be greater than 0, got -1.",
    "train.lr=nan": "train.lr: input should be a finite number, got 'nan'.",
    "train.seed=-1": "train.seed: input should be greater than or equal to 0, got -1.",
    "train.seed=99999999999999999999": "train.seed: input should be less than ..., got 99999999999999999999.",
    "train.optimizer=sdg": "train.optimizer: input should be 'sgd' or 'adamw', got 'sdg'. Did you mean 'sgd'?",
    "train.loggers=[jsnl]": "train.loggers: unknown logger 'jsnl'. Did you mean 'jsonl'? Known: jsonl, tensorboard "
    "(got: ['jsnl'])",
    "train.loggers=jsonl": "train.loggers: input should be a valid list, got 'jsonl'.",
    "train.betas=[1]": "train.betas.0: input should be less than 1, got 1.\n"
    "train.betas.1: missing, and it has no default",
    "train.modality_dropout=1": "train.modality_dropout: expected 0 <= p < 1, got 1.0",
    "train.modality_dropout={rbg: 0.1}": "train.modality_dropout: unknown modality 'rbg'. Did you mean 'rgb'? "
    "Known: rgb",
    "train.lr_factors={audio: 2}": "train.lr_factors: unknown modality 'audio'. Known: rgb",
    "data.fold=3": "data.fold: 3, but data.folds is None; folds count from 0",
    "data.max_missing=2": "data.max_missing: input should be less than or equal to 1, got 2.",
    "data.sampler=balancd": "data.sampler: input should be 'uniform' or 'balanced', got 'balancd'. Did you mean "
    "'balanced'?",
    "evaluate.views=0": "evaluate.views: input should be greater than or equal to 1, got 0.",
    "nonsense": "--set 'nonsense': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4",
    "=3": "--set '=3': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4",
    "a..b=3": "--set 'a..b=3': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4",
    "train.lr=[1": "--set 'train.lr=[1': '[1' is not a YAML value",
}
AFTER_A_LOOK = {
    # found wrong only with the data or the model, still before any work
    "data.path=nowhere.csv": "data.path: nowhere.csv: no such file or folder",
    "data.root=/nowhere": "data.root: /nowhere is no folder",
    "data.group=speaker": "good.csv: data.group: unknown column 'speaker'. Known: id, label, path, split",
    "model.head.tasks={lable: 2}": "model.head: ...good.csv: unknown task 'lable'. Did you mean 'label'? Known: label",
    "model.head.classes=3": "model.head: 3 classes of task 'label', but ...good.csv has 2",
    "model.backbone=vit_bse_patch16_224": "model.backbone: timm knows no model 'vit_bse_patch16_224'. Did you mean "
    "'vit_base_patch16_224'?",
    "model.pretrained=nowhere": "model.pretrained: 'nowhere' is neither a file, nor a folder, nor a timm model.",
    "model.fusion.options={x: 1}": "model.fusion.options: 'bottleneck' takes none, got ['x']",
    "train.freeze=[nothing*]": "train.freeze: 'nothing*' matches no parameter; names look like ...",
    "train.freeze=['*']": "train.freeze: nothing is left to train",
    "train.monitor=top2": "train.monitor: unknown metric 'top2'. Did you mean 'top1'? Known: balanced_accuracy, "
    "balanced_accuracy[rgb], loss, macro_f1, macro_f1[rgb], top1, top1[rgb]",
}
MANIFESTS = {
    # file: (content, {clip} and {rows} filled in; exit code; what is said)
    "empty.csv": ("", 1, "empty; expected a header with the names of the columns in the first line"),
    "header.csv": (HEADER, 1, "no rows"),
    "wrong.xlsx": ("x", 1, f"a manifest cannot be a .xlsx; {EXPECTED}"),
    "utf16.csv": (b"\xff\xfe\x00a,b\n", 1, "not UTF-8 text; save it as UTF-8"),
    "ragged.csv": (HEADER + "a,b\n", 1, "malformed: CSV parse error: Row #2: Expected 4 columns, got 2: a,b"),
    "bad.jsonl": ('{"id": 1\n', 1, "malformed: JSON parse error: Missing a comma or '}' after an object member. ..."),
    "bad.parquet": ("nope", 1, "malformed: Parquet file size is 4 bytes, smaller than the minimum file footer ..."),
    "noid.csv": ("ID,path,label\na,{clip},x\n", 1, "no column 'id'... Did you mean 'ID'? Columns found: 'ID', "
                 "'path', 'label'"),
    "nopath.csv": ("id,file,label\na,{clip},x\n", 1, "nothing for modality 'rgb': expected a column 'rgb' (its own "
                   "files) or 'path' (files that modalities share). Columns found: 'id', 'file', 'label'"),
    "twice.csv": ("id,path,path,label\na,b,c,d\n", 1, "column 'path' is there twice"),
    "duplicate.csv": (HEADER + "{rows}{rows}", 1, "the id 'c0' is in rows 1 and 13; ids must be unique (12 are not)"),
    "nolabel.csv": ("id,path\na,{clip}\n", 1, " has no labels; expected a column label, or label.TASK for each of "
                    "several tasks"),
    "emptylabel.csv": (HEADER + "{rows}z,{clip},,train\n", 1, "1 of 13 rows of the train split have no label of task "
                       "'label', e.g. 'z'; fill them in, or give these rows another split"),
    "several.csv": (HEADER + "{rows}z,{clip},a;b,train\n", 1, "row 13: several labels 'a;b', but task 'label' is of "
                    "kind 'single'; set model.head.task=multilabel"),
    "noclass.csv": (HEADER + "{rows}z,{clip},c,val\n", 1, "row 13: 'c' is no class of task 'label'.... Its 2 classes "
                    "are those of the train split; noclass.classes.json could list others"),
    "listed.csv": (HEADER + "{rows}z,{clip},bb,train\n", 1, "row 13: 'bb' is no class of task 'label'. Did you mean "
                   "'b'? Its 2 classes are those of listed.classes.json"),
    "start.csv": ("id,path,label,start\na,{clip},x,soon\n", 1, "column 'start': row 1: expected seconds, got 'soon'"),
    "end.csv": ("id,path,label,start,end\na,{clip},x,3,2\n", 1, "row 1 ends at 2 s, but starts at 3 s"),
    "split.csv": ("id,path,label,split\na,{clip},x,trian\n", 1, "no row of the split 'train'; its splits are: trian. "
                  "Did you mean 'trian'? Rows without a split are of train"),
    "missing.csv": (HEADER + "{rows}x,gone0.mp4,a,\ny,gone1.mp4,b,\n", 1, "split train: 2 of 14 named files are "
                    "missing, more than the 1.00% that data.max_missing allows:\n  ...gone0.mp4: there is no such file"
                    "\n  ...gone1.mp4: there is no such file\nCheck data.root, empty the cells of files that you do "
                    "not have, or raise data.max_missing (mbt eval, predict, embed: --max-missing)"),
}  # fmt: skip
RECIPES = {
    "open.yaml": ("modalities: [rgb\n", "not valid YAML: while parsing a flow sequence in ..., line 1, column 13: ..."),
    "tag.yaml": ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML: could not determine a constructor for "
                 "the tag 'tag:yaml.org,2002:python/object/apply:os.system' in ..., line 1, column 4: ..."),
    "binary.yaml": (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: ..."),
    "list.yaml": ("- a\n", "expected KEY: VALUE at the top, got list"),
    "names.yaml": ("modalities: [rgb]\n", "modalities: expected NAME: settings, got ['rgb']"),
    "value.yaml": ("modalities: {rgb: 3}\n", "modalities.rgb: expected settings as KEY: VALUE, got 3"),
    "endless.yaml": ("data: &d {root: *d}\n", "not valid YAML: an alias stands within what it is an alias of, in ..., "
                     "line 1, column 7: ..."),
    "bomb.yaml": ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(20)),
                  "not valid YAML: its aliases make more than 100,000 values of it"),
    "deep.yaml": ("a: " + "[" * 2000, "not valid YAML: too many brackets within brackets"),
    "date.yaml": ("a: 2020-02-31\n",
                  "not valid YAML: a value is not what it is written or tagged as: day is out of range for month"),
    "empty.yaml": ("a: !!float\n", "not valid YAML: a value is not what it is written or tagged as: string index..."),
}  # fmt: skip
FLAGS = {
    # arguments of `mbt train`: what is said
    "": f"--modalities: missing; known: {KINDS}. For example: --modalities rgb,...",
    "--modalities ,": "--modalities ',': expected NAME or NAME=KIND, separated by commas",
    "--modalities rbg": f"unknown modality 'rbg'. Did you mean 'rgb'? Known: {KINDS}",
    "--modalities rgb,rgb": "--modalities 'rgb,rgb': 'rgb' comes twice; give instances names, e.g. left=rgb,right=rgb",
    "--modalities Rgb": "--modalities: the name 'Rgb' is not of the form [a-z][a-z0-9_]*",
    "--modalities label=rgb": "modalities: 'label' is a column of every manifest; choose another name, e.g. my_label",
    "--modalities keys=rgb": "the name 'keys' is reserved; choose another one for this modality or task",
    "--modalities rgb --data nowhere.csv": "--data nowhere.csv: no such file or folder",
    "--modalities rgb --recipe smal": "unknown recipe 'smal'. Did you mean 'small'? Known: ...; or give a YAML file",
    "--modalities rgb --recipe nope.yaml": "--recipe nope.yaml: no such file",
    "--modalities rgb --device gpu": "--device gpu: expected auto, cpu, cuda or mps...",
    "--modalities rgb --parallel dpp": "--parallel dpp: expected ddp or fsdp",
    "--modalities rgb --precision 16": "train.precision: input should be '32' or 'bf16', got '16'...",
    "--modalities rgb --tune heads": "train.tune: input should be 'all', 'fused', 'head' or 'auto', got 'heads'. "
    "Did you mean 'head'?",
    "--modalities rgb --out used": "used exists and is not empty; go on with it by --resume used, or choose another "
    "--out",
}


def matches(text, pattern):
    """Whether a message is as expected; `...` stands for anything in one line."""
    wanted = ".*".join(re.escape(part) for part in pattern.split("..."))
    return re.fullmatch(wanted, text.rstrip("\n")) is not None


def assert_said(done, code, message):
    assert done.code == code, done
    assert matches(done.err, f"Error: {message}"), f"\n{done.err}expected\nError: {message}"
    assert done.out == ""


@pytest.fixture
def here(demo, tmp_path):
    """The working folder, with a good manifest in it."""
    train, test = clips_of(demo, "train"), clips_of(demo)
    rows = "".join(f"c{i},{train[i]},{'ab'[i % 2]},train\n" for i in range(12))
    tests = "".join(f"t{i},{test[i]},{'ab'[i % 2]},test\n" for i in range(4))
    (tmp_path / "good.csv").write_text(HEADER + rows + tests)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    return tmp_path, str(train[0]), rows


def train(*arguments):
    return mbt("train", "-q", *arguments)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(here, setting):
    done = train("--data", "good.csv", "--modalities", "rgb", "--set", setting)
    assert_said(done, 2, SETTINGS[setting])


@pytest.mark.parametrize("setting", AFTER_A_LOOK)
def test_settings_that_do_not_fit_the_data_or_the_model(here, setting):
    sets = [x for s in tiny_sets("rgb", setting) for x in ("--set", s)]
    if setting.startswith("model.backbone="):
        sets = ["--set", setting]
    path = here[0] / "good.csv"
    done = train("--data", path, "--modalities", "rgb", "--out", "out", *sets)
    assert_said(done, 2, AFTER_A_LOOK[setting].replace("good.csv: data", f"{path}: data"))
    assert not (here[0] / "out").exists()


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(here, name):
    folder, clip, rows = here
    content, code, message = MANIFESTS[name]
    if isinstance(content, str):
        content = content.replace("{clip}", clip).replace("{rows}", rows).encode()
    (folder / name).write_bytes(content)
    (folder / "listed.classes.json").write_text('{"label": ["a", "b"]}')
    single = ["model.head.task=single"] if name == "several.csv" else []
    sets = [x for s in tiny_sets("rgb", *single) for x in ("--set", s)]
    done = train("--data", folder / name, "--modalities", "rgb", "--out", "out", *sets)
    colon = "" if message.startswith(" ") else ": "
    for file in ("noclass.classes.json", "listed.classes.json"):
        message = message.replace(file, str(folder / file))
    assert_said(done, code, f"{folder / name}{colon}{message}")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("content", "message"), [
    ('{"label": ["a"', "not valid JSON: Expecting ',' delimiter: line 1 column 15 (char 14)"),
    ('["a", "b"]', 'expected {"TASK": ["first class", "second class", ...]}, got list'),
    ('{"label": ["a", "b", "a"]}', "task 'label': the class 'a' is there twice"),
])  # fmt: skip
def test_classes(here, content, message):
    (here[0] / "good.classes.json").write_text(content)
    done = train("--data", "good.csv", "--modalities", "rgb")
    assert_said(done, 1, f"{here[0] / 'good.classes.json'}: {message}")


@pytest.mark.parametrize(("layout", "message"), [
    ((), "cats: no files in sub-folders; expected cats/[train|val|test/]CLASS/file"),
    (("a/", "b/"), "cats: no files in sub-folders; expected cats/[train|val|test/]CLASS/file"),
    (("a/deep/",), "cats/a/deep: a folder inside the folder of class 'a'; expected cats/[train|val|test/]CLASS/file"),
])  # fmt: skip
def test_folders_of_classes(here, layout, message):
    for name in ("", *layout):
        (here[0] / "cats" / name).mkdir(parents=True, exist_ok=True)
    done = train("--data", "cats", "--modalities", "rgb")
    assert_said(done, 1, message.replace("cats", str(here[0] / "cats")))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_files(here, name):
    content, message = RECIPES[name]
    (here[0] / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_said(train("--recipe", name), 2, f"{name}: {message}")


@pytest.mark.parametrize("flags", FLAGS)
def test_flags(here, flags):
    data = [] if "--data" in flags or "--recipe" in flags else ["--data", here[0] / "good.csv"]
    assert_said(train(*data, *flags.split()), 2, FLAGS[flags])


@pytest.mark.parametrize(("command", "message"), [
    ("train --devices 0", "Invalid value for '--devices': ..."),
    ("train --sett a=b", "No such option: --sett..."),
    ("train surplus", "Got unexpected extra argument... (surplus)"),
    ("eval", "Missing argument '...'."),
    ("eval RUN --views 0", "Invalid value for '--views': ..."),
    ("eval RUN --views some", "Invalid value for '--views': ..."),
    ("predict RUN FILE --top 0", "Invalid value for '--top': ..."),
    ("embed RUN", "Missing option '--out'."),
])  # fmt: skip
def test_usage(command, message):
    done = mbt(*command.split())
    assert done.code == 2
    assert "Usage: mbt" in done.err
    assert matches(done.err.splitlines()[-1], f"Error: {message}")


# runs


@pytest.fixture
def copy(run, tmp_path):
    """A copy of a run, to be spoilt."""
    return shutil.copytree(run.path, tmp_path / "copy")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


NOT_SAFE = "no safetensors file, or a truncated one: Error while deserializing header: ..."
SPOILT = {
    # how: (what is done to the folder, exit code, what is said of it)
    "no model": (lambda p: (p / "model.safetensors").unlink(), 1,
                 "copy has no model.safetensors yet: its training has not reached an evaluation"),
    "truncated model": (lambda p: truncate(p / "model.safetensors"), 1, f"copy/model.safetensors: {NOT_SAFE}"),
    "pickled model": (lambda p: (p / "model.safetensors").write_bytes(pickle.dumps({"w": 1})), 1,
                      f"copy/model.safetensors: {NOT_SAFE}"),
    "no config.json": (lambda p: (p / "config.json").unlink(), 1,
                       "copy/config.json: cannot be read: No such file or directory"),
    "open config.json": (lambda p: (p / "config.json").write_text("{"), 1,
                         "copy/config.json: not valid JSON: Expecting property name enclosed in double quotes: ..."),
    "empty config.json": (lambda p: (p / "config.json").write_text("[]"), 1,
                          "copy/config.json: expected the keys model and classes of a saved model"),
    "wrong config.json": (lambda p: (p / "config.json").write_text('{"model": {"modalities": {"rgb": {"sise": 3}}}}'),
                          1, "copy/config.json: modalities.rgb.sise: unknown key. Did you mean 'size'? Known ..."),
    "no config.yaml": (lambda p: (p / "config.yaml").unlink(), 2, "copy is no run folder: it has no config.yaml"),
    "open config.yaml": (lambda p: (p / "config.yaml").write_text("train: ["), 2,
                         "copy/config.yaml: not valid YAML: ..."),
    "wrong config.yaml": (lambda p: (p / "config.yaml").write_text("modalities: {rgb: {}}\ntrian: {}"), 2,
                          "copy/config.yaml: trian: unknown key. Did you mean 'train'? Known here: ..."),
    "no folder": (shutil.rmtree, 2, "copy: no such run folder"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_runs(copy, how):
    spoil, code, message = SPOILT[how]
    spoil(copy)
    for arguments in (["eval", copy], ["predict", copy, "x.mp4"], ["embed", copy, "--out", "e.npy"]):
        assert_said(mbt(*arguments), code, message.replace("copy", str(copy)))


def test_a_pickle_is_never_opened(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath, ("sprung",))

    for name in ("model.safetensors", "state/state.safetensors"):
        (copy / name).write_bytes(pickle.dumps(Trap()))
    assert mbt("eval", copy).code == 1
    state = f"{copy}/state/state.safetensors"
    message = f"{state}: not a saved state, or a damaged one (...); delete it to start anew"
    assert_said(mbt("train", "--resume", copy, "-q"), 1, message)


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--resume", "nowhere"], 2, "nowhere: no such run folder"),
    (["--resume", "used"], 2, "used is no run folder: it has no config.yaml"),
    (["--resume", "used", "--tune", "head", "--set", "a=b"], 2,
     "--resume goes on with a run as it was configured; leave out --set, --tune..."),
    (["--resume", "used", "--out", "other"], 2, "--resume goes on with a run as it was configured; leave out --out..."),
])  # fmt: skip
def test_resume(here, arguments, code, message):
    assert_said(train(*arguments), code, message)


# eval, predict, embed, data


TASKED = "id,path,label.kind,label.sum,split\n"
EVALUATED = {
    "--split tset": (2, "--split: DEMO: unknown split 'tset'. Did you mean 'test'? Known: test, train, val"),
    "--data nowhere.csv": (2, "--data nowhere.csv: no such file or folder"),
    "--device tpu": (2, "--device tpu: expected auto, cpu, cuda or mps..."),
    "--data good.csv": (1, "good.csv: the classes are those of the model: unknown task 'label'. Known: kind, sum"),
    "--data class.csv": (1, "class.csv: row 1: 'disc+tune' is no class of task 'kind'. Did you mean 'disc+tone'? Its 9 "
                         "classes are those of the model"),
    "--data nosplit.csv": (2, "nosplit.csv has neither a test nor a val split; give --split; it has: train"),
    "--data unlabelled.csv": (1, "unlabelled.csv: 1 of 1 rows of the test split have no label of task 'kind', e.g. "
                              "'a'; fill them in, or give these rows another split"),
    "--data gone.csv": (1, "gone.csv: split test: 1 of 2 named files are missing, more than the 1.00% that "
                        "data.max_missing allows:\n  ...gone.mp4: there is no such file\nCheck data.root, ..."),
    "--data corrupt.csv": (1, "corrupt.csv: split test: 0 of 2 named files are missing and 1 cannot be read, more than "
                           "the 1.00% that data.max_missing allows:\n  ...corrupt.mp4: cannot open it: ...\nCheck ..."),
}  # fmt: skip


@pytest.mark.parametrize("flags", EVALUATED)
def test_eval(here, run, demo, flags):
    folder, clip, _ = here
    (folder / "corrupt.mp4").write_bytes(b"nothing")
    for name, rows in {
        "class": f"a,{clip},disc+tune,0,test\n",
        "nosplit": f"a,{clip},disc+tone,0,\n",
        "unlabelled": f"a,{clip},,0,test\n",
        "gone": f"a,{clip},disc+tone,0,test\nb,gone.mp4,disc+tone,0,test\n",
        "corrupt": f"a,{clip},disc+tone,0,test\nb,corrupt.mp4,disc+tone,0,test\n",
    }.items():
        (folder / f"{name}.csv").write_text(TASKED + rows)
    code, message = EVALUATED[flags]
    assert_said(mbt("eval", run.path, *flags.split()), code, message.replace("DEMO", str(demo)))


def test_predict(here, run, demo):
    folder, clip, _ = here
    (folder / "corrupt.mp4").write_bytes(b"nothing")
    (folder / "void").mkdir()
    done = mbt("predict", run.path, "corrupt.mp4", clip, "gone.mp4", "void", "--top", 1)
    assert done.code == 1
    assert done.err.splitlines() == [
        "corrupt.mp4: cannot open it: Invalid data found when processing input",
        "gone.mp4: there is no such file",
        "void: no file in this folder",
        "Error: 3 of 4 could not be classified",
    ]
    assert done.out.startswith(f"{clip}  (rgb + audio)\n")
    for every in ("0", "nan", "-1"):
        done = mbt("predict", run.path, clip, "--every", every)
        assert_said(done, 2, f"--every {every}: expected a positive number of seconds")


def test_embed(here, run):
    message = "--out e.txt: expected a file that ends in .parquet, .npy or .npz"
    assert_said(mbt("embed", run.path, "--data", "good.csv", "--out", "e.txt"), 2, message)
    message = "--data nowhere.csv: no such file or folder"
    assert_said(mbt("embed", run.path, "--data", "nowhere.csv", "--out", "e.npy"), 2, message)
    message = "--split: good.csv: unknown split 'val'. Known: test, train"
    assert_said(mbt("embed", run.path, "--data", "good.csv", "--split", "val", "--out", "e.npy"), 2, message)


def test_data(here):
    folder, clip, _ = here
    (folder / "gone.csv").write_text(f"id,path,label\na,{clip},x\nb,gone.mp4,x\n")
    assert_said(mbt("data", "check", "nowhere.csv"), 2, "--data nowhere.csv: no such file or folder")
    done = mbt("data", "check", "good.csv", "--modalities", "rbg")
    assert_said(done, 2, f"unknown modality 'rbg'. Did you mean 'rgb'? Known: {KINDS}")
    assert mbt("data", "check", "gone.csv", "-m", "rgb").code == 0
    strict = mbt("data", "check", "gone.csv", "-m", "rgb", "--strict", "--json")
    assert (strict.code, strict.err) == (1, "Error: 1 files are missing or unreadable\n")
    assert sum(split["modalities"]["rgb"]["missing"] for split in json.loads(strict.out)["splits"].values()) == 1


def test_there_are_many_of_them():
    tables = (SETTINGS, AFTER_A_LOOK, MANIFESTS, RECIPES, FLAGS, SPOILT, EVALUATED)
    assert sum(map(len, tables)) > 100
