"""What users may rely on: the commands and their options, frozen; help; and how light the command line is."""

import json
import re
import subprocess
import sys

import pytest
import typer.main

from mbt_cli.main import app
from mbt_core.plugins import registry
from small import mbt

SURFACE = {
    "": "--debug --help --version",
    "train": "--modalities --recipe --data --pretrained --set --out --resume --device --devices --nodes --parallel"
    " --precision --show-init --tune --cache-lower --folds --quiet --help",
    "eval": "RUN --data --split --views --subsets --rows --missing --device --json --help",
    "predict": "RUN FILES --top --every --device --json --help",
    "explain": "RUN FILES --out --method --label --task --top --device --help",
    "report": "RUN --help",
    "bench": "--recipe --set --modalities --device --batch-size --seconds --plot --json --help",
    "embed": "RUN --out --data --split --views --device --help",
    "compare": "--over --preset --seeds --modalities --recipe --data --set --out --device --dry-run --json --quiet",
    "transfer": "--init --modalities --data --seeds --fractions --tune --cache-lower --recipe --set --out --device"
    " --dry-run --json",
    "convert scenic": "CHECKPOINT --out --labels --set --help",
    "convert onnx": "RUN --out --modalities --preprocessed --help",
    "convert torch-export": "RUN --out --modalities --preprocessed --help",
    "serve": "RUN --host --port --max-bytes --max-seconds --timeout --readers --device --help",
    "data demo": "--out --help",
    "data build": "NAME --annotations --media --out --subset --seed --json --help",
    "data pack": "DATA --out --fps --part --help",
    "data stats": "DATA --modalities --recipe --set --split --limit --json --help",
    "data check": "DATA --modalities --set --strict --json --help",
    "recipes list": "--help",
    "recipes show": "NAME --help",
    "plugins list": "--json --help",
    "plugins new": "NAME --help",
    "plugins check": "KIND --set --json --help",
}
"""Command -> its arguments and options. What is here stays; more may come."""


def command(path):
    """The click command at a path like "data check"."""
    found = typer.main.get_command(app)
    for name in path.split():
        context = typer.Context(found)
        _, found, _ = found.resolve_command(context, [name])
    return found


def names_of(found):
    context = typer.Context(found)
    names = set()
    for parameter in found.get_params(context):
        long = [option for option in parameter.opts if option.startswith("--")]
        names.add(long[0] if long else parameter.name.upper())
    return names


@pytest.mark.parametrize("path", SURFACE)
def test_commands_keep_their_options(path):
    missing = set(SURFACE[path].split()) - names_of(command(path))
    assert not missing


def test_every_command_is_listed_and_has_help():
    done = mbt("--help")
    assert done.code == 0
    for name, provided in registry().commands.items():
        assert re.search(rf"^  {name} +{re.escape(provided.spec.help[:20])}", done.out, re.MULTILINE), name
        own = mbt(name, "--help")
        assert own.code == 0
        assert own.out.startswith(f"Usage: mbt {name} ")
        assert "--help" in own.out
        assert own.err == ""


@pytest.mark.parametrize("path", [path for path in SURFACE if path])
def test_every_option_is_explained(path):
    found = command(path)
    for parameter in found.get_params(typer.Context(found)):
        assert getattr(parameter, "help", None), f"{path}: {parameter.name}"
    assert found.help


@pytest.mark.parametrize("group", ["", "data", "recipes", "plugins", "convert"])
def test_a_group_alone_shows_its_help(group):
    done = mbt(*group.split())
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_version():
    from mbt_core.version import __version__

    assert mbt("--version").out == f"mbt-fusion {__version__}\n"


