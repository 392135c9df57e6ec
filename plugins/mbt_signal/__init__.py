"""The modality ``signal``: multichannel time series of any sensor."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [ModalitySpec("signal", "mbt_signal.config:SignalConfig", "mbt_signal.modality:Signal")]
