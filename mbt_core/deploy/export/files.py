"""Writes an exported model with what is to be known of it, and checks the file against the model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from mbt_core.config import Experiment
from mbt_core.config.assets import copy_attached
from mbt_core.deploy.export.graph import Graph, Input, first_line
from mbt_core.errors import ConfigError, MBTError
from mbt_core.io.files import only_writer
from mbt_core.model import MBT
from mbt_core.version import __version__

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
PACKAGES: dict[Format, tuple[str, ...]] = {"onnx": ("torch", "onnx", "onnxscript"), "torch-export": ("torch",)}
OPSET = 20
KEY = "mbt"
"""Of the metadata in an ONNX file; in a .pt2 its file is called so."""
CHECKED = ((1, 1.0), (2, 0.5), (5, 1.0))
"""Batch sizes, and shares of the longest length of padded inputs."""
ALLOWED = 1e-4
SCORES = {"single": "softmax", "multilabel": "sigmoid", "regression": "identity"}
Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Args:
        path: the model; beside it lies the metadata (its name and ``.json``), a copy of each file that belongs to the
            model (``files/``), and the weights as ``.data`` beyond 2 GB.
        metadata: inputs, outputs, classes, versions.
        difference: largest difference of logits from the model's; of a regression's numbers in deviations of its
            training data (`HeadConfig.scales`).
        note: why the inputs are preprocessed though samples were asked for; None: they are what was asked for.
    """

    path: Path
    metadata: dict[str, Any]
    difference: float
    note: str | None = None


def export(
    model: MBT,
    out: str | Path,
    to: Format,
    modalities: Sequence[str] | None = None,
    preprocessed: bool = False,
    experiment: Experiment | None = None,
) -> Exported:
    """Exports a model for some of its modalities, all of them present, with any batch size.

    The graph takes samples as `Modality.read` returns them in evaluation (frames as uint8, sound as int16), so that
    normalisation and spectrograms need not be written anew; where a preprocessor cannot be exported, it takes what the
    tokenizers take, and the metadata say so.

    Args:
        model: moved to the CPU and into evaluation mode.
        out: file to write, ``.onnx`` or ``.pt2``; replaced if it exists.
        to: ``onnx`` or ``torch-export``.
        modalities: names; all by default.
        preprocessed: take the tokenizers' inputs in any case.
        experiment: of the run, for the views of evaluation.

    Raises:
        ConfigError: for a wrong suffix or modality, a package that is not installed, or a file that another process is
            writing.
        MBTError: if it cannot be exported or written, or if its logits differ from the model's by more than 1e-4 (of
            logits above 1: of the largest). Nothing is left then.
    """
    out = Path(out)
    _check(out, to)
    model = model.cpu().eval()
    note = None
    graph = Graph(model, modalities, preprocessed)
    with only_writer(out):
        try:
            return _export(graph, out, to, experiment, None)
        except Unsupported as error:
            if not graph.parts:
                raise MBTError(str(error)) from error
            note = str(error)
        try:
            return _export(Graph(model, modalities, preprocessed=True), out, to, experiment, note)
        except Unsupported as error:
            raise MBTError(str(error)) from error


class Unsupported(MBTError):
    """The graph holds what the format cannot express."""


