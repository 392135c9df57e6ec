"""One ViT's parameters in three vocabularies: pre-Linen Flax (AugReg), Scenic (Linen Flax) and timm.

All trees are flat: a '/'-joined path (Flax) or a dotted key (timm) -> float32 array. Shapes, with d the width, h the
heads, e the head dimension, m the MLP's width: Flax kernels are "input first" (`query/kernel` [d, h, e], `out/kernel`
[h, e, d], `Dense_0/kernel` [d, m], `embedding/kernel` [fh, fw, 3, d] or, in time, [ft, fh, fw, 3, d]); timm's weights
are "output first" (`attn.qkv.weight` [3 h e, d], `patch_embed.proj.weight` [d, 3, fh, fw]).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from mbt_core.errors import DataError

Flat = dict[str, np.ndarray]

_LINEN = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
    "head": "output_projection",
}
_ATTENTION = "MultiHeadDotProductAttention_0"
_QKV = ("query", "key", "value")
# timm's key -> Scenic's; the two tables hold what is copied as it is, and what only has its axes turned
_BLOCK_COPIED = {
    "norm1.weight": "LayerNorm_0/scale",
    "norm1.bias": "LayerNorm_0/bias",
    "attn.proj.bias": f"{_ATTENTION}/out/bias",
    "norm2.weight": "LayerNorm_1/scale",
    "norm2.bias": "LayerNorm_1/bias",
    "mlp.fc1.bias": "MlpBlock_0/Dense_0/bias",
    "mlp.fc2.bias": "MlpBlock_0/Dense_1/bias",
}
_BLOCK_TURNED = {
    "mlp.fc1.weight": "MlpBlock_0/Dense_0/kernel",
    "mlp.fc2.weight": "MlpBlock_0/Dense_1/kernel",
}
BLOCK_ARRAYS = (
    *_BLOCK_COPIED.values(),
    *_BLOCK_TURNED.values(),
    *(f"{_ATTENTION}/{part}/{name}" for part in _QKV for name in ("kernel", "bias")),
    f"{_ATTENTION}/out/kernel",
)
"""Names of all of a block's Scenic parameters."""
_TIMM_BLOCK = {*_BLOCK_COPIED, *_BLOCK_TURNED, "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"}
_VIT = {
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
_VIT_OPTIONAL = {
    "cls": "cls_token",
    "pre_logits/kernel": "pre_logits.fc.weight",
    "pre_logits/bias": "pre_logits.fc.bias",
    "output_projection/kernel": "head.weight",
    "output_projection/bias": "head.bias",
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def to_linen(flat: Mapping[str, np.ndarray]) -> Flat:
    """`flat` with pre-Linen (AugReg) names turned into Scenic's; Scenic's own names stay.

    Raises:
        DataError: two names become one.
    """
    renamed: Flat = {}
    for path, array in flat.items():
        name = "/".join(_LINEN.get(part, part) for part in path.split("/"))
        if name in renamed:
            raise DataError(f"{name} is there twice, under its own and under its pre-Linen name")
        renamed[name] = array
    return renamed


def kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    """A dense or convolution kernel [..., in, out] as torch's weight [out, in, ...]."""
    return np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))


def kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """Torch's dense or convolution weight [out, in, ...] as a kernel [..., in, out]."""
    return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))


def block_to_timm(block: Mapping[str, np.ndarray]) -> Flat:
    """One transformer block's Scenic parameters (`LayerNorm_0/scale` ...) under timm's keys (`norm1.weight` ...).

    Raises:
        DataError: parameters are missing, unknown or of shapes that do not belong together.
    """
    shapes = _block_shapes(block)
    _refuse("block", missing=shapes.keys() - block.keys(), unknown=block.keys() - shapes.keys())
    for name, shape in shapes.items():
        if block[name].shape != shape:
            raise DataError(f"{name} is {list(block[name].shape)}, expected {list(shape)}")
    kernels = [block[f"{_ATTENTION}/{part}/kernel"] for part in _QKV]
    dim = len(kernels[0])
    return {
        **{key: block[name] for key, name in _BLOCK_COPIED.items()},
        **{key: kernel_to_torch(block[name]) for key, name in _BLOCK_TURNED.items()},
        "attn.qkv.weight": np.concatenate([kernel.reshape(dim, -1).T for kernel in kernels]),
        "attn.qkv.bias": np.concatenate([block[f"{_ATTENTION}/{part}/bias"].reshape(-1) for part in _QKV]),
        "attn.proj.weight": kernel_to_torch(block[f"{_ATTENTION}/out/kernel"].reshape(-1, dim)),
    }


