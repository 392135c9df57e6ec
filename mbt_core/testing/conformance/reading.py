"""Checks of samples: what `read`, `blank`, `collate` and the preprocessor give, and that it is the same every time."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor

from mbt_core.media import Clip
from mbt_core.modality import Modality
from mbt_core.testing.conformance.case import Case, Fault, equal, named, seeded

FRESH, OTHERS = 1, (2, 3, 4, 5)
"""States of the global random generators; several, since one coin may fall alike in two."""


def check_samples(case: Case) -> None:
    """Training, evaluation and blank give the same keys, types and shapes, whatever the file and the window"""
    expected = case.samples[0]
    _check_values("read", expected)
    pads = type(case.modality).collate is not Modality.collate
    found = {f"evaluation of file {number}": sample for number, sample in enumerate(case.samples)}
    found |= {f"training of file {number}": case.read(number, seed=number) for number in range(len(case.files))}
    found["blank"] = case.modality.blank()
    if case.modality.seconds is not None:
        with Clip(case.files[0]) as clip:
            end = case.modality.duration(clip)
            if end:
                window = case.window(clip)
                shift = end - (window.start + window.stop) / 2
                past = type(window)(window.start + shift, window.stop + shift)
                found["a window that passes the file's end"] = case.modality.read(clip, past, None)
    for what, sample in found.items():
        _check_values(what, sample)
        _check_alike(what, sample, expected, pads)


def _check_values(what: str, sample: Any) -> None:
    if not isinstance(sample, Tensor | dict):
        raise Fault(f"{what} is a {type(sample).__name__}, expected a tensor or a dictionary of tensors")
    for key, value in named(sample).items():
        if not isinstance(value, Tensor):
            raise Fault(f"{what}: {key!r} is a {type(value).__name__}, expected a tensor")
        if value.is_floating_point() and not value.isfinite().all():
            raise Fault(f"{what}{_of(key)}: values that are not finite")


def _check_alike(what: str, sample: Any, expected: Any, pads: bool) -> None:
    one, two = named(sample), named(expected)
    if one.keys() != two.keys():
        raise Fault(f"{what} has the keys {sorted(one)}, evaluation has {sorted(two)}")
    for key, value in two.items():
        came = one[key]
        if came.dtype != value.dtype:
            raise Fault(f"{what}{_of(key)} is {_short(came.dtype)}, evaluation gives {_short(value.dtype)}")
        if came.ndim != value.ndim or (came.shape != value.shape and not pads):
            hint = "" if came.ndim != value.ndim else "; give all one shape, or pad in collate and return a mask"
            raise Fault(f"{what}{_of(key)} is {list(came.shape)}, evaluation gives {list(value.shape)}{hint}")


def check_collate(case: Case) -> None:
    """Present and blank samples, in any mixture, make a batch"""
    blank = case.modality.blank()
    for samples in ([blank, *case.samples], case.samples[:1], [blank, blank]):
        batch = case.modality.collate(samples)
        if not isinstance(batch, Tensor | dict):
            raise Fault(f"collate returns a {type(batch).__name__}, expected a tensor or a dictionary of tensors")
        for key, value in named(batch).items():
            if not isinstance(value, Tensor) or not value.ndim or len(value) != len(samples):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise Fault(f"a batch of {len(samples)}{_of(key)} is {shape}, expected [{len(samples)}, ...]")


def check_determinism(case: Case) -> None:
    """Equal generators give equal samples, in this process and in a worker's pickled copy of the modality"""
    first = _read(case, FRESH, 7)
    if not all(equal(_read(case, state, 7), first) for state in OTHERS):
        raise Fault("equal generators give different samples; draw from the `rng` that read is given, and nowhere else")
    with Clip(case.files[0]) as clip:
        with seeded(FRESH):
            case.read_clip(clip, 8)
        with seeded(FRESH):
            again = case.read_clip(clip, 7)
    if not equal(again, first):
        raise Fault("a second read of one clip gives another sample; change neither what the clip returns nor yourself")
    try:
        copied = pickle.loads(pickle.dumps(case.modality))
    except Exception as error:
        raise Fault(f"it cannot be sent to a worker process: {type(error).__name__}: {error}") from error
    if not equal(_read(case, FRESH, 7, copied), first):
        raise Fault("a pickled copy, as a worker process has it, reads another sample")


def check_evaluation(case: Case) -> None:
    """Without a generator nothing is random"""
    first = _read(case, FRESH, None)
    if not all(equal(_read(case, state, None), first) for state in OTHERS):
        raise Fault("read is random where rng is None; evaluation must be deterministic")


def _read(case: Case, state: int, seed: int | None, modality: Modality | None = None) -> Any:
    with seeded(state):
        return case.read(0, seed, modality)


def check_preprocessor(case: Case) -> None:
    """The preprocessor has nothing to train, draws nothing, and leaves its batch as it is"""
    made = case.modality.preprocessor()
    trained = [name for name, _ in made.named_parameters()]
    if trained:
        raise Fault(f"the preprocessor has parameters ({', '.join(trained)}); what is trained belongs to the tokenizer")
    batch = case.modality.collate([case.read(0, seed=1), case.modality.blank(), *case.samples])
    kept = {key: value.clone() for key, value in named(batch).items()}
    outputs = []
    for state in (FRESH, *OTHERS):
        with seeded(state), torch.no_grad():
            outputs.append(_pair(made.train()(batch)))
    if not equal(kept, named(batch)):
        raise Fault("the preprocessor changes its batch in place")
    for one, *others in zip(*outputs, strict=True):
        if one is not None and not all(equal(one, other) for other in others):
            raise Fault("the preprocessor is random; draw in read, return what was drawn, and only apply it here")
    x, mask = outputs[0]
    if len(x) != len(case.samples) + 2:
        raise Fault(f"the preprocessor makes {list(x.shape)} of a batch of {len(case.samples) + 2}")
    if x.is_floating_point() and not x.isfinite().all():
        raise Fault("the preprocessor gives values that are not finite")
    if mask is not None and mask.dtype != torch.bool:
        raise Fault(f"the mask is {_short(mask.dtype)}, expected bool, True where a token is real")


def _pair(given: Any) -> tuple[Tensor, Tensor | None]:
    x, mask = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(x, Tensor):
        raise Fault(f"the preprocessor returns a {type(given).__name__}, expected a tensor or (tensor, mask)")
    return x, mask


def _of(key: str) -> str:
    return f" {key!r}" if key else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
