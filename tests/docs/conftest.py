"""The fixture that runs a page."""

import sys
import warnings

import pytest

from pages import DOCS, Page


@pytest.fixture
def run_page(tmp_path, monkeypatch):
    """Runs a page of the documentation in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    run = []

    def start(name):
        run.append(Page(DOCS / name))
        run[-1].run()
        return run[-1]

    yield start
    for page in run:
        page.forget()
