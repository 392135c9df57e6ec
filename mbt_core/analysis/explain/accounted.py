"""Whether a fusion strategy's `trace` leads back on all the ways on which its layers take information.

A layer is run again with its blocks replaced by what they gave. What then still follows a change of one of its inputs,
or of what one block gave, takes a way outside the blocks, and `trace` must lead back on it. Nothing is assumed of how a
strategy computes.

Shapes: B batch, Q outputs of a layer, N tokens, K keys, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbt_core.errors import MBTError
from mbt_core.model import MBT
from mbt_core.model.fusion.base import BOTTLENECKS, JOINT, Fusion, Masks, Presence, Rows, Streams

Sources = Mapping[str, Sequence[tuple[str, int]]]
"""Block -> whose tokens its keys are, and how many."""
Part = tuple[str, str]
"""A block, and whose tokens a part of its keys is."""
TOLERANCE = 1e-6
"""Of the largest value: by how much the same may differ when it is computed again."""
CONSERVED = 1e-3
"""Share of the relevance that a trace may lose to rounding."""


class Unaccounted(Exception):
    """A way on which information goes and `trace` does not lead back."""


def check_accounted(model: MBT, streams: Streams, masks: Masks, present: Presence, sources: Sequence[Sources]) -> None:
    """Compares every fused layer with `Fusion.trace`.

    Args:
        model: in evaluation mode.
        streams: as they enter the first fused layer.
        masks: name -> bool [B, N] of real tokens; None: all.
        present: name -> bool [B]; None: all present.
        sources: of each layer, from the first one up.

    Raises:
        MBTError: if information takes a way that `trace` does not lead back on, or if that cannot be told.
    """
    fusion, layers = model.fusion, range(model.first_fused, model.backbone.depth)
    where = "at the start"
    try:
        state, derived = fusion.start(streams), _start_derives(fusion, streams, masks)
        for index in layers:
            where = f"layer {index}"
            layer = _Layer(fusion, index, model.blocks_of(index), streams, state, masks, present, sources[index])
            derived = layer.check(derived)
            streams, state = layer.streams_after, layer.state_after
    except MBTError:
        raise
    except Exception as error:  # of another kind than ours: the strategy's methods do not fit together
        problem = str(error) if isinstance(error, Unaccounted) else f"its methods fail: {type(error).__name__}: {error}"
        raise MBTError(
            f"the fusion strategy {model.config.fusion.strategy!r}, {where}: {problem}. So it is not known what a "
            "prediction rests on: the strategy has to define `trace` for it, see docs/writing-a-fusion-strategy.md"
        ) from error


class _Call:
    """Stands for a block: notes its queries and keys; gives what the block gives, or `output` in its place."""

    def __init__(self, name: str, block: Any, output: Tensor | None = None) -> None:
        self.name, self.block, self.output = name, block, output
        self.queries, self.keys = 0, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def __call__(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, record: Any = None
    ) -> Tensor:
        if self.queries:
            raise Unaccounted(f"{_block(self.name)} runs twice")
        self.queries, self.keys = x.shape[1], x if context is None else torch.cat((x, context), 1)
        if self.output is None:
            self.output = self.block(x, context, mask)
        return self.output.clone()


@dataclass(frozen=True)
class _Seen:
    """What a run of a layer shows: the parts of its blocks' keys, its outputs and bottlenecks, its other state."""

    keys: dict[Part, Tensor]
    outputs: dict[str, Tensor]
    others: list[Tensor]


