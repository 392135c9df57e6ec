"""The modality ``audio``: log-mel spectrograms of sound."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [ModalitySpec("audio", "mbt_audio.config:AudioConfig", "mbt_audio.modality:Audio")]
