"""The floors of the house: imports go down only, light modules stay light, modules and functions stay short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mbt_core

ROOT = Path(mbt_core.__file__).parent
REPOSITORY = Path(__file__).parents[2]
FLOORS = (
    {"errors", "version"},
    {"io", "plugins"},
    {"config", "media"},
    {"modality"},
    {"data"},
    {"model"},
    {"distributed", "evaluate", "pretrained", "testing"},
    {"training"},
    {"analysis", "run"},
    {"deploy", "sweep"},
)
FOR_PLUGINS = ("config", "data.manifest", "errors", "media", "modality", "model.fusion", "plugins.hookspecs", "version")
KINDS = {"rgb", "audio", "flow", "signal", "spectrogram"}
SOURCES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, types: bool = True) -> Iterator[str]:
    """Modules of `mbt_core` (without that name) that a file imports, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = set()
    if not types:
        guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        hidden = {id(inner) for node in guarded for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (n.removeprefix("mbt_core.") for n in names if n.startswith("mbt_core."))
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("mbt_core.") for a in node.names if a.name.startswith("mbt_core."))


def test_imports_go_down_only():
    floor_of = {unit: number for number, units in enumerate(FLOORS) for unit in units}
    wrong = []
    for path in SOURCES:
        unit = name_of(path).partition(".")[0]
        if not unit:  # the package itself loads its public names lazily
            continue
        assert unit in floor_of, f"{unit} has no floor"
        for imported in imports(path):
            other = imported.partition(".")[0]
            if other != unit and not (other in floor_of and floor_of[other] < floor_of[unit]):
                wrong.append(f"{name_of(path)} imports {imported}")
    assert wrong == []


def test_no_circles():
    modules = {name_of(path) for path in SOURCES} - {""}
    needs = {}
    for path in SOURCES:
        found = set()
        for imported in imports(path, types=False):
            found.add(imported if imported in modules else imported.rpartition(".")[0])
        needs[name_of(path)] = found & modules - {name_of(path)}
    needs.pop("")
    while free := [name for name, wanted in needs.items() if not wanted & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs


def test_plugins_stand_on_the_contract_only():
    wrong = []
    for path in (REPOSITORY / "plugins").rglob("*.py"):
        for imported in imports(path):
            public = imported in mbt_core.__all__
            if not public and not any(f"{imported}.".startswith(f"{allowed}.") for allowed in FOR_PLUGINS):
                wrong.append(f"{path.relative_to(REPOSITORY)} imports mbt_core.{imported}")
    assert wrong == []


def test_the_core_imports_neither_plugins_nor_cli():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if n and n.startswith("mbt_") and n.partition(".")[0] != "mbt_core"], path


def test_the_core_names_no_modality():
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in KINDS:
                wrong.append(f"{name_of(path)}:{node.lineno} {node.value!r}")
    assert wrong == []


def test_modules_and_functions_are_short():
    wrong = []
    folders = [ROOT, REPOSITORY / "plugins", REPOSITORY / "cli"]
    for path in {file for folder in folders for file in folder.rglob("*.py")}:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 500:
            wrong.append(f"{path} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                wrong.append(f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert wrong == []


@pytest.mark.parametrize(
    ("imported", "unwanted"),
    [
        (
            "mbt_core, mbt_core.plugins, mbt_core.errors",
            {"torch", "pydantic", "numpy", "timm"},
        ),
        ("mbt_core, mbt_core.config, mbt_core.config.recipes", {"torch", "timm", "av", "pyarrow"}),
    ],
)
def test_light_modules_are_light(imported, unwanted):
    code = f"import sys, {imported}; mbt_core.plugins.registry().modalities; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unwanted & {name.partition(".")[0] for name in done.stdout.split()}


def test_every_public_name_is_there():
    import importlib

    for name in mbt_core.__all__:
        where = mbt_core._WHERE[name]
        assert getattr(mbt_core, name) is getattr(importlib.import_module(f"mbt_core.{where}"), name)
    assert set(mbt_core.__all__) == set(mbt_core._WHERE) == set(dir(mbt_core))
    with pytest.raises(AttributeError, match="module 'mbt_core' has no attribute 'MTB'"):
        mbt_core.MTB  # noqa: B018
