"""The clips of a manifest as a model reads them, and the evaluation of one split by all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mbt_core.config import Experiment
from mbt_core.data.cache import Cache
from mbt_core.data.collate import Batch, Copier, Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import Losses
from mbt_core.data.sampler import EvalSampler
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.distributed.processes import Team
from mbt_core.distributed.sharding import whole_model
from mbt_core.evaluate.evaluator import Evaluation, Subset, evaluate, merge
from mbt_core.evaluate.memory import rows_at_once
from mbt_core.model import MBT
from mbt_core.training.lower import KeptTokens, Lower, Restore
from mbt_core.training.memory import DEFAULT_BATCH


def make_dataset(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    *,
    training: bool,
    views: int = 1,
    cache: Cache | None = None,
    lower: Lower | None = None,
) -> ClipDataset:
    """Its samples are the tokens that `lower` keeps, if it is given (for one view), else clips."""
    assert lower is None or views == 1
    head = experiment.model.head
    tasks = {task: head.kind_of(task) for task in head.outputs}
    settings: dict[str, Any] = {
        **{"config": experiment.data, "seed": experiment.train.seed, "training": training},
        "dropout": experiment.train.modality_dropout if training else 0.0,
    }
    if lower is not None:
        return KeptTokens(lower, manifest, tasks, **settings)
    return ClipDataset(manifest, model.modalities, tasks, views=views, cache=cache, **settings)


def keep_lower(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    layer: int,
    team: Team,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Lower:
    """The tokens that enter `layer`, of every clip that training and the evaluations of one view read."""
    splits = [TRAIN, VAL, *([TEST] if experiment.evaluate.views == 1 else [])]
    rows = [manifest.rows(split) for split in splits if split in manifest.splits]
    whole = whole_model(model)
    lower = Lower(whole, layer, experiment.train.precision)
    dataset = make_dataset(experiment, whole, manifest, training=False)
    lower.fill(whole, dataset, np.unique(np.concatenate(rows)), experiment, team, say, progress)
    return lower


def evaluate_split(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    split: str,
    team: Team,
    views: int | None,
    subsets: Sequence[Subset],
    progress: Callable[[int, int], None] | None,
    losses: Losses | None,
    cache: Cache | None = None,
    check: Callable[[], None] | None = None,
    lower: Lower | None = None,
) -> dict[Subset, Evaluation]:
    """With several processes the first one's has all rows, the others' their own. `lower` is for one view."""
    config, device = experiment.evaluate, team.fabric.device
    views = views or config.views
    lower = lower if views == 1 else None
    manifest.require_labels(split)
    rows = manifest.rows(split)
    dataset = make_dataset(experiment, model, manifest, training=False, views=views, cache=cache, lower=lower)
    trained = experiment.train.batch_size
    batch_size = config.batch_size or (trained if isinstance(trained, int) else DEFAULT_BATCH)
    at_once = rows_at_once(model, max(1, batch_size // team.world), views)
    sampler = EvalSampler(rows, at_once, team.rank, team.world)
    most = max(team.gather_everywhere(len(sampler)))
    loader = make_loader(dataset, sampler, experiment.data.workers, device)
    copy = Copier(device)

    def batches() -> Iterator[Batch]:
        for batch in loader:
            if losses is not None:
                losses.add(batch.errors)
            yield copy(batch)

    def report(done: int) -> None:
        if check:
            check()
        if progress:
            progress(done, len(rows))

    model.eval()
    found = evaluate(
        model,
        (Restore() if lower is not None else Preprocess(model.modalities)).to(device),
        batches(),
        config,
        subsets=subsets,
        autocast=team.fabric.autocast,
        progress=report,
        start=None if lower is None else lower.layer,
    )
    for _ in range(most - len(sampler)):
        report(len(sampler.rows))  # the others have a batch more
    parts = team.gather(found)
    return {subset: merge([part[subset] for part in parts]) for subset in found} if len(parts) > 1 else found
