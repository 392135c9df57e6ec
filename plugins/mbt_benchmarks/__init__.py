"""Data sets and recipes of the audio-visual benchmarks, and the demo."""

from __future__ import annotations

from pathlib import Path

from mbt_core.hookspecs import DatasetSpec, RecipeSpec, hookimpl

RECIPES = Path(__file__).parent / "recipes"


@hookimpl
def mbt_datasets() -> list[DatasetSpec]:
    return [DatasetSpec("demo", "3 moving shapes x 3 sounds, made on first use", make="mbt_benchmarks.demo:make_demo")]


@hookimpl
def mbt_recipes() -> list[RecipeSpec]:
    return [RecipeSpec(path.stem, path) for path in sorted(RECIPES.glob("*.yaml"))]
