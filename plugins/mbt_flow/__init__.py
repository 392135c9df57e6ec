"""The modality ``flow``: optical flow, stored or computed from a video."""

from mbt_core import ModalitySpec, hookimpl


@hookimpl
def mbt_modalities() -> list[ModalitySpec]:
    return [ModalitySpec("flow", "mbt_flow.config:FlowConfig", "mbt_flow.modality:Flow", "flow", ("cv2",))]
