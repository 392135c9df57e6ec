"""The reference's forward pass in plain numpy, float64, written from its description and none of our code.

Shapes: B batch, N tokens, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
RGB, SPECTROGRAM = "rgb", "spectrogram"


class Reference:
    """One model: parameters by path (float64) and the configuration."""

    def __init__(self, params: dict[str, Array], config: dict[str, Any]) -> None:
        self.params = {path: np.asarray(array, np.float64) for path, array in params.items()}
        self.config = config
        self.order = list(config["modality_fusion"])

    def __call__(self, inputs: dict[str, Array], train: bool = False) -> dict[str, Any]:
        """`inputs`: channels last. Returns logits, pre_logits, tokens, and every block's output under ``blocks``."""
        streams = {name: self.embed(name, np.asarray(inputs[name], np.float64)) for name in self.order}
        blocks: dict[tuple[int, str], Array] = {}
        encoded = self.encode(streams, train, blocks)
        tokens = self.norm("Transformer/encoder_norm", encoded)
        return {
            "tokens": tokens,
            "blocks": blocks,
            **self.head(tokens, {n: x.shape[1] for n, x in streams.items()}, train),
        }

    def embed(self, name: str, x: Array) -> Array:
        """Tokens with class token and positions, [B, N, D]."""
        suffix = "" if name == RGB else "_spectrogram"
        kernel, bias = self.params[f"embedding{suffix}/kernel"], self.params[f"embedding{suffix}/bias"]
        encoding = self.config["temporal_encoding_config"]
        if name == RGB and encoding["method"] == "temporal_sampling":
            chosen = sampled(x.shape[1], encoding["n_sampled_frames"])
            x = np.concatenate([x[:, frame] for frame in chosen], 1)
        x = convolve(x, kernel) + bias
        if self.config["classifier"] == "token":
            cls = "cls" if name == RGB or len(self.order) == 1 else "clsspectrogram"
            x = np.concatenate((np.repeat(self.params[cls], len(x), 0), x), 1)
        return x + self.params[f"Transformer/posembed_input{suffix}/pos_embedding"]

    def encode(self, streams: dict[str, Array], train: bool, blocks: dict[tuple[int, str], Array]) -> Array:
        config, B = self.config, len(next(iter(streams.values())))
        alone_in_test = config["use_bottleneck"] and not train and not config["test_with_bottlenecks"]
        z = np.repeat(self.params["bottleneck"], B, 0) if config["use_bottleneck"] else None
        joined = None
        for layer in range(config["num_layers"]):
            if layer < config["fusion_layer"] or len(self.order) == 1 or alone_in_test:
                streams = {n: self.block(layer, n, x) for n, x in streams.items()}
                blocks.update({(layer, n): x for n, x in streams.items()})
            elif z is not None:
                outputs = {n: self.block(layer, n, np.concatenate((x, z), 1)) for n, x in streams.items()}
                blocks.update({(layer, n): x for n, x in outputs.items()})
                proposals = [outputs[n][:, x.shape[1] :] for n, x in streams.items()]
                streams = {n: outputs[n][:, : x.shape[1]] for n, x in streams.items()}
                z = np.mean(proposals, 0)
            elif not config["share_encoder"]:
                new = {}
                for name, x in streams.items():
                    others = [streams[n] for n in (RGB, SPECTROGRAM) if n != name and n in streams]
                    new[name] = self.block(layer, name, np.concatenate((*others, x), 1))[:, -x.shape[1] :]
                streams = new
            else:
                joined = np.concatenate(list(streams.values()), 1) if joined is None else joined
                joined = self.block(layer, RGB, joined)
        return np.concatenate(list(streams.values()), 1) if joined is None else joined

    def block(self, layer: int, name: str, x: Array) -> Array:
        suffix = "" if name == RGB or self.config["share_encoder"] else "_spectrogram"
        path = f"Transformer/encoderblock_{layer}{suffix}"
        x = x + self.attention(f"{path}/MultiHeadDotProductAttention_0", self.norm(f"{path}/LayerNorm_0", x))
        hidden = self.dense(f"{path}/MlpBlock_0/Dense_0", self.norm(f"{path}/LayerNorm_1", x))
        return x + self.dense(f"{path}/MlpBlock_0/Dense_1", gelu(hidden))

    def attention(self, path: str, x: Array) -> Array:
        q, k, v = (
            np.einsum("bnd,dhe->bhne", x, self.params[f"{path}/{part}/kernel"])
            + self.params[f"{path}/{part}/bias"][:, None, :]
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bhne,bhme->bhnm", q / np.sqrt(q.shape[-1]), k)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("bhnm,bhme->bnhe", weights, v)
        return np.einsum("bnhe,hed->bnd", attended, self.params[f"{path}/out/kernel"]) + self.params[f"{path}/out/bias"]

    def norm(self, path: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * self.params[f"{path}/scale"] + self.params[f"{path}/bias"]

    def dense(self, path: str, x: Array) -> Array:
        return x @ self.params[f"{path}/kernel"] + self.params[f"{path}/bias"]

    def head(self, tokens: Array, lengths: dict[str, int], train: bool) -> dict[str, Any]:
        if self.config["classifier"] == "gap":
            pooled = tokens.mean(1)
            return {"pre_logits": pooled, "logits": self.dense("output_projection", pooled)}
        starts = np.cumsum([0, *lengths.values()])
        pre = {name: tokens[:, start] for name, start in zip(self.order, starts, strict=False)}
        if self.config["representation_size"]:
            pre = {name: np.tanh(self.dense("pre_logits", x)) for name, x in pre.items()}
        logits = {name: self.dense("output_projection", x) for name, x in pre.items()}
        return {"pre_logits": pre, "logits": logits if train else np.mean(list(logits.values()), 0)}


def convolve(x: Array, kernel: Array) -> Array:
    """Stride = kernel, no padding, the remainder ignored: [B, S_1 ... S_k, C], [P_1 ... P_k, C, D] -> [B, N, D]."""
    patch, grid = kernel.shape[:-2], [s // p for s, p in zip(x.shape[1:-1], kernel.shape[:-2], strict=True)]
    x = x[(slice(None), *(slice(n * p) for n, p in zip(grid, patch, strict=True)))]
    k = len(patch)
    x = x.reshape(len(x), *(v for pair in zip(grid, patch, strict=True) for v in pair), x.shape[-1])
    x = x.transpose(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2), 2 * k + 1)
    return x.reshape(len(x), int(np.prod(grid)), -1) @ kernel.reshape(-1, kernel.shape[-1])


def sampled(frames: int, count: int) -> list[int]:
    """The frames of ``temporal_sampling``."""
    if count >= frames:
        return list(range(frames))
    step = frames / (count + 1)
    times = np.arange(step, frames, step, dtype=np.float32)
    return np.clip(np.round(times), 0, frames - 1).astype(int).tolist()


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def param_shapes(config: dict[str, Any], inputs: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model with its shape."""
    d, heads, mlp = config["hidden_size"], config["num_heads"], config["mlp_dim"]
    fh, fw, ft = config["patches"]["size"]
    order, token = config["modality_fusion"], config["classifier"] == "token"
    encoding, shapes = config["temporal_encoding_config"], {}
    for name in order:
        suffix = "" if name == RGB else "_spectrogram"
        size = inputs[name][1:-1]
        if name == SPECTROGRAM:
            kernel, tokens = (fh, fw), (size[0] // fh) * (size[1] // fw)
        elif encoding["method"] == "3d_conv":
            kernel, tokens = (ft, fh, fw), (size[0] // ft) * (size[1] // fh) * (size[2] // fw)
        else:
            tall = len(sampled(size[0], encoding["n_sampled_frames"])) * size[1]
            kernel, tokens = (fh, fw), (tall // fh) * (size[2] // fw)
        shapes |= {f"embedding{suffix}/kernel": (*kernel, 3, d), f"embedding{suffix}/bias": (d,)}
        shapes[f"Transformer/posembed_input{suffix}/pos_embedding"] = (1, tokens + token, d)
        if token:
            shapes["cls" if name == RGB or len(order) == 1 else "clsspectrogram"] = (1, 1, d)
        for layer in range(config["num_layers"]):
            path = f"Transformer/encoderblock_{layer}{'' if config['share_encoder'] else suffix}"
            attention = f"{path}/MultiHeadDotProductAttention_0"
            for part in ("query", "key", "value"):
                shapes |= {f"{attention}/{part}/kernel": (d, heads, d // heads)}
                shapes |= {f"{attention}/{part}/bias": (heads, d // heads)}
            shapes |= {f"{attention}/out/kernel": (heads, d // heads, d), f"{attention}/out/bias": (d,)}
            for norm in ("LayerNorm_0", "LayerNorm_1"):
                shapes |= {f"{path}/{norm}/scale": (d,), f"{path}/{norm}/bias": (d,)}
            shapes |= {f"{path}/MlpBlock_0/Dense_0/kernel": (d, mlp), f"{path}/MlpBlock_0/Dense_0/bias": (mlp,)}
            shapes |= {f"{path}/MlpBlock_0/Dense_1/kernel": (mlp, d), f"{path}/MlpBlock_0/Dense_1/bias": (d,)}
    if config["use_bottleneck"]:
        shapes["bottleneck"] = (1, config["n_bottlenecks"] + token, d)
    shapes |= {"Transformer/encoder_norm/scale": (d,), "Transformer/encoder_norm/bias": (d,)}
    width = config["representation_size"] or d
    if config["representation_size"]:
        shapes |= {"pre_logits/kernel": (d, width), "pre_logits/bias": (width,)}
    classes = config["num_classes"]
    return shapes | {"output_projection/kernel": (width, classes), "output_projection/bias": (classes,)}


def random_params(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, Array]:
    """Every parameter random and none zero, of a size that keeps activations near 1; float32 of few bits."""
    params = {}
    for path, shape in sorted(shapes.items()):
        name = path.rsplit("/", 1)[-1]
        scale = {"kernel": (np.prod(shape[:-1]) if "query" not in path else shape[0]) ** -0.5, "scale": 0.2}.get(
            name, 0.3
        )
        values = rng.normal(size=shape) * scale + (1 if name == "scale" else 0)
        params[path] = (np.round(values * 512) / 512).astype(np.float32)
    return params
