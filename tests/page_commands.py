"""The commands of the pages: every line of a block that a reader would type.

A line that ends in a backslash goes on in the next one, and commands that `&&` joins are several.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "")
PROGRAMS = ("mbt", "pip", "python", "python3", "pytest", "torchrun", "srun", "curl", "wget", "hf", "rm", ".")


class Command(NamedTuple):
    """A command of a page."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of all blocks in their order. In a block without a language, lines of other programs are output."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        language, _, more = block[1].partition(" ")
        if language not in SHELLS or more:
            continue
        first = text[: block.start()].count("\n") + 2
        joined = re.sub(r"\\\n", lambda _: "\\", block[2])  # one line, and the numbers of those after it stay close
        for number, printed in enumerate(joined.splitlines(), first):
            line = printed.replace("\\", " ").removeprefix("$ ")
            if language == "" and not re.match(rf"(\w+=\S+ )*({'|'.join(map(re.escape, PROGRAMS))}) ", line):
                continue
            words = shlex.split(line, comments=True)
            for part in _parts(words):
                yield Command(page.name, number, language, tuple(part))


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            part.append(word)
        elif part:
            yield part
            part = []
