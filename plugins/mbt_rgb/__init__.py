"""The modality ``rgb``: frames of a video, or a still."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [ModalitySpec("rgb", "mbt_rgb.config:RgbConfig", "mbt_rgb.modality:Rgb")]
