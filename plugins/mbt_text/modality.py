"""The modality ``text``.

Shapes: B batch, L tokens of a sample, N tokens of a batch's longest, V size of the vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mbt_core import Clip, Modality, ModalityCard, Picture, Tokenizer, Tokens, Window
from mbt_core.config.schema import validate
from mbt_core.errors import DataError
from mbt_core.media import MediaError
from mbt_core.modality.drawing import colours
from mbt_text.config import TextConfig
from mbt_text.vocabulary import vocabulary

PADDING, END, FIRST = 0, 1, 2
"""Ids: of padding and tokens left out, of the end of a text, of the vocabulary's token 0."""
AUTO_LENGTH = 256
FIT_CLIPS = 256


class Text(Modality):
    """A text as ids: [B, N] and a mask at the tokenizer, N varying from batch to batch.

    A sample is int32 [L]: ids of at most `max_length` tokens, the last one being `END`, so that no text is without any
    token (an empty one, or a window in which nothing is said). Tokens left out in training have the id `PADDING`: they
    are masked like padding, and the positions of the others stay.
    """

    kind = "text"
    reads = "text"
    card = ModalityCard(
        title="A text or subtitles, as bytes or tokens",
        units="ids of tokens: 0 padding, 1 end of the text, from 2 on the vocabulary",
        shape="ids [B, N] and mask [B, N]",
        normalisation="none",
        citation="Xue et al., ByT5: Towards a token-free future with pre-trained byte-to-byte models, arXiv 2105.13626",
    )
    config: TextConfig

    @classmethod
    def fit(cls, config: TextConfig, clips: Iterable[tuple[Clip, Window | None]]) -> TextConfig:
        """Fills `max_length`: the 0.9 quantile of the numbers of tokens, at most 256.

        Raises:
            DataError: if there is something to fill and no readable text.
        """
        if not config.auto_fields():
            return config
        encode, lengths = vocabulary(config.tokenizer).encode, []
        failed: MediaError | None = None
        for clip, window in islice(clips, FIT_CLIPS):
            try:
                lengths.append(len(encode(clip.text(*window) if window else clip.text())) + 1)
            except MediaError as error:
                failed = failed or error  # counted where the data is checked
        if not lengths:
            why = f"; the first: {failed}" if failed else ""
            raise DataError(f"{config.kind}: no readable text to fill max_length from{why}")
        length = min(int(np.quantile(lengths, 0.9, method="inverted_cdf")), AUTO_LENGTH)
        return validate(type(config), config.model_dump() | {"max_length": max(2, length)})

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        """Cuts subtitles to the window, encodes, and leaves out tokens; see `Modality.read`."""
        tokens = vocabulary(self.config.tokenizer).encode(clip.text(*window))[: self.config.length - 1]
        ids = np.array([*tokens, END - FIRST], np.int32) + FIRST
        if rng is not None and self.config.token_dropout:
            ids[:-1][rng.random(len(tokens)) < self.config.token_dropout] = PADDING
        return torch.from_numpy(ids)

    def blank(self) -> Tensor:
        """The empty text; see `Modality.blank`."""
        return torch.tensor([END], dtype=torch.int32)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Pads to the longest of the batch: ``ids`` int32 [B, N], ``mask`` bool [B, N]."""
        ids = nn.utils.rnn.pad_sequence(list(samples), batch_first=True, padding_value=PADDING)
        return {"ids": ids, "mask": ids != PADDING}

    def preprocessor(self) -> nn.Module:
        return TextPreprocessor()

    def tokenizer(self, dim: int) -> Tokenizer:
        return TextTokenizer(vocabulary(self.config.tokenizer).size + FIRST, self.config.length, dim)

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        """The text as markup, tokens on a ground that is the darker the more relevant they are."""
        heat = np.zeros(len(sample)) if relevance is None else np.asarray(relevance)[: len(sample)]
        heat = heat / heat.max() if heat.max() > 0 else heat
        spans, place = [], 0
        while place < len(sample) - 1:
            tokens, start = _kept_run(sample, place), place
            for piece, length in vocabulary(self.config.tokenizer).pieces(tokens):
                spans.append(_span(piece, float(heat[place : place + length].max())))
                place += length
            if place == start:
                spans.append(_span("\N{MIDDLE DOT}", 0.0))
                place += 1
        return Picture(html=f'<p style="white-space: pre-wrap">{"".join(spans)}</p>')


class TextPreprocessor(nn.Module):
    """(ids, mask) of a batch."""

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["ids"], batch["mask"]


class TextTokenizer(Tokenizer):
    """A learned vector for each id.

    Args:
        vocabulary: V, with the ids of padding and end.
        length: most tokens of a text.
        dim: D.
    """

    def __init__(self, vocabulary: int, length: int, dim: int) -> None:
        super().__init__()
        self.grid, self.dim = (length,), dim
        self.weight = nn.Parameter(torch.empty(vocabulary, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02), like the positions that are added to it."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """x: ids [B, N] -> Tokens. `mask`: bool [B, N] of real tokens, or None."""
        return Tokens(functional.embedding(x, self.weight), mask)


def _kept_run(sample: Tensor, start: int) -> list[int]:
    """The vocabulary's tokens from `start` on, up to the next one that was left out or the end."""
    ids = sample[start:].tolist()
    stop = next(i for i, token in enumerate(ids) if token < FIRST)
    return [token - FIRST for token in ids[:stop]]


def _span(piece: str, heat: float) -> str:
    red, green, blue = colours(np.array(1 - heat), "inferno")
    ink = "#000" if heat < 0.5 else "#fff"
    ground = f' style="background: rgb({red}, {green}, {blue}); color: {ink}"' if heat > 0 else ""
    return f"<span{ground}>{escape(piece)}</span>"
