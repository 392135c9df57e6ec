"""Data sets and recipes of the audio-visual benchmarks, and the demo."""

from __future__ import annotations

from pathlib import Path

from mbt_core.plugins.hookspecs import DatasetSpec, RecipeSpec, hookimpl

RECIPES = Path(__file__).parent / "recipes"


@hookimpl
def mbt_datasets() -> list[DatasetSpec]:
    built = {
        "audioset": ("audioset", "527 sound classes; --subset mini (default), 500k or full"),
        "vggsound": ("vggsound", "309 classes, heard and seen"),
        "vggsounder": ("vggsounder", "VGGSound's test clips with all labels; --subset audible or visible"),
        "epic-kitchens-100": ("epic_kitchens", "97 verbs and 300 nouns of actions in kitchens"),
        "kinetics400": ("kinetics", "400 human actions"),
    }
    return [
        DatasetSpec("demo", "3 moving shapes x 3 sounds, made on first use", make="mbt_benchmarks.demo:make_demo"),
        *(DatasetSpec(name, about, build=f"mbt_benchmarks.{module}:build") for name, (module, about) in built.items()),
    ]


@hookimpl
def mbt_recipes() -> list[RecipeSpec]:
    return [RecipeSpec(path.stem, path) for path in sorted(RECIPES.glob("*.yaml"))]
