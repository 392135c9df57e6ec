"""What is settled before a training begins: its data, what was left open, and all that can be wrong with both."""

from __future__ import annotations

from lightning_fabric import Fabric

from mbt_core.config import Experiment
from mbt_core.data.check import require_modalities
from mbt_core.data.collate import Preprocess
from mbt_core.data.duplicates import repeated
from mbt_core.data.labels import Classes
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import Losses, check_missing
from mbt_core.data.source import ask_for_data, open_manifest, require_train
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.distributed.processes import Team
from mbt_core.errors import ConfigError
from mbt_core.model import MBT
from mbt_core.training.fine_tuning import Choice, choose, explain, follow
from mbt_core.training.folder import RunFolder, changed_data
from mbt_core.training.memory import largest_batch
from mbt_core.training.resolve import check_tasks, doubts, make_modalities, resolve


def prepare(
    experiment: Experiment, classes: Classes | None, fresh: bool, team: Team, earlier: RunFolder | None
) -> tuple[Experiment, Manifest, dict[str, Losses], list[str], list[Choice]]:
    """The resolved experiment, its data, what is missing of each split, what a user should know of them, and what was
    chosen for a fine-tuning: found by the first process for all.

    `classes`: those of a run that goes on; None: the manifest's. `earlier`: where it is noted what data these must be.
    """
    manifest: Manifest | None = None
    size = experiment.train.batch_size
    if size != "auto" and size % team.world:
        raise ConfigError(f"train.batch_size: {size} is not a multiple of the {team.world} processes")

    def find() -> tuple[Experiment, dict[str, Losses], list[str], list[Choice], Classes]:
        nonlocal manifest
        device = team.fabric.device.type
        followed = follow(experiment, device) if fresh else experiment
        modalities = make_modalities(followed)
        manifest = open_manifest(experiment.data, modalities, experiment.model.head, classes)
        require_train(manifest)
        if not fresh:  # else `resolve` does it
            check_tasks(experiment, manifest)
        if earlier is not None and (changes := earlier.changes(manifest)):
            raise ConfigError(changed_data(earlier.path, manifest.path, changes))
        used = [split for split in (TRAIN, VAL, TEST) if split in manifest.splits]
        if TEST in used:  # before training, not after it
            manifest.require_labels(TEST)
        losses = {split: check_missing(manifest, split, experiment.data.max_missing) for split in used}
        require_modalities(manifest, modalities, experiment.data.timeout, experiment.data.workers)
        resolved, choices = followed, list[Choice]()
        if fresh:
            held_out = sum(len(manifest.rows(split)) for split in used if split != TRAIN)
            resolved, reasons = choose(resolve(followed, manifest), len(manifest.usable(TRAIN)), device, held_out)
            choices = explain(experiment, followed, resolved, reasons)
        if resolved.train.batch_size == "auto":
            resolved.train.batch_size = _fitting_batch(resolved, team.fabric)
        notes = [*doubts(resolved, manifest), *repeated(manifest)] if fresh else []
        return resolved, losses, notes, choices, manifest.classes

    resolved, losses, notes, choices, known = team.share(find)
    if manifest is None:
        ask_for_data(resolved.data)  # or the first process would have refused them
        manifest = open_manifest(resolved.data, make_modalities(resolved), resolved.model.head, known)
    return resolved, manifest, losses, notes, choices


def _fitting_batch(experiment: Experiment, fabric: Fabric) -> int:
    model = MBT(experiment.mbt_config())
    with fabric.autocast():
        one = largest_batch(model, Preprocess(model.modalities), fabric.device)
    return one * fabric.world_size
