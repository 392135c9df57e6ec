"""A model of ours in the reference's form: the inverse of the converter."""

import numpy as np

from mbt_core import MBT
from mbt_core.pretrained.names import block_from_timm, kernel_from_torch
from mbt_core.pretrained.scenic_arrays import names_in


def to_scenic(model: MBT) -> dict[str, np.ndarray]:
    """The parameters by path; an input of one channel gets its kernel spread over three, as on a tiled input."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    flat = {"Transformer/encoder_norm/scale": state["head.norms._shared.weight"]}
    flat["Transformer/encoder_norm/bias"] = state["head.norms._shared.bias"]
    for name, names in names_in(model).items():
        kernel = state[f"streams.{name}.tokenizer.weight"]
        if kernel.shape[1] == 1:
            kernel = np.repeat(kernel / 3, 3, 1)
        flat[f"{names.embedding}/kernel"] = kernel_from_torch(kernel)
        flat[f"{names.embedding}/bias"] = state[f"streams.{name}.tokenizer.bias"]
        flat[names.positions] = state[f"streams.{name}.pos_embed"]
        if f"streams.{name}.cls_token" in state:
            flat[names.class_token] = state[f"streams.{name}.cls_token"]
        key = "_shared" if "_shared" in model.blocks else name
        for layer in model.blocks[key]:
            prefix = f"blocks.{key}.{layer}."
            block = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            arrays = block_from_timm(block, model.backbone.heads)
            flat |= {f"{names.blocks.format(layer)}/{array}": value for array, value in arrays.items()}
    if "fusion.bottlenecks" in state:
        flat["bottleneck"] = state["fusion.bottlenecks"]
    flat["output_projection/kernel"] = kernel_from_torch(state["head.classifiers._shared.label.weight"])
    flat["output_projection/bias"] = state["head.classifiers._shared.label.bias"]
    return flat
