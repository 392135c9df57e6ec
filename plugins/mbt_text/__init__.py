"""The modality ``text``: a column of the manifest, a text file, or subtitles."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [ModalitySpec("text", "mbt_text.config:TextConfig", "mbt_text.modality:Text")]
