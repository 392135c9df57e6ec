"""Finds, loads and lists plugins. A broken plugin costs one warning, never the command line."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from mbt_core.errors import ConfigError, MBTError, unknown
from mbt_core.plugins import hookspecs

OWN = "mbt-fusion"
"""The distribution whose extras are meant where a plugin comes from none."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded; everything else works on."""


@dataclass(frozen=True)
class Provided:
    """One thing a plugin provides, and where it comes from."""

    spec: Any
    plugin: str
    version: str

    location: str = ""

    @property
    def install_hint(self) -> str:
        """The command that installs what it misses, or an empty string."""
        return install_hint(self.spec, self.location if self.version else OWN)


@dataclass
class Registry:
    """All that the installed plugins provide, by kind of thing and by name."""

    manager: pluggy.PluginManager
    distributions: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name of a plugin -> (version, name of its distribution)."""
    _cache: dict[str, dict[str, Provided]] = field(default_factory=dict)

    def register(self, plugin: object, name: str | None = None) -> None:
        """Adds a plugin by hand (notebooks, tests); the same hooks as an installed one."""
        try:
            self.manager.register(plugin, name)
        except ValueError as error:
            raise ConfigError(f"the plugin {name or plugin!r} is registered already") from error
        self._cache.clear()

    def unregister(self, plugin: object) -> None:
        self.manager.unregister(plugin)
        self._cache.clear()

    def _collect(self, hook: str, key: str) -> dict[str, Provided]:
        if hook in self._cache:
            return self._cache[hook]
        found: dict[str, Provided] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            try:
                specs = list(implementation.function() or ())
                names = [getattr(spec, key) for spec in specs]
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # `sys.exit` in a plugin ends no command
                _warn(name, error)
                continue
            for spec_name, spec in zip(names, specs, strict=True):
                if spec_name in found:
                    raise ConfigError(
                        f"two plugins provide {spec_name!r} ({hook.removeprefix('mbt_')}): "
                        f"{found[spec_name].plugin} and {name}; uninstall one of them"
                    )
                found[spec_name] = Provided(spec, name, *self.distributions.get(name, ("", "registered by hand")))
        self._cache[hook] = found
        return found

    @property
    def modalities(self) -> dict[str, Provided]:
        return self._collect("mbt_modalities", "kind")

    @property
    def fusions(self) -> dict[str, Provided]:
        return self._collect("mbt_fusions", "name")

    @property
    def datasets(self) -> dict[str, Provided]:
        return self._collect("mbt_datasets", "name")

    @property
    def recipes(self) -> dict[str, Provided]:
        return self._collect("mbt_recipes", "name")

    @property
    def commands(self) -> dict[str, Provided]:
        return self._collect("mbt_commands", "name")

    @property
    def loggers(self) -> dict[str, Provided]:
        return self._collect("mbt_loggers", "name")

    def modality(self, kind: str) -> hookspecs.ModalitySpec:
        """The spec of a kind. Raises `ConfigError` that lists the known kinds."""
        if kind not in self.modalities:
            raise ConfigError(unknown("modality", kind, self.modalities))
        spec: hookspecs.ModalitySpec = self.modalities[kind].spec
        return spec

    def config_class(self, kind: str) -> Any:
        """The `ModalityConfig` class of a kind (imports no torch)."""
        return load_object(self.modality(kind).config)

    def modality_class(self, kind: str) -> Any:
        """The `Modality` class of a kind. Raises `ConfigError` naming what to install if something is missing."""
        spec = self.modality(kind)
        require(spec, f"modality {kind!r}", self._distribution(self.modalities[kind]))
        return load_object(spec.modality)

    def fusion_class(self, name: str) -> Any:
        """The `Fusion` class of a strategy."""
        if name not in self.fusions:
            raise ConfigError(unknown("fusion strategy", name, self.fusions))
        return load_object(self.fusions[name].spec.fusion)

    def _distribution(self, provided: Provided) -> str:
        return self.distributions.get(provided.plugin, ("", OWN))[1]


def missing(spec: Any) -> list[str]:
    """Modules that `spec` requires and that are not installed."""
    return [name for name in getattr(spec, "requires", ()) if not _importable(name)]


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package of a dotted name
        return False


def install_hint(spec: Any, distribution: str = OWN) -> str:
    """The command that installs what `spec`, of a plugin in `distribution`, misses; or an empty string."""
    if not missing(spec):
        return ""
    return f"pip install '{distribution}[{spec.extra}]'" if spec.extra else f"pip install {' '.join(missing(spec))}"


def require(spec: Any, what: str, distribution: str = OWN) -> None:
    """Raises `ConfigError` unless everything `spec` requires is installed."""
    if missing(spec):
        raise ConfigError(f"{what} needs {', '.join(missing(spec))}: {install_hint(spec, distribution)}")


def load_object(path: str) -> Any:
    """Imports ``"package.module:Name"``. Raises `MBTError` if that fails: the plugin it belongs to is broken."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's module may raise anything, and call `sys.exit`
        raise MBTError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _warn(name: str, error: BaseException) -> None:
    warnings.warn(f"plugin {name!r} is broken and left out: {type(error).__name__}: {error}", PluginWarning, 2)


def _load(entry: EntryPoint, manager: pluggy.PluginManager) -> None:
    try:
        manager.register(entry.load(), entry.name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _warn(entry.name, error)


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process, filled from the entry-point group ``mbt`` on first use."""
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    seen: set[str] = set()
    for entry in entry_points(group=hookspecs.GROUP):
        if entry.value in seen:  # an editable install beside a wheel lists an entry twice
            continue
        seen.add(entry.value)
        _load(entry, manager)
        if entry.dist:
            found.distributions[entry.name] = (entry.dist.version, entry.dist.name)
    return found
