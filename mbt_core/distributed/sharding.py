"""A model whose weights are shared out over devices (FSDP2), and its whole state where it is saved or loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mbt_core.model import MBT
from mbt_core.model.block import Block


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shares out each block's weights, and the rest together, over the mesh's ``data_parallel`` devices."""
    devices = mesh["data_parallel"]
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=devices)
    fully_shard(model, mesh=devices)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are shared out."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts; every process must ask for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A copy of the whole `tensor` on the device of `other`, shared out as it is."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        # every process has the whole: nothing needs sending
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return tensor.to(other.device, copy=True)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with all parts of every tensor."""
    return {name: whole(value) for name, value in model.state_dict().items()}


def whole_model(model: MBT) -> MBT:
    """The model itself, or where its weights are shared out a copy with all of them, on the same device."""
    if not is_sharded(model):
        return model
    copy = MBT(model.config)
    copy.classes = model.classes
    copy.load_state_dict(whole_state(model))
    return copy.to(next(model.parameters()).device)


def load_whole(model: MBT, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a complete state into a model, shared out or not. Raises `DataError` that lists what does not fit."""
    own = model.state_dict() if is_sharded(model) else {}
    model.load_weights({name: like(x, own[name]) if name in own else x for name, x in state.items()}, source)