class _Layer:
    """A fused layer as it ran, and as it runs again with something changed."""

    def __init__(
        self,
        fusion: Fusion,
        index: int,
        blocks: Mapping[str, Any],
        streams: Streams,
        state: Any,
        masks: Masks,
        present: Presence,
        sources: Sources,
    ) -> None:
        self.fusion, self.index, self.sources = fusion, index, sources
        self.streams, self.state, self.masks, self.present = streams, state, masks, present
        self.calls = {name: _Call(name, block) for name, block in blocks.items()}
        self.streams_after, self.state_after = self._run(self.calls, streams, state)
        self.seen = self._look(self.calls, self.streams_after, self.state_after)

    def _run(self, calls: dict[str, _Call], streams: Streams, state: Any) -> tuple[Streams, Any]:
        return self.fusion.layer(self.index, calls, dict(streams), state, self.masks, self.present)

    def _look(self, calls: Mapping[str, _Call], streams: Streams, state: Any) -> _Seen:
        keys: dict[Part, Tensor] = {}
        for name, call in calls.items():
            if call.queries and name not in self.sources:
                raise Unaccounted(f"{_block(name)} runs without `record`")
            if call.queries:
                parts = call.keys.split([count for _, count in self.sources[name]], 1)
                keys |= {(name, source): x for (source, _), x in zip(self.sources[name], parts, strict=True)}
        own = _State(self.fusion, state)
        bottlenecks = {} if own.bottlenecks is None else {BOTTLENECKS: own.bottlenecks}
        return _Seen(keys, {**streams, **bottlenecks}, own.others)

    def _again(
        self, streams: Streams | None = None, state: Any = None, outputs: Mapping[str, Tensor] | None = None
    ) -> _Seen:
        """What is seen with blocks that give what they gave, or `outputs` in its place."""
        calls = {n: _Call(n, call.block, (outputs or {}).get(n, call.output)) for n, call in self.calls.items()}
        return self._look(calls, *self._run(calls, streams or self.streams, self.state if state is None else state))

    def check(self, derived: bool) -> bool:
        """Compares the layer with its trace.

        Args:
            derived: whether what the state holds besides bottlenecks was made of tokens.

        Returns:
            The same of the next state.

        Raises:
            Unaccounted: the first way that is not led back on.
        """
        trace = _Trace(self.fusion, self.seen, self.calls, self.sources, self.present)
        state = _State(self.fusion, self.state)
        if derived and state.others and self._follows([self._again(state=s) for s in state.changed(others=True)]):
            raise Unaccounted("what its state holds of the streams besides `bottlenecks_of` takes part")
        after = derived
        for name, x in self.streams.items():
            changed = [self._again({**self.streams, name: y}) for y in _changed(x, self.masks[name])]
            after |= self._compare(name, None, changed, trace)
            for token, y in _changed_at(x, self.masks[name]):
                self._compare_at(name, None, self._again({**self.streams, name: y}), trace, token)
        if state.bottlenecks is not None:
            self._compare(BOTTLENECKS, None, [self._again(state=s) for s in state.changed()], trace)
        for name, call in self.calls.items():
            if call.output is not None:
                changed = [self._again(outputs={name: y}) for y in _changed(call.output, None)]
                after |= self._compare(name, name, changed, trace)
                for token, y in _changed_at(call.output, None):
                    self._compare_at(name, name, self._again(outputs={name: y}), trace, token)
        return after

    def _follows(self, changed: Sequence[_Seen]) -> bool:
        before = [*self.seen.keys.values(), *self.seen.outputs.values()]
        return any(
            _differ(x, y)
            for seen in changed
            for x, y in zip(before, [*seen.keys.values(), *seen.outputs.values()], strict=True)
        )

    def _compare(self, name: str, block: str | None, changed: Sequence[_Seen], trace: _Trace) -> bool:
        """What followed a change of stream `name`, or of what `block` gave. Whether the rest of the state did."""
        what = _tokens(name) if block is None else f"what {_block(block)} gives"
        for output, x in self.seen.outputs.items():
            samples_B = self._samples(name, output)
            follows = any(_differ(x, seen.outputs[output], samples_B) for seen in changed)
            if follows and not (trace.passes(output, name) if block is None else trace.reaches(output, block)):
                way = " beside the blocks" if block is None else ""
                raise Unaccounted(
                    f"{_tokens(output)} after it take from {what}{way}, and `trace` does not lead back there"
                )
        for part, x in self.seen.keys.items():
            samples_B = self._samples(name, part[0])
            follows = any(_differ(x, seen.keys[part], samples_B) for seen in changed)
            if follows and not trace.leads(part, name, block):
                raise Unaccounted(
                    f"in {_block(part[0])} the keys that stand for {_tokens(part[1])} take from {what}, and `trace` "
                    "does not lead back there"
                )
        return any(_differ(x, y) for seen in changed for x, y in zip(self.seen.others, seen.others, strict=True))

    def _compare_at(self, name: str, block: str | None, seen: _Seen, trace: _Trace, token: int) -> None:
        """As `_compare`, of one token alone: what mixes tokens within a stream is a way as well."""
        outputs = [(key, None, x, seen.outputs[key]) for key, x in self.seen.outputs.items()]
        parts = [(part[0], part, x, seen.keys[part]) for part, x in self.seen.keys.items()]
        for key, part, x, y in [*outputs, *parts]:
            different = _different(x, y, self._samples(name, key))
            changed = different.flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()
            for position in {*changed[:1], *changed[-1:]}:
                led, asked = trace.from_token(key, position) if part is None else trace.from_key(part, position)
                rows = led.get(name) if block is None else asked.get(block)
                if rows is None or not rows[..., token].any():
                    raise Unaccounted(
                        f"token {position} of {key!r} takes from token {token} of {name!r} beside the attention of its "
                        "block, and `trace` does not lead back there"
                    )

    def _samples(self, *names: str) -> Tensor | None:
        """bool [B], which samples have all of these, and anything at all; None: all."""
        if self.present is None:
            return None
        each = [self.present[name] for name in names if name in self.present]
        return torch.stack([torch.stack([*self.present.values()]).any(0), *each]).all(0)


