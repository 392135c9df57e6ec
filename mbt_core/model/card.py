"""The model card of a run: the README.md of its repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mbt_core.config import Experiment
from mbt_core.model import MBT

LIBRARY = "mbt-fusion"
SHOWN = 20
"""Most classes of a task that are listed; ``config.json`` has all."""


def model_card(
    model: MBT,
    experiment: Experiment,
    results: Mapping[str, float],
    provenance: Sequence[str],
    name: str,
    license: str | None = None,
) -> str:
    """The card as Markdown, with what the hub reads in YAML on top.

    Args:
        model: of the run.
        experiment: resolved.
        results: metrics on the test split; may be empty.
        provenance: command, date, versions: the first lines of the run's ``config.yaml``.
        name: of the model.
        license: an identifier that the hub knows (``apache-2.0``, ``cc-by-4.0``, ``other`` ...).
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        tags=["multimodal", "classification", "attention-bottlenecks", *_kinds(model)],
        metrics=sorted({key.partition("[")[0].rpartition("/")[2] for key in results} - {"loss"}) or None,
        eval_results=_results(experiment, results, name) or None,
        model_name=name,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(model, experiment, results, provenance, name, license)}"


def _kinds(model: MBT) -> list[str]:
    return list(dict.fromkeys(modality.config.kind for modality in model.modalities.values()))


def _data_name(experiment: Experiment) -> str:
    """The data's name without the folders of whoever trained."""
    config = experiment.data
    return config.dataset or (PurePath(config.path).name if config.path else "unknown")


def _results(experiment: Experiment, results: Mapping[str, float], name: str) -> list[Any]:
    from huggingface_hub import EvalResult

    data = _data_name(experiment)
    return [
        EvalResult(
            task_type="multimodal-classification",
            dataset_type=PurePath(data).stem,
            dataset_name=data,
            dataset_split="test",
            metric_type=key.partition("[")[0].rpartition("/")[2],
            metric_name=key,
            metric_value=round(value, 6),
        )
        for key, value in results.items()
    ]


def _text(
    model: MBT,
    experiment: Experiment,
    results: Mapping[str, float],
    provenance: Sequence[str],
    name: str,
    license: str | None,
) -> str:
    config, backbone = model.config, model.backbone
    modalities = [
        [name, m.config.kind, m.card.title, m.card.normalisation, "all" if m.seconds is None else f"{m.seconds:g} s"]
        for name, m in model.modalities.items()
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fusion = config.fusion
    tokens = f", {fusion.bottlenecks} bottlenecks" if "bottleneck" in fusion.strategy else ""
    parts = [
        f"# {name}",
        f"Classifies clips by {' and '.join(model.modalities)}, together or with any of them missing. "
        "Made with `mbt-fusion` (attention bottlenecks, arXiv 2107.00135).",
        "## Inputs",
        _table(["modality", "kind", "input", "normalisation", "window"], modalities),
        "## Model",
        f"{parameters:,} parameters: width {backbone.dim}, {backbone.depth} layers, {backbone.heads} heads; fusion "
        f"`{fusion.strategy}` from layer {fusion.layer}{tokens}; pool `{config.pool}`.",
        "## Classes",
        "\n".join(_classes(model)),
        "## Results",
        _metrics(results),
        "## Training",
        f"Data: `{_data_name(experiment)}`. The whole configuration is in `config.yaml`.",
        "```\n" + "\n".join(provenance) + "\n```",
        "## Use",
        f'```python\nimport mbt_core as mbt\n\nmodel = mbt.MBT.from_pretrained("{name}").eval()\n```',
        f"```sh\nhf download {name} --local-dir model\nmbt predict model clip.mp4\n```",
        "## Licence",
        f"`{license}`" if license else "None was given: ask the author before you use the model.",
    ]
    return "\n\n".join(parts) + "\n"


def _classes(model: MBT) -> list[str]:
    lines = []
    for task, count in model.config.head.outputs.items():
        names = model.classes.get(task) or []
        more = " ..." if len(names) > SHOWN else ""
        listed = f": {', '.join(names[:SHOWN])}{more}" if names else ""
        lines.append(f"- {task} ({model.config.head.kind_of(task)}), {count}{listed}")
    return lines


def _metrics(results: Mapping[str, float]) -> str:
    if not results:
        return "No results on a test split are known."
    rows = [[f"`{key}`", f"{value:.5g}"] for key, value in results.items()]
    return _table(["metric, test split", "value"], rows) + "\n\n`[NAME]` is what one modality alone reaches."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells)
