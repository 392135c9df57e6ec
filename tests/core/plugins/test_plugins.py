"""The registry: what breaks in one plugin costs one warning, and what cannot be is said."""

import sys
import types
import warnings
from importlib.metadata import EntryPoint

import pytest

import mbt_core as mbt
from mbt_core import plugins
from mbt_core.plugins import PluginWarning
from mbt_core.plugins.hookspecs import LoggerSpec
from mbt_core.training import resolve


def modality(kind, **more):
    return mbt.ModalitySpec(kind, "toy.config:AlphaConfig", "toy.modalities:Alpha", **more)


def plugin(*kinds, **more):
    """A plugin object that provides kinds of modality."""

    class Plugin:
        @mbt.hookimpl
        def mbt_modalities(self):
            return [modality(kind, **more) for kind in kinds]

    return Plugin()


@pytest.fixture
def installed(monkeypatch):
    """A function that gives the registry of a process in which these plugins are installed."""

    def make(**found):
        entries = []
        for name, target in found.items():
            module = f"installed_{name}"
            if target is not None:
                monkeypatch.setitem(sys.modules, module, target)
            entries.append(EntryPoint(name, module, "mbt"))
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "mbt" else [])
        return plugins.registry.__wrapped__()

    return make


class Broken:
    @mbt.hookimpl
    def mbt_modalities(self):
        raise RuntimeError("no licence")

    @mbt.hookimpl
    def mbt_fusions(self):
        return [mbt.FusionSpec("mine", "x:Y")]


class Leaving:
    @mbt.hookimpl
    def mbt_modalities(self):
        sys.exit("no licence here")


def test_a_plugin_that_ends_the_process_is_left_out(installed, monkeypatch, tmp_path):
    """While it is imported, while it is asked what it provides, and while what it provides is imported."""
    for name in ("installed_leaving", "leaving_target"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(PluginWarning, match="plugin 'leaving' is broken and left out: SystemExit: 3"):
        found = installed(leaving=None, good=plugin("good"))
    assert list(found.modalities) == ["good"]
    found = installed(leaving=Leaving(), good=plugin("good"))
    with pytest.warns(PluginWarning, match="plugin 'leaving' is broken and left out: SystemExit: no licence here"):
        assert list(found.modalities) == ["good"]
    with pytest.raises(mbt.MBTError, match="leaving_target:X cannot be loaded: SystemExit: 3"):
        plugins.load_object("leaving_target:X")


class Odd:
    @mbt.hookimpl
    def mbt_modalities(self, surprise):
        return []


def test_built_in_plugins_are_found_through_entry_points():
    found = mbt.registry()
    assert {"bottleneck", "bottleneck-sequential", "cross-attention", "self-attention", "late"} <= set(found.fusions)
    assert {"rgb", "audio"} <= set(found.modalities)
    assert found.modalities["rgb"].plugin == "rgb"
    assert found.modalities["rgb"].version
    assert {"jsonl", "tensorboard"} <= set(found.loggers)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'installed_bad'"),
        (Odd(), "PluginValidationError: Plugin 'bad' for hook 'mbt_modalities'"),
    ],
)
def test_plugin_that_does_not_load_is_one_warning(installed, broken, reason):
    with pytest.warns(PluginWarning) as caught:
        found = installed(bad=broken, good=plugin("zeta"))
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"plugin 'bad' is broken and left out: {reason}")
    assert "zeta" in found.modalities


def test_plugin_whose_hook_fails_is_one_warning(installed):
    found = installed(bad=Broken(), good=plugin("zeta"))
    with pytest.warns(PluginWarning) as caught:
        assert set(found.modalities) == {"zeta"}
    assert str(caught[0].message) == "plugin 'bad' is broken and left out: RuntimeError: no licence"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(found.modalities) == {"zeta"}
        assert set(found.fusions) == {"mine"}