class _Trace:
    """Where `Fusion.trace` leads, found by attention that is told where to go."""

    def __init__(
        self, fusion: Fusion, seen: _Seen, calls: Mapping[str, _Call], sources: Sources, present: Presence
    ) -> None:
        self.fusion, self.seen, self.calls, self.sources, self.present = fusion, seen, calls, sources, present
        self.outputs = list(seen.outputs)
        self.rows = self._rows()
        self.led, asked = self._run(self.rows, lambda part, count, total: 0.0)
        self.reached = {name: x.sum(-1).sum(0) for name, x in asked.items()}
        each, _ = self._run(self.rows, lambda part, count, total: count / total)
        rows_BQ, led_BQ = (torch.stack([x.sum(-1) for x in rows.values()]).sum(0) for rows in (self.rows, each))
        if (lost_BQ := (rows_BQ - led_BQ).abs() > CONSERVED * rows_BQ).any():
            output = self.outputs[int(lost_BQ.any(0).int().argmax())]
            raise Unaccounted(f"`trace` does not lead all of what rests on {_tokens(output)} to the layer's input")
        self.parts = {part: self._run(self.rows, lambda p, *_, part=part: float(p == part)) for part in seen.keys}

    def _rows(self) -> Rows:
        """Over each output [B, Q, N]: 1 in the row that is its own, where it is present."""
        rows = {}
        for number, (name, x) in enumerate(self.seen.outputs.items()):
            rows[name] = x.new_zeros(x.shape[0], len(self.outputs), x.shape[1])
            rows[name][:, number] = 1
            if self.present is not None:
                has_B = self.present[name] if name in self.present else torch.stack([*self.present.values()]).any(0)
                rows[name] *= has_B[:, None, None]
        return rows

    def _run(
        self, rows: Rows, share: Callable[[Part, int, int], float], key: int | None = None
    ) -> tuple[Rows, dict[str, Tensor]]:
        """Rows over the input, and block -> what is asked of each of its queries [B, Q, N].

        `share`: of a part of a block's keys, with its number and that of all: what attention gives to it, to all its
        keys alike or to one `key`.
        """
        asked: dict[str, Tensor] = {}

        def attend(name: str, x_BQN: Tensor) -> Rows:
            if name not in self.sources:
                raise Unaccounted(f"{_block(name)} does not run, or not with `record`")
            if x_BQN.shape[-1] != self.calls[name].queries:
                raise Unaccounted(
                    f"`trace` asks {_block(name)} for {x_BQN.shape[-1]} queries, it has {self.calls[name].queries}"
                )
            asked[name] = asked[name] + x_BQN if name in asked else x_BQN
            parts = self.sources[name]
            total, led = sum(count for _, count in parts), {}
            for source, count in parts:
                amount_BQ1 = x_BQN.sum(-1, keepdim=True) * share((name, source), count, total)
                led[source] = amount_BQ1.expand(-1, -1, count) / count
                if key is not None:
                    led[source] = amount_BQ1 * (torch.arange(count, device=amount_BQ1.device) == key)
            return led

        return self.fusion.trace(rows, attend, self.present), asked

    def from_token(self, output: str, token: int) -> tuple[Rows, dict[str, Tensor]]:
        """`_run` from one token of an output, without attention."""
        rows = {name: torch.zeros_like(x[:, :1]) for name, x in self.rows.items()}
        rows[output][..., token] = 1
        return self._run(rows, lambda *_: 0.0)

    def from_key(self, part: Part, key: int) -> tuple[Rows, dict[str, Tensor]]:
        """`_run` from one key of a block, beyond what goes without it."""
        led, asked = self._run(self.rows, lambda p, *_: float(p == part), key)
        before, reached = self._run(self.rows, lambda *_: 0.0)
        return (
            {name: x - before[name] if name in before else x for name, x in led.items()},
            {name: x - reached[name] if name in reached else x for name, x in asked.items()},
        )

    def passes(self, output: str, source: str) -> bool:
        """Whether it leads from an output to an input without attention."""
        return source in self.led and bool(self.led[source][:, self.outputs.index(output)].any())

    def reaches(self, output: str, block: str) -> bool:
        """Whether it asks for a block's attention from an output."""
        return block in self.reached and bool(self.reached[block][self.outputs.index(output)])

    def leads(self, part: Part, source: str, block: str | None) -> bool:
        """Whether it leads from a part of a block's keys to an input, or to another block."""
        led, reached = self.parts[part]
        if block is not None:
            return block in reached and not torch.equal(reached[block].sum(-1).sum(0), self.reached[block])
        return source in led and not (source in self.led and torch.equal(led[source], self.led[source]))