def modules_after(*arguments):
    """What a process has imported after a command; its exit code and stderr."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.__stdout__))\n"
        "from mbt_cli.main import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return {name.partition(".")[0] for name in done.stdout.split()}, done.returncode, done.stderr


HEAVY = {"torch", "timm", "lightning_fabric", "torchvision", "torchaudio", "av", "numpy"}


def test_help_imports_next_to_nothing():
    modules, code, _ = modules_after("--help")
    assert code == 0
    assert not modules & {*HEAVY, "pydantic", "yaml", "pyarrow"}


@pytest.mark.slow
def test_reading_processes_of_the_service_do_not_wait_for_what_trains():
    unwanted = "{'lightning_fabric', 'torchmetrics'}"
    code = f"import sys, mbt_core.deploy.serve.reading; sys.exit(' '.join({unwanted} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr.strip()


@pytest.mark.parametrize("arguments", [
    ("train", "--modalities", "rgb", "--set", "train.stepz=3"),
    ("train", "--modalities", "rbg"),
    ("train", "--modalities", "rgb", "--data", "nowhere.csv"),
    ("train", "--recipe", "smal"),
    ("train", "--resume", "nowhere"),
    ("recipes", "list"),
], ids=" ".join)  # fmt: skip
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    modules, code, error = modules_after(*arguments)
    assert code == (0 if arguments[0] == "recipes" else 2), error
    assert not modules & HEAVY


def test_help_of_a_command_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv[0] = 'mbt'\n"
        "from mbt_cli.main import app\n"
        "from mbt_core.plugins import registry\n"
        "for name in registry().commands:\n"
        "    try: app([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "    if 'torch' in sys.modules: sys.exit(f'mbt {name} --help imports torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_debug_shows_where_and_nothing_else_does(tmp_path, monkeypatch):
    from mbt_core.config import recipes
    from mbt_core.errors import ConfigError

    monkeypatch.setattr(recipes, "read_recipe", lambda name: 1 / 0)
    from typer.testing import CliRunner

    plain = CliRunner().invoke(app, ["train", "--modalities", "rgb"])
    assert plain.exit_code == 1
    assert plain.stderr == (
        "Error: this should not have happened: ZeroDivisionError: division by zero\nmbt --debug train ... shows where\n"
    )
    shown = CliRunner().invoke(app, ["--debug", "train", "--modalities", "rgb"])
    assert isinstance(shown.exception, ZeroDivisionError)
    monkeypatch.undo()
    known = CliRunner().invoke(app, ["--debug", "train", "--modalities", "rbg"])
    assert isinstance(known.exception, ConfigError)


def test_no_such_command_and_option():
    done = mbt("trian")
    assert (done.code, done.err) == (2, "Error: no command 'trian'. Did you mean 'train'? See: mbt --help\n")
    done = mbt("data", "chek")
    assert done.code == 2
    assert "No such command 'chek'" in done.err
    done = mbt("train", "--modalitys", "rgb")
    assert done.code == 2
    assert "No such option: --modalitys" in done.err


def test_recipes(tmp_path):
    done = mbt("recipes", "list")
    names = [line.split()[0] for line in done.out.splitlines()[3:] if line.strip()]
    assert names == sorted(registry().recipes)
    assert {"demo", "small"} <= set(names)
    for name in ("demo", "small"):
        assert mbt("recipes", "show", name).out == registry().recipes[name].spec.path.read_text()
    (tmp_path / "own.yaml").write_text("# mine\nmodalities: {rgb: {}}\n")
    assert mbt("recipes", "show", tmp_path / "own.yaml").out == "# mine\nmodalities: {rgb: {}}\n"


def test_plugins_list():
    rows = json.loads(mbt("plugins", "list", "--json").out)
    assert {"what", "kind", "plugin", "version", "from", "missing"} == rows[0].keys()
    kinds = [row["kind"] for row in rows if row["what"] == "modality"]
    assert kinds == sorted(registry().modalities)
    table = mbt("plugins", "list").out
    assert all(row["kind"] in table for row in rows)


def test_a_reader_that_leaves_is_no_error():
    code = "from mbt_cli.main import main; main()"
    command = f"{sys.executable} -c '{code}' plugins list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
