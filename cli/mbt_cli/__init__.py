"""The command line ``mbt``: thin; every command parses, calls `mbt_core` and prints."""

from __future__ import annotations

from mbt_core.plugins.hookspecs import CommandSpec, hookimpl


@hookimpl
def mbt_commands() -> list[CommandSpec]:
    return [
        CommandSpec("train", "Train a model on your media files or a benchmark.", "mbt_cli.train:train", "Models"),
        CommandSpec("eval", "Evaluate a run on a split of a data set.", "mbt_cli.evaluate:evaluate", "Models"),
        CommandSpec("predict", "Classify media files.", "mbt_cli.predict:predict", "Models"),
        CommandSpec("explain", "Show where predictions come from, as a page.", "mbt_cli.explain:explain", "Models"),
        CommandSpec("report", "Write the page of a run again.", "mbt_cli.report:report", "Models"),
        CommandSpec("embed", "Write pooled embeddings of a data set.", "mbt_cli.embed:embed", "Models"),
        CommandSpec("compare", "Train a grid of settings and compare them.", "mbt_cli.compare:compare", "Models"),
        CommandSpec(
            "transfer",
            "Does pre-training help this data? Fresh and given weights.",
            "mbt_cli.transfer:transfer",
            "Models",
        ),
        CommandSpec("bench", "Count and time a model: GFLOPs, memory, clips/s.", "mbt_cli.bench:bench", "Models"),
        CommandSpec("convert", "Convert checkpoints from and to other formats.", "mbt_cli.convert:app", "Models"),
        CommandSpec("serve", "Classify uploaded files over HTTP.", "mbt_cli.serve:serve", "Models"),
        CommandSpec("data", "Make, check and prepare data.", "mbt_cli.data:app", "Data"),
        CommandSpec("recipes", "List and show recipes.", "mbt_cli.recipes:app", "Framework"),
        CommandSpec("plugins", "List, write and check plugins.", "mbt_cli.plugins:app", "Framework"),
    ]
