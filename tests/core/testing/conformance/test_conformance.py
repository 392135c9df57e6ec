"""The conformance suite passes what is sound and names what is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flawed
from mbt_core import ConfigError, registry
from mbt_core.testing.conformance import check_kind
from mbt_core.testing.conformance.case import Case
from mbt_core.testing.conformance.suite import CHECKS

TESTS = Path(flawed.__file__).parents[1]

FAULTS = {
    "WrongKind": ("contract", r"WrongKind\.kind is 'soundly', but the spec says 'wrongkind'"),
    "HeavyConfig": ("imports", r"importing flawed\.heavy imports torch"),
    "NoHelp": ("help", "no help for gain; write a docstring"),
    "EmptyCard": ("card", "the card's units, normalisation are empty"),
    "ForgetfulFit": ("fit", "fit leaves channels at 'auto'"),
    "FragileFit": ("fit", r"fit fails at one clip that cannot be read \(.*unreadable\.npy: .*No such file"),
    "TrainingShape": ("samples", r"training of file 0 is \[3, \d+\], evaluation gives \[3, 320\]; give all one shape"),
    "BlankType": ("samples", "blank is int16, evaluation gives float32"),
    "RaggedBatch": ("collate", r"a batch of 4 is \[12, 320\], expected \[4, \.\.\.\]"),
    "GlobalRandom": ("determinism", "equal generators give different samples; draw from the `rng`"),
    "GlobalCoin": ("determinism", "equal generators give different samples; draw from the `rng`"),
    "ChangesClip": ("determinism", "a second read of one clip gives another sample"),
    "NotPicklable": ("determinism", "it cannot be sent to a worker process"),
    "RandomEvaluation": ("evaluation", "read is random where rng is None"),
    "RandomPreprocessor": ("preprocessor", "the preprocessor is random; draw in read"),
    "TrainedPreprocessor": ("preprocessor", r"the preprocessor has parameters \(weight, bias\)"),
    "BatchStatistics": ("padding", "alone: statistics of the batch enter it"),
    "WrongGrid": ("grid", r"19 tokens, but the grid \(20,\) has 20 places"),
    "MaskForgotten": ("padding", "alone: padding, or the batch, enters it"),
    "MaskInverted": ("grid", "a sample without any real token"),
    "NoGradient": ("gradients", "no gradient reaches the tokenizer's weight"),
    "WrongAdapt": ("adapt", r"adapt gives 'weight' as \[16, 3, 16, 16\], the tokenizer's is \[16, 3, 16\]"),
    "FloatPicture": ("pictures", r"a picture that is float32 \[3, 320\], expected uint8 \[H, W, 3\]"),
    "NothingToSee": ("pictures", "draw shows nothing"),
    "RaisesInRead": ("samples", r"RuntimeError: no such sensor \(.*modalities\.py:\d+\)"),
    "NotThere": ("contract", "flawed.modalities:NotThere cannot be loaded: AttributeError: module 'flawed"),
}
FOLLOW = {
    "ForgetfulFit": None,  # nothing works
    "WrongKind": None,  # of another kind
    "TrainingShape": {"samples", "preprocessor"},
    "RaggedBatch": None,
    "RaisesInRead": None,
    "NotThere": None,
    "RandomEvaluation": {"evaluation", "determinism"},
    "RandomPreprocessor": None,
    "TrainedPreprocessor": None,  # a fresh one each time
    "BatchStatistics": {"padding", "absence"},
    "WrongGrid": None,
    "MaskForgotten": {"padding", "absence"},
    "MaskInverted": None,
}
"""What a flaw breaks besides; None: it does not matter what."""


@pytest.fixture(scope="module", autouse=True)
def _registered():
    registry().register(flawed, "flawed")
    yield
    registry().unregister(flawed)


@pytest.mark.parametrize("kind", ["sound", "soundsequence"])
def test_a_sound_kind_passes(kind):
    results = check_kind(kind)
    assert [r.check for r in results] == list(CHECKS)
    assert [(r.check, r.message) for r in results if r.status != "ok"] == []


def test_settings_are_those_of_the_kind(tmp_path):
    assert not [r for r in check_kind("sound", {"patch": 8, "channels": 2}) if r.status != "ok"]
    case = Case("sound", {"channels": 2}, tmp_path)
    assert case.modality.tokenizer(4).channels == 2
    with pytest.raises(ConfigError, match=r"sound\.patsh: unknown key\. Did you mean 'patch'\?"):
        check_kind("sound", {"patsh": 8})
    with pytest.raises(ConfigError, match="unknown modality 'sond'. Did you mean 'sound'?"):
        check_kind("sond")


@pytest.mark.parametrize("name", FAULTS)
def test_every_flaw_is_named(name):
    check, message = FAULTS[name]
    results = {result.check: result for result in check_kind(name.lower())}
    assert results[check].status == "fault"
    assert re.search(message, results[check].message), results[check].message
    allowed = FOLLOW.get(name, {check})
    wrong = {r.check for r in results.values() if r.status != "ok"}
    assert allowed is None or wrong <= allowed


def test_flaws_are_told_once():
    results = check_kind("raisesinread")
    assert [r.check for r in results if r.status == "fault"] == ["samples"]
    skipped = [r for r in results if r.status == "skipped"]
    assert skipped
    assert all(r.message == "not possible, see samples" for r in skipped)


def test_every_flaw_has_its_test():
    assert set(FAULTS) == set(flawed.CLASSES) - {"Sound", "SoundSequence"}


def test_a_kind_may_write_its_own_example(tmp_path, monkeypatch):
    from flawed.modalities import Sound

    def example(cls, config, path, rng):
        np.save(path.with_suffix(".npy"), rng.normal(size=(5, 400)).astype(np.float32))
        return path.with_suffix(".npy")

    monkeypatch.setattr(Sound, "example", classmethod(example))
    case = Case("sound", {}, tmp_path)
    assert case.config.channels == 5
    assert case.samples[0].shape == (5, 320)
    assert not np.array_equal(case.samples[0], case.samples[1])


AUTHOR = """
import pytest
import flawed
from mbt_core import registry
from mbt_core.testing.conformance import ConformanceTests

if "flawed" not in dict(registry().manager.list_name_plugin()):
    registry().register(flawed, "flawed")

class TestSound(ConformanceTests):
    kind = "sound"
    settings = {"patch": 32}

    def test_tokens(self, mbt_case):
        assert mbt_case.modality.tokenizer(8).grid == (10,)

class TestFlawed(ConformanceTests):
    kind = "nothingtosee"
"""


@pytest.mark.slow
def test_the_suite_is_a_pytest_plugin(tmp_path):
    (tmp_path / "test_author.py").write_text(AUTHOR)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "mbt_core.testing.conformance.pytest_plugin",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "test_author.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"1 failed, {2 * len(CHECKS)} passed" in done.stdout, done.stdout
    assert "TestFlawed::test_conformance[pictures]" in done.stdout
    assert "draw shows nothing" in done.stdout


def test_the_pytest_plugin_costs_nothing_unused():
    code = "import sys, mbt_core.testing.conformance.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydantic", "numpy", "av"} & set(done.stdout.split())
