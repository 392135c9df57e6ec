"""Modalities: the contract that a plugin implements, its tokenizers, and the weights of their patches."""

from mbt_core.modality.contract import Batch as Batch
from mbt_core.modality.contract import Modality as Modality
from mbt_core.modality.contract import ModalityCard as ModalityCard
from mbt_core.modality.contract import Picture as Picture
from mbt_core.modality.contract import Sample as Sample
from mbt_core.modality.contract import Window as Window
