"""A plugin of anonymous modalities, registered through the public hooks, for tests of the core."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec("alpha", "toy.config:AlphaConfig", "toy.modalities:Alpha"),
        ModalitySpec("beta", "toy.config:BetaConfig", "toy.modalities:Beta"),
        ModalitySpec("frozen", "toy.config:FrozenConfig", "toy.frozen:Frozen"),
        ModalitySpec("gamma", "toy.config:GammaConfig", "toy.modalities:Gamma"),
    ]
