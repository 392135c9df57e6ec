"""Writes the report of a run: ``report.html``, from what the run left."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbt_core.analysis.explain.explain import BOTTLENECKS, KEPT, Explanation
from mbt_core.analysis.explain.page import METHOD_TEXTS
from mbt_core.analysis.explain.rollout import DEFAULT
from mbt_core.analysis.page.colours import names_of
from mbt_core.analysis.page.html import render, write
from mbt_core.analysis.report import figures, sections
from mbt_core.analysis.report.clips import Drawer, Shown, choose, describe
from mbt_core.analysis.report.left import Left, open_left
from mbt_core.analysis.report.missing import drawn_curves
from mbt_core.analysis.report.sections import Drawn, TaskSection
from mbt_core.config.settings import to_yaml
from mbt_core.errors import MBTError, MBTWarning
from mbt_core.evaluate.baseline import remarks
from mbt_core.evaluate.evaluator import FUSED

FILE = "report.html"
UNREADABLE = 50
"""Clips that could not be read which are listed."""


@dataclass(frozen=True)
class Contents:
    """What is on the page.

    Args:
        left: what the run left.
        curves: of its training.
        few: what has too few values for a curve.
        tasks: a section each.
        clips: those that are shown, by their place in the predictions.
        hardest: places of the hardest clips.
        attention: (clip, where the model looks in it, or why that is not known).
        why: there are no pictures of clips.
    """

    left: Left
    curves: list[Drawn]
    few: list[str]
    tasks: list[TaskSection]
    clips: dict[int, Shown]
    hardest: list[int]
    attention: list[tuple[Shown, Explanation | str]]
    why: str


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, or into the folder of an evaluation (``RUN/eval-...``).

    Everything on it comes from what the run left there: its configuration, ``metrics.jsonl``, ``predictions.parquet``,
    the weights, and the clips that its data still name.

    Returns:
        The path of the page.

    Raises:
        ConfigError: if this is no run folder.
        DataError: if what the run left cannot be read.
        MBTError: if the page cannot be written.
    """
    path = Path(folder) / FILE
    write(path, render_report(gather(Path(folder))))
    return path


def try_report(folder: str | Path) -> Path | None:
    """As `write_report`, after work that must not be lost: whatever goes wrong becomes a warning."""
    try:
        return write_report(folder)
    except MBTError as error:
        warnings.warn(f"no {FILE}: {error}", MBTWarning, stacklevel=2)
    except Exception as error:
        again = f"after it is mended: mbt report {folder}"
        warnings.warn(f"no {FILE}: {type(error).__name__}: {error}; {again}", MBTWarning, stacklevel=2)
    return None


def gather(folder: Path) -> Contents:
    """Reads what a run left, and draws it; see `write_report`."""
    left = open_left(folder)
    modalities, predictions = list(left.experiment.modalities), left.predictions
    curves, few = sections.curves(left)
    if predictions is None or FUSED not in predictions.found.logits:
        return Contents(left, curves, few, [], {}, [], [], left.why)
    tasks = [sections.task_section(task, predictions, modalities) for task in left.experiment.model.head.outputs]
    chosen = choose(predictions)
    places = list(dict.fromkeys([*chosen.hardest, *chosen.attention]))
    clips = {place: describe(predictions, place) for place in places}
    attention: list[tuple[Shown, Explanation | str]] = []
    if left.model is not None and left.manifest is not None:
        drawer = Drawer(left.model, left.manifest, predictions, left.experiment)
        clips |= {place: drawer.draw(clips[place], place) for place in chosen.hardest}
        attention = [(clips[place], drawer.explain(place)) for place in chosen.attention]
    why = left.why if left.manifest is None else ""
    return Contents(left, curves, few, tasks, clips, chosen.hardest, attention, why)


def render_report(contents: Contents) -> str:
    """The page as text."""
    left, predictions = contents.left, contents.left.predictions
    head, modalities = left.experiment.model.head, list(left.experiment.modalities)
    metrics = predictions.found.metrics() if predictions else {}
    failed = predictions.found.failed if predictions else {}
    own = left.folder.resolve() == left.run.path.resolve()
    return render(
        "report/report.html",
        title=left.run.path.resolve().name + ("" if own else f" / {left.folder.resolve().name}"),
        contents=contents,
        left=left,
        predictions=predictions,
        svg=figures.svg,
        WIDE=figures.WIDE,
        command=left.notes[0] if left.notes else "",
        facts=sections.facts(left),
        data=sections.data_table(left),
        config=to_yaml(left.experiment),
        headline=sections.headline(metrics, head, predictions) if predictions else [],
        remarks=remarks(predictions.found, predictions.classes, sections.shown) if predictions else [],
        metrics=sections.metrics_table(predictions, modalities),
        subsets=sections.subset_tables(predictions) if predictions else [],
        missing=drawn_curves(predictions.about, head) if predictions else [],
        failed=[(predictions.ids[place], failed[place]) for place in list(failed)[:UNREADABLE]] if predictions else [],
        failures=len(failed),
        colours={n: f"var(--{c})" for n, c in names_of(modalities).items()} | {BOTTLENECKS: "var(--z)"},
        method=METHOD_TEXTS[DEFAULT],
        single=head.tasks is None,
        kinds={task: head.kind_of(task) for task in head.outputs},
        FUSED=FUSED,
        BOTTLENECKS=BOTTLENECKS,
        KEPT=KEPT,
    )


def pictures(contents: Contents) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 [H, W, 3]) of the figures and clips of a report, for a logger of pictures."""
    for drawn in contents.curves:
        yield f"curves/{drawn.title}", figures.png(drawn.figure)
    for task in contents.tasks:
        for drawn in task.figures:
            yield f"{task.name}/{drawn.title}", figures.png(drawn.figure)
    for number, place in enumerate(contents.hardest, 1):
        clip = contents.clips[place]
        stills = [(name, image) for name, picture in clip.pictures.items() for image in picture.stills]
        yield f"hardest/{number}", figures.png(figures.clip(_title(clip), stills))
    for number, (clip, found) in enumerate(contents.attention, 1):
        if isinstance(found, Explanation):
            drawn_stills = [(n, image) for n, picture in found.views[0].pictures.items() for image in picture.stills]
            yield f"attention/{number}", figures.png(figures.clip(_title(clip), drawn_stills))


def _title(clip: Shown) -> str:
    first = next(iter(clip.truth))
    truth = ", ".join(clip.truth[first]) or "none"
    said = ", ".join(label for label, _ in clip.said[first])
    return f"{figures.short(clip.id)}: it is {figures.short(truth)}, the model says {figures.short(said)}"