def block_from_timm(state: Mapping[str, np.ndarray], heads: int) -> Flat:
    """The inverse of `block_to_timm`, exact; timm's keys do not tell the number of heads.

    Raises:
        DataError: keys are missing or have no place in Scenic's block (LayerScale, QK-norm), or the width of the
            attention is no multiple of `heads`.
    """
    _refuse("block", missing=_TIMM_BLOCK - state.keys(), unknown=state.keys() - _TIMM_BLOCK)
    width, dim = len(state["attn.qkv.bias"]) // 3, len(state["norm1.weight"])
    if heads < 1 or width % heads:
        raise DataError(f"an attention {width} wide cannot have {heads} heads")
    block = {name: state[key] for key, name in _BLOCK_COPIED.items()}
    block |= {name: kernel_from_torch(state[key]) for key, name in _BLOCK_TURNED.items()}
    weights, biases = np.split(state["attn.qkv.weight"], 3), np.split(state["attn.qkv.bias"], 3)
    for part, weight, bias in zip(_QKV, weights, biases, strict=True):
        block[f"{_ATTENTION}/{part}/kernel"] = np.ascontiguousarray(weight.T).reshape(dim, heads, -1)
        block[f"{_ATTENTION}/{part}/bias"] = bias.reshape(heads, -1)
    block[f"{_ATTENTION}/out/kernel"] = kernel_from_torch(state["attn.proj.weight"]).reshape(heads, -1, dim)
    return block


def vit_to_timm(flat: Mapping[str, np.ndarray]) -> Flat:
    """A whole ViT's Scenic parameters under timm's keys: `blocks.0.norm1.weight`, `patch_embed.proj.weight` ...

    `cls`, `pre_logits` and `output_projection` may be absent. `pos_embedding` [1, N, d] keeps its class token's entry.

    Raises:
        DataError: parameters are missing, unknown (the file is of another model) or of the wrong shape.
    """
    blocks: dict[int, Flat] = {}
    state: Flat = {}
    unknown: set[str] = set()
    for name, array in flat.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = array
        elif key := _VIT.get(name) or _VIT_OPTIONAL.get(name):
            state[key] = kernel_to_torch(array) if name.endswith("kernel") and array.ndim > 1 else array
        else:
            unknown.add(name)
    missing = _VIT.keys() - flat.keys()
    missing |= {f"Transformer/encoderblock_{i}" for i in range(max(blocks, default=0) + 1) if i not in blocks}
    _refuse("ViT", missing, unknown)
    for index in sorted(blocks):
        try:
            block = block_to_timm(blocks[index])
        except DataError as error:
            raise DataError(f"Transformer/encoderblock_{index}: {error}") from error
        state |= {f"blocks.{index}.{key}": array for key, array in block.items()}
    return state


def _block_shapes(block: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Every parameter of a block with the shape that its query kernel and first MLP bias ask for."""
    query, hidden = block.get(f"{_ATTENTION}/query/kernel"), block.get("MlpBlock_0/Dense_0/bias")
    if query is not None and query.ndim != 3:
        raise DataError(f"{_ATTENTION}/query/kernel is {list(query.shape)}, expected [width, heads, head width]")
    dim, heads, head_dim = query.shape if query is not None else (0, 0, 0)
    mlp = hidden.size if hidden is not None else 0
    shapes: dict[str, tuple[int, ...]] = {
        f"{_ATTENTION}/out/kernel": (heads, head_dim, dim),
        f"{_ATTENTION}/out/bias": (dim,),
        "MlpBlock_0/Dense_0/kernel": (dim, mlp),
        "MlpBlock_0/Dense_0/bias": (mlp,),
        "MlpBlock_0/Dense_1/kernel": (mlp, dim),
        "MlpBlock_0/Dense_1/bias": (dim,),
    }
    for part in _QKV:
        shapes |= {f"{_ATTENTION}/{part}/kernel": (dim, heads, head_dim)}
        shapes |= {f"{_ATTENTION}/{part}/bias": (heads, head_dim)}
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        shapes |= {f"{norm}/scale": (dim,), f"{norm}/bias": (dim,)}
    return shapes


def listed(missing: Iterable[str] = (), unknown: Iterable[str] = ()) -> str:
    """``missing a, b; unknown c``, at most 20 names of each; an empty string without any."""
    parts = []
    for label, names in (("missing", sorted(missing)), ("unknown", sorted(unknown))):
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        parts += [f"{label} {', '.join(names[:20])}{more}"] if names else []
    return "; ".join(parts)


def _refuse(what: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    if problems := listed(missing, unknown):
        raise DataError(f"not the parameters of one {what}: {problems}")