class _State:
    """The tensors of a strategy's state: its bottlenecks, and what else it holds.

    Raises:
        Unaccounted: for a state that is neither a tensor nor a tuple, list or dictionary of them.
    """

    def __init__(self, fusion: Fusion, state: Any) -> None:
        self.leaves, self.structure = pytree.tree_flatten(state)
        self.bottlenecks = fusion.bottlenecks_of(state)
        tensors = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        for leaf in self.leaves:
            if not isinstance(leaf, Tensor | bool | int | float | str | None):
                raise Unaccounted(
                    f"its state holds a {type(leaf).__name__}; expected tensors, in tuples, lists or dicts"
                )
        own = [i for i in tensors if self.leaves[i] is self.bottlenecks]
        if not own and self.bottlenecks is not None:  # made of the state's tensors
            own = tensors
        self.places = {False: own, True: [i for i in tensors if i not in own]}

    @property
    def others(self) -> list[Tensor]:
        """What is no bottleneck."""
        return [self.leaves[i] for i in self.places[True]]

    def changed(self, others: bool = False) -> list[Any]:
        """States with other bottlenecks, or with others in place of all else."""
        ways = [_changed(self.leaves[i], None) for i in self.places[others]]
        return [
            pytree.tree_unflatten(
                [dict(zip(self.places[others], way, strict=True)).get(i, x) for i, x in enumerate(self.leaves)],
                self.structure,
            )
            for way in zip(*ways, strict=True)
        ]


def _start_derives(fusion: Fusion, streams: Streams, masks: Masks) -> bool:
    """Whether what the first state holds besides bottlenecks is made of tokens. The bottlenecks must not be."""
    first, derives = _State(fusion, fusion.start(streams)), False
    for name, x in streams.items():
        for y in _changed(x, masks[name]):
            other = _State(fusion, fusion.start({**streams, name: y}))
            before, after = first.bottlenecks, other.bottlenecks
            if before is not None and (after is None or _differ(before, after)):
                raise Unaccounted(f"its bottlenecks start from {_tokens(name)}")
            derives |= any(_differ(a, b) for a, b in zip(first.others, other.others, strict=True))
    return derives


def _changed(x: Tensor, mask_BN: Tensor | None) -> list[Tensor]:
    """Two others in place of a tensor: with noise on it, and its negative, which any threshold tells apart."""
    if not x.is_floating_point():
        return [x, x]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    changed = [x + (1 + x.abs().mean()) * noise, -x]
    return changed if mask_BN is None else [torch.where(mask_BN[..., None], y, x) for y in changed]


def _changed_at(x: Tensor, mask_BN: Tensor | None) -> list[tuple[int, Tensor]]:
    """(token, the tensor with noise on it alone), of the first two: a class token, if there is one, and another."""
    other = _changed(x, mask_BN)[0]
    tokens = torch.arange(x.shape[1], device=x.device)[None, :, None]
    return [(token, torch.where(tokens == token, other, x)) for token in range(min(2, x.shape[1]))]


def _differ(x: Tensor, y: Tensor, samples_B: Tensor | None = None) -> bool:
    """Whether two tensors [B, ...] are not the same, in these samples."""
    return x.shape != y.shape or bool(_different(x, y, samples_B).any())


def _different(x: Tensor, y: Tensor, samples_B: Tensor | None) -> Tensor:
    """Where they are not the same, in these samples: bool [B, ...]."""
    largest = x.abs().max() if x.numel() else x.sum()
    different = ~((x - y).abs() <= TOLERANCE * largest)
    return different if samples_B is None else different[samples_B]


def _tokens(name: str) -> str:
    return "the bottlenecks" if name == BOTTLENECKS else f"the tokens of {name!r}"


def _block(name: str) -> str:
    return "the joint block" if name == JOINT else f"the block of {name!r}"