@pytest.mark.parametrize("returned", [None, 3, [None], ["zeta"], [mbt.FusionSpec("a", "b:c")]])
def test_plugin_that_returns_nonsense_is_at_most_a_warning(installed, returned):
    class Nonsense:
        @mbt.hookimpl
        def mbt_modalities(self):
            return returned

    found = installed(bad=Nonsense(), good=plugin("zeta"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert set(found.modalities) == {"zeta"}
    assert len(caught) == (returned is not None)


def test_two_plugins_of_one_kind_are_an_error_that_names_both(installed):
    found = installed(one=plugin("zeta"), other=plugin("zeta", "eta"))
    with pytest.raises(mbt.ConfigError) as error:
        found.modality("eta")
    message = str(error.value)
    assert message.startswith("two plugins provide 'zeta' (modalities): ")
    assert "one" in message
    assert "other" in message
    assert message.endswith("; uninstall one of them")


def test_entry_listed_twice_counts_once(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "installed_one", plugin("zeta"))
    entry = EntryPoint("one", "installed_one", "mbt")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry, EntryPoint("again", "installed_one", "mbt")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(plugins.registry.__wrapped__().modalities) == {"zeta"}


def test_unknown_kind_and_strategy(installed):
    found = installed(one=plugin("zeta", "eta"))
    with pytest.raises(mbt.ConfigError) as error:
        found.modality_class("zta")
    assert str(error.value) == "unknown modality 'zta'. Did you mean 'zeta'? Known: eta, zeta"
    with pytest.raises(mbt.ConfigError) as error:
        found.fusion_class("late")
    assert str(error.value) == "unknown fusion strategy 'late'. Known: none"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"extra": "zeta", "requires": ("json", "mbt_not_there", "mbt_not_there.either")},
            "modality 'zeta' needs mbt_not_there, mbt_not_there.either: pip install 'mbt-fusion[zeta]'",
        ),
        ({"requires": ("mbt_not_there",)}, "modality 'zeta' needs mbt_not_there: pip install mbt_not_there"),
    ],
)
def test_missing_requirement_says_what_to_install(installed, spec, message):
    found = installed(one=plugin("zeta", **spec))
    assert found.config_class("zeta").__name__ == "AlphaConfig"
    with pytest.raises(mbt.ConfigError) as error:
        found.modality_class("zeta")
    assert str(error.value) == message


def test_extra_is_that_of_the_plugins_own_distribution(installed):
    found = installed(one=plugin("zeta", extra="all", requires=("mbt_not_there",)))
    found.distributions["one"] = ("1.2", "zeta-for-mbt")
    with pytest.raises(mbt.ConfigError, match=r"pip install 'zeta-for-mbt\[all\]'$"):
        found.modality_class("zeta")


@pytest.mark.parametrize("path", ["toy.config:Nothing", "toy_not_there:X", "toy_raises:X"])
def test_class_that_cannot_be_loaded_is_one_clear_error(installed, monkeypatch, path):
    class Raises(types.ModuleType):
        def __getattr__(self, name):
            raise OSError("library is for another machine")

    monkeypatch.setitem(sys.modules, "toy_raises", Raises("toy_raises"))
    found = installed(one=plugin("zeta"))
    found.modalities["zeta"] = plugins.Provided(mbt.ModalitySpec("zeta", path, path), "one", "")
    for load in (found.config_class, found.modality_class):
        with pytest.raises(mbt.MBTError, match=f"^{path} cannot be loaded: [A-Za-z]+Error: "):
            load("zeta")


def test_registered_by_hand_and_taken_back(installed):
    found = installed()
    mine = plugin("zeta")
    found.register(mine, "mine")
    assert found.modalities["zeta"].plugin == "mine"
    with pytest.raises(mbt.ConfigError, match="the plugin 'mine' is registered already"):
        found.register(plugin("eta"), "mine")
    found.unregister(mine)
    assert not found.modalities


def test_logger_that_misses_a_module_names_its_own_distribution(installed, monkeypatch):
    class Loggers:
        @mbt.hookimpl
        def mbt_loggers(self):
            return [LoggerSpec("lines", "x:Y", extra="all", requires=("mbt_not_there",))]

    found = installed(one=Loggers())
    found.distributions["one"] = ("1.0", "one-dist")
    monkeypatch.setattr(resolve, "registry", lambda: found)
    with pytest.raises(mbt.ConfigError, match=r"logger 'lines' needs mbt_not_there: pip install 'one-dist\[all\]'"):
        resolve.make_loggers(["lines"])
