"""The clips of a manifest as a model reads them, and the evaluation of one split by all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mbt_core.config import Experiment
from mbt_core.data.cache import Cache
from mbt_core.data.collate import Batch, Copier, Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import Losses
from mbt_core.data.sampler import EvalSampler
from mbt_core.evaluate.evaluator import Evaluation, Subset, evaluate, merge
from mbt_core.model import MBT
from mbt_core.training.memory import DEFAULT_BATCH
from mbt_core.training.processes import Team


def make_dataset(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    *,
    training: bool,
    views: int = 1,
    cache: Cache | None = None,
) -> ClipDataset:
    head = experiment.model.head
    return ClipDataset(
        manifest,
        model.modalities,
        {task: head.kind_of(task) for task in head.outputs},
        config=experiment.data,
        seed=experiment.train.seed,
        training=training,
        views=views,
        dropout=experiment.train.modality_dropout if training else 0.0,
        cache=cache,
    )


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
) -> dict[Subset, Evaluation]:
    """With several processes the first one's has all rows, the others' their own."""
    config, device = experiment.evaluate, team.fabric.device
    views = views or config.views
    manifest.require_labels(split)
    rows = manifest.rows(split)
    dataset = make_dataset(experiment, model, manifest, training=False, views=views, cache=cache)
    trained = experiment.train.batch_size
    batch_size = config.batch_size or (trained if isinstance(trained, int) else DEFAULT_BATCH)
    sampler = EvalSampler(rows, max(1, batch_size // views // team.world), team.rank, team.world)
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
        Preprocess(model.modalities).to(device),
        batches(),
        config,
        subsets=subsets,
        autocast=team.fabric.autocast,
        progress=report,
    )
    for _ in range(most - len(sampler)):
        report(len(sampler.rows))  # the others have a batch more
    parts = team.gather(found)
    return {subset: merge([part[subset] for part in parts]) for subset in found} if len(parts) > 1 else found