def _check(out: Path, to: Format) -> None:
    if out.suffix != SUFFIXES[to]:
        raise ConfigError(f"--out {out}: expected a file that ends in {SUFFIXES[to]}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if to == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"ONNX needs the package {error.name}: pip install 'mbt-fusion[export]'") from None


def _export(graph: Graph, out: Path, to: Format, experiment: Experiment | None, note: str | None) -> Exported:
    try:
        program = graph.trace()
    except MBTError as error:
        raise Unsupported(str(error)) from error
    metadata = describe(graph, to, experiment)
    text = json.dumps(metadata, indent=1, ensure_ascii=False) + "\n"
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            written = Path(folder) / out.name
            (_write_onnx if to == "onnx" else _write_torch)(program, graph, written, text)
            difference = compare(graph, (_run_onnx if to == "onnx" else _run_torch)(written))
            written.with_name(f"{out.name}.json").write_text(text, encoding="utf-8")
            copy_attached(graph.model.config, graph.model.saved_config, out.parent)
            for file in Path(folder).iterdir():
                os.replace(file, out.parent / file.name)
    except OSError as error:
        raise MBTError(f"{out}: cannot be written: {error.strerror or error}") from error
    return Exported(out, metadata, difference, note)


def _write_onnx(program: ExportedProgram, graph: Graph, path: Path, text: str) -> None:
    import onnx

    try:
        made = torch.onnx.export(
            program,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            opset_version=OPSET,
            verbose=False,
        )
    except Exception as error:  # the exporter has many ways to say so
        raise Unsupported(f"the model cannot be exported to ONNX: {first_line(error)}") from error
    assert made is not None
    made.model.metadata_props[KEY] = text
    made.save(str(path))
    onnx.checker.check_model(str(path))


def _write_torch(program: ExportedProgram, graph: Graph, path: Path, text: str) -> None:
    torch.export.save(program, str(path), extra_files={KEY: text})


def _run_onnx(path: Path) -> Runner:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        raise Unsupported(f"ONNX Runtime does not take the exported file: {first_line(error)}") from error
    names = [port.name for port in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        given = dict(zip(names, (x.numpy() for x in tensors), strict=True))
        return [torch.from_numpy(np.asarray(x)) for x in session.run(None, given)]

    return run


def _run_torch(path: Path) -> Runner:
    module = torch.export.load(str(path)).module()

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return module(*tensors)

    return run


def compare(graph: Graph, run: Runner) -> float:
    """The largest difference from the model's logits (see `Exported`) over batches of several sizes.

    Raises:
        MBTError: above 1e-4.
    """
    worst = 0.0
    for size, share in CHECKED:
        tensors = graph.batch(size, share)
        with torch.no_grad():
            expected = graph(*tensors)
        for port, found, wanted in zip(graph.outputs, run(tensors), expected, strict=True):
            if found.shape != wanted.shape:
                raise MBTError(
                    f"{port.name} of the exported file is {list(found.shape)}, expected {list(wanted.shape)}"
                )
            scale = graph.model.config.head.scale_of(port.task)
            unit = torch.ones(()) if scale is None else torch.tensor(scale.std)
            difference = float(((found - wanted) / unit).abs().max())
            if not difference <= ALLOWED * max(1.0, float((wanted / unit).abs().max())):
                raise MBTError(
                    f"the exported file does not compute what the model does: {port.name} differs by {difference:.3g} "
                    f"for {size} random inputs, allowed are {ALLOWED:g}. Nothing was written"
                )
            worst = max(worst, difference)
    return worst


def describe(graph: Graph, to: Format, experiment: Experiment | None) -> dict[str, Any]:
    """What one has to know to use the file, as JSON: see ``docs/production.md``."""
    model = graph.model
    head = model.config.head
    return {
        "format": to,
        "versions": {"mbt-fusion": __version__} | {name: version(name) for name in PACKAGES[to]},
        "modalities": graph.names,
        "inputs": [_describe_input(graph, port) for port in graph.inputs],
        "outputs": [
            {"name": p.name, "task": p.task, "modality": p.modality, "shape": ["batch", head.outputs[p.task]]}
            for p in graph.outputs
        ],
        "tasks": {
            task: {
                "kind": head.kind_of(task),
                "scores": SCORES[head.kind_of(task)],
                "classes": model.output_names(task),
            }
            for task, count in head.outputs.items()
        },
        "views": None if experiment is None else experiment.evaluate.views,
        "model": {key: value for key, value in model.saved_config.items() if key != "pretrained"},
    }


def _describe_input(graph: Graph, port: Input) -> dict[str, Any]:
    modality = graph.model.modalities[port.modality]
    card = modality.card
    return {
        "name": port.name,
        "modality": port.modality,
        "key": port.key,
        "dtype": port.dtype,
        "shape": port.shape,
        "preprocessed": port.modality in graph.preprocessed,
        "seconds": modality.seconds,
        "units": card.units,
        "normalisation": card.normalisation,
    }
