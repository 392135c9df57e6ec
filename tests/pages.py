"""Runs the code blocks of a page of the documentation, in its order, in the current folder.

- a block with ``file=PATH`` is written to that file;
- other ``python`` blocks are executed, all in one namespace;
- the lines of ``sh`` blocks are run: ``mbt ...`` in this process, ``pip install -e FOLDER`` as far as Python sees it;
- blocks without a language are for reading only: the page's own test runs the commands in them.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from mbt_cli.main import app
from mbt_core import registry
from mbt_core.plugins import registry as cached_registry

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Page:
    """A page and what running it left.

    Args:
        path: of the page.
        names: what its python blocks defined.
        outputs: command -> stdout.
        installed: packages that it installed.
    """

    path: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    outputs: dict[str, str] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)

    def run(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            language, file, code = block.groups()
            line = text[: block.start()].count("\n") + 1
            if file:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_text(code, encoding="utf-8")
            elif language == "python":
                exec(compile("\n" * line + code, str(self.path), "exec"), self.names)
            else:
                assert language == "sh", f"{self.path}:{line}: a block of {language!r} without a file"
                for command in code.splitlines():
                    self._command(command, f"{self.path}:{line}")

    def _command(self, command: str, where: str) -> None:
        program, *words = shlex.split(command)
        if (program, *words[:2]) == ("pip", "install", "-e"):
            self._install(Path(words[2]))
            return
        assert program == "mbt", f"{where}: {command}"
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{where}: {command}\n{done.output}\n{done.exception!r}"
        self.outputs[command] = done.stdout

    def _install(self, folder: Path) -> None:
        """An entry on Python's path and the distribution's entry points, as an editable install makes them."""
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        info = folder / f"{project['project']['name']}.dist-info"
        info.mkdir()
        entries = project["project"]["entry-points"]["mbt"]
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[mbt]\n{lines}\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 0.1.0\n")
        sys.path.insert(0, str(folder.absolute()))
        self.installed += project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        cached_registry.cache_clear()
        assert set(entries) <= dict(registry().manager.list_name_plugin()).keys()

    def forget(self) -> None:
        """Undoes what it installed; the path is the caller's to restore."""
        for name in [n for n in sys.modules if n.partition(".")[0] in self.installed]:
            del sys.modules[name]
        cached_registry.cache_clear()
