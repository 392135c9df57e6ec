"""A plugin of one sound kind and of kinds with one flaw each, for tests of the conformance suite."""

from mbt_core import ModalitySpec, hookimpl

CLASSES = (
    "Sound",
    "SoundSequence",
    "WrongKind",
    "HeavyConfig",
    "NoHelp",
    "EmptyCard",
    "ForgetfulFit",
    "FragileFit",
    "TrainingShape",
    "BlankType",
    "RaggedBatch",
    "GlobalRandom",
    "GlobalCoin",
    "ChangesClip",
    "NotPicklable",
    "RandomEvaluation",
    "RandomPreprocessor",
    "TrainedPreprocessor",
    "BatchStatistics",
    "WrongGrid",
    "MaskForgotten",
    "MaskInverted",
    "NoGradient",
    "WrongAdapt",
    "FloatPicture",
    "NothingToSee",
    "RaisesInRead",
    "NotThere",
)
CONFIGS = {"HeavyConfig": "flawed.heavy:HeavyConfig", "NoHelp": "flawed.config:NoHelpConfig"}


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(name.lower(), CONFIGS.get(name, f"flawed.config:{name}Config"), f"flawed.modalities:{name}")
        for name in CLASSES
    ]
