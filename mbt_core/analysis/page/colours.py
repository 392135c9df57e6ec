"""The colours of pages and of the figures on them, for light and dark. Light values are what figures are drawn in."""

from __future__ import annotations

import re
from collections.abc import Iterable

PALETTE = {
    "ink": ("#1d2129", "#e7eaee"),
    "soft": ("#5b6472", "#a2abb8"),
    "page": ("#f6f7f9", "#14171b"),
    "card": ("#fefefe", "#1d2126"),
    "line": ("#dfe3e8", "#343a42"),
    "accent": ("#0b63b5", "#72b6f5"),
    "error": ("#b93325", "#ff8a7a"),
    "z": ("#9aa3ae", "#6d7683"),
    "m0": ("#0072b2", "#3b9fe0"),
    "m1": ("#d55e00", "#f0803c"),
    "m2": ("#009e73", "#2fc295"),
    "m3": ("#cc79a7", "#dd9cc0"),
    "m4": ("#b58900", "#d9b13b"),
    "m5": ("#56b4e9", "#8fd0f5"),
}
"""Name -> (light, dark). m0 to m5, of the modalities: told apart by colour-blind people (Okabe, Ito, 2008)."""
COUNT = 6
"""Modalities that have a colour of their own."""


def colour(name: str) -> str:
    """The light value, in which figures are drawn."""
    return PALETTE[name][0]


def names_of(modalities: Iterable[str]) -> dict[str, str]:
    """Modality -> name of its colour."""
    return {modality: f"m{number % COUNT}" for number, modality in enumerate(modalities)}


def themed(svg: str) -> str:
    """A figure drawn in light values, with the page's variables for them; text that it shows stays as it is."""
    names = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
    colours = re.compile("|".join(names))
    return re.sub("<[^>]*>", lambda tag: colours.sub(lambda found: names[found[0]], tag[0]), svg)
