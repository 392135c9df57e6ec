"""How near a training step is to what the machine allows: MBT-B on the paper's input, 8 frames and 8 s of sound.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--small] [--precision 32 bf16 weights] [--batch-size 1 4] [--json]
    python benchmarks/step.py --device cuda --precision bf16 --batch-size 64 --compile

Compares forward passes and whole training steps (forward, loss, backward, update) of MBT with (a) two plain timm ViTs
on as many tokens, (b) the time that the model's own matrix products take alone, each at its best, and (c) every other
fusion strategy. All take turns in every round; each figure is the median of the rounds.

(b) are the products that a run of the model really calls, those of the backward pass and of attention (two forward,
four backward) included, with operands and result in place, in the best of three layouts. Precision ``bf16`` is autocast
with weights in fp32, as ``train.precision=bf16``; ``weights`` has all in bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mbt_core import MBT
from mbt_core.model.block import compile_blocks
from mbt_core.model.loss import example_losses
from mbt_core.plugins import registry

CLASSES, FRAMES, SECONDS = 527, 8, 8.0
PRECISIONS = ("32", "bf16", "weights")
WAYS = ("forward", "train")
OURS, PLAIN, BOUND = "bottleneck", "two timm ViTs", "matrix products alone"


@dataclass(frozen=True)
class Setting:
    """One table: where, how precise, how many clips."""

    device: torch.device
    precision: str
    batch_size: int
    compile: bool
    clock: str

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and weights."""
        return torch.bfloat16 if self.precision == "weights" else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    def seconds(self, call: Callable[[], Any]) -> float:
        start = self.now()
        call()
        return self.now() - start


class Product(NamedTuple):
    """`batch` products [m, k] x [k, n]."""

    batch: int
    m: int
    k: int
    n: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n

    def layouts(self, device: torch.device) -> Iterator[Callable[[], Any]]:
        """The product with both operands as they lie, or one of them transposed."""

        def operand(rows: int, columns: int) -> Tensor:
            return torch.randn(self.batch, rows, columns, device=device).to(self.dtype)

        out = operand(self.m, self.n)
        for turned in ((False, False), (False, True), (True, False)):
            a = operand(self.k, self.m).mT if turned[0] else operand(self.m, self.k)
            b = operand(self.n, self.k).mT if turned[1] else operand(self.k, self.n)
            if self.batch == 1:
                yield lambda a=a[0], b=b[0], out=out[0]: torch.mm(a, b, out=out)  # type: ignore[misc]
            else:
                yield lambda a=a, b=b, out=out: torch.bmm(a, b, out=out)  # type: ignore[misc]


class Products(TorchDispatchMode):
    """Notes every matrix product that is called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:]
            self._add(a.shape[0] if a.dim() == 3 else 1, a.shape[-2], a.shape[-1], b.shape[-1], a.dtype)
        elif name.startswith(("_scaled_dot_product", "attend_bf16")):
            q, k = args[1:3] if name.endswith("_backward") else args[:2]
            batch, rows, columns, width = q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3]
            shapes = [(rows, width, columns), (rows, columns, width)]
            if name.endswith("_backward"):
                shapes += [(columns, rows, width)] * 2
            for shape in shapes:
                self._add(batch, *shape, q.dtype)
        return func(*args, **(kwargs or {}))

    def _add(self, *product: Any) -> None:
        self.found[Product(*product)] += 1


class Bound:
    """The time of the products alone.

    Args:
        found: product -> how often it is called.
        setting: where to run them.
    """

    def __init__(self, found: Counter[Product], setting: Setting) -> None:
        self.found, self.setting = found, setting
        self.flops = sum(product.flops * times for product, times in found.items())
        self.best: dict[Product, int] = {}
        for product in found:
            taken = [min(self._times(call)) for call in product.layouts(setting.device)]
            self.best[product] = min(range(len(taken)), key=taken.__getitem__)

    def _times(self, call: Callable[[], Any]) -> list[float]:
        call()
        return [self.setting.seconds(call) for _ in range(2)]

    def seconds(self) -> float:
        """Their sum, measured anew."""
        total = 0.0
        for product, times in self.found.items():
            call = [*product.layouts(self.setting.device)][self.best[product]]
            total += times * min(self._times(call))
        return total


@dataclass
class Contestant:
    """A model with a forward pass to a loss."""

    model: nn.Module
    loss: Callable[[], Tensor]
    setting: Setting

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9, fused=True)

    def forward(self) -> None:
        self.model.eval()
        with torch.no_grad(), self.setting.autocast():
            self.loss()

    def train(self) -> None:
        self.model.train()
        with self.setting.autocast():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def mbt(
    size: argparse.Namespace,
    inputs: dict[str, Tensor],
    setting: Setting,
    strategy: str = OURS,
    shared: nn.Module | None = None,
    **options: Any,
) -> Contestant:
    """MBT; `shared`: a model whose weights it takes where it has the same ones; `options`: of the model's settings."""
    config = {
        **options,
        "modalities": {
            "rgb": {"frames": FRAMES, "size": size.size, "seconds": SECONDS},
            "audio": {"seconds": size.seconds, "mean": 0.0, "std": 1.0},
        },
        "backbone": {"dim": size.dim, "depth": size.depth, "heads": size.heads},
        "fusion": {"strategy": strategy, "layer": size.depth * 2 // 3, "bottlenecks": 4},
        "head": {"classes": CLASSES, "task": "multilabel"},
    }
    model = MBT(config).to(setting.device, setting.dtype)
    if shared is not None:  # not for their values, but for the memory
        model.load_state_dict(shared.state_dict(), strict=False, assign=True)
    if setting.compile:
        compile_blocks(model)
    targets = {name: {"label": _targets(setting)} for name in (*inputs, "")}
    return Contestant(model, lambda: example_losses(model(inputs), targets, model.config.head).mean(), setting)


def two_vits(size: argparse.Namespace, inputs: dict[str, Tensor], setting: Setting) -> Contestant:
    """Each on one modality; the frames lie below each other in one tall picture."""
    pictures = [inputs["rgb"].transpose(1, 2).flatten(0, 1).unflatten(0, (-1, FRAMES)).transpose(1, 2).flatten(2, 3)]
    pictures.append(inputs["audio"])
    vits = nn.ModuleList(
        VisionTransformer(
            img_size=tuple(picture.shape[2:]),
            in_chans=picture.shape[1],
            num_classes=CLASSES,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
        )
        for picture in pictures
    ).to(setting.device, setting.dtype)
    if setting.compile:
        for vit in vits:
            for block in vit.blocks:  # type: ignore[union-attr]
                block.compile()
    target = _targets(setting)

    def loss() -> Tensor:
        logits = [vit(picture) for vit, picture in zip(vits, pictures, strict=True)]
        losses = [F.binary_cross_entropy_with_logits(x.float(), target, reduction="none").sum(1) for x in logits]
        return torch.stack(losses).mean()

    return Contestant(vits, loss, setting)


def _targets(setting: Setting) -> Tensor:
    return torch.zeros(setting.batch_size, CLASSES, device=setting.device)


def make_inputs(size: argparse.Namespace, setting: Setting) -> dict[str, Tensor]:
    shapes = {"rgb": (3, FRAMES, size.size, size.size), "audio": (1, round(100 * size.seconds), 128)}
    return {
        name: torch.randn(setting.batch_size, *shape, device=setting.device).to(setting.dtype)
        for name, shape in shapes.items()
    }


def products_of(call: Callable[[], Any]) -> Counter[Product]:
    with Products() as products:
        call()
    return products.found


def measure(size: argparse.Namespace, setting: Setting, rounds: int, others: bool) -> dict[str, Any]:
    """All contestants in turns: name -> pass -> median seconds and median ratios to ours."""
    torch.manual_seed(0)
    inputs = make_inputs(size, setting)
    eager = mbt(size, inputs, replace(setting, compile=False))  # a compiled model's products cannot be seen
    bounds = {way: Bound(products_of(getattr(eager, way)), setting) for way in WAYS}
    contestants = {OURS: mbt(size, inputs, setting, shared=eager.model)}
    if others:
        for name in registry().fusions:
            contestants.setdefault(name, mbt(size, inputs, setting, name, eager.model))
        contestants["with checkpointing"] = mbt(size, inputs, setting, shared=eager.model, checkpointing=True)
        contestants["with patch_drop 0.5"] = mbt(size, inputs, setting, shared=eager.model, patch_drop=0.5)
    contestants[PLAIN] = two_vits(size, inputs, setting)
    calls = {
        (name, way): getattr(contestant, way)
        for name, contestant in contestants.items()
        for way in ("forward", "train")
    }
    for call in calls.values():  # compiles, makes the optimiser's state
        call()
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for key, call in calls.items():
            taken.setdefault(key, []).append(setting.seconds(call))
        for way, bound in bounds.items():
            taken.setdefault((BOUND, way), []).append(bound.seconds())
    found: dict[str, Any] = {}
    for (name, way), seconds in taken.items():
        ours = taken[OURS, way]
        found.setdefault(name, {})[way] = {
            "seconds": statistics.median(seconds),
            "ours_to_this": statistics.median(a / b for a, b in zip(ours, seconds, strict=True)),
            "tflops": bounds[way].flops / statistics.median(seconds) / 1e12 if name in (OURS, BOUND) else None,
        }
    peak = _peak(setting)
    return {
        "precision": setting.precision,
        "batch_size": setting.batch_size,
        "compile": setting.compile,
        "found": found,
        "peak_tflops": peak / 1e12,
        "of_peak": bounds["train"].flops / found[OURS]["train"]["seconds"] / peak,
    }


def _peak(setting: Setting) -> float:
    """Operations a second of one large square product."""
    side = 8192 if setting.device.type == "cuda" else 2048
    product = Product(1, side, side, side, torch.float32 if setting.precision == "32" else torch.bfloat16)
    bound = Bound(Counter({product: 1}), setting)
    return product.flops / min(bound.seconds() for _ in range(3))


def show(result: dict[str, Any], console: Console) -> None:
    compiled = ", blocks compiled" if result["compile"] else ""
    table = Table(title=f"precision {result['precision']}, batch of {result['batch_size']}{compiled}")
    for heading in ("", "forward s", "ours / this", "training s", "ours / this"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, ways in result["found"].items():
        cells = [f"{ways[w][key]:.3f}" for w in WAYS for key in ("seconds", "ours_to_this")]
        table.add_row(name, *cells)
    console.print(table)
    ours, bound = (result["found"][name]["train"] for name in (OURS, BOUND))
    allowed, of_peak = 100 / bound["ours_to_this"], 100 * result["of_peak"]
    console.print(f"training reaches {allowed:.0f} % of what the matrix products allow, {ours['tflops']:.3f} TFLOP/s")
    console.print(f"or {of_peak:.0f} % of a large square product's {result['peak_tflops']:.3f} TFLOP/s\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", default=["32", "bf16"], choices=PRECISIONS)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the processor; else OMP_NUM_THREADS, or all cores")
    parser.add_argument("--compile", action="store_true", help="compile each block, of MBT and of the plain ViTs")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: where others use the machine too"
    )
    parser.add_argument("--no-strategies", action="store_true", help="without the other fusion strategies")
    add_size(parser)
    return settle_size(parser.parse_args())


def add_size(parser: argparse.ArgumentParser) -> None:
    """Options of the model's and the input's size."""
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=224, help="side of a frame in pixels")
    parser.add_argument("--seconds", type=float, default=8.0, help="of sound")
    parser.add_argument("--small", action="store_true", help="a quick look: width 192, 4 blocks, 112 pixels, 2 s")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of tables")


def settle_size(given: argparse.Namespace) -> argparse.Namespace:
    if given.small:
        given.dim, given.depth, given.heads, given.size, given.seconds = 192, 4, 3, 112, 2.0
    return given


def main() -> None:
    given, console = parse(), Console()
    if given.threads:
        torch.set_num_threads(given.threads)
    device, results = torch.device(given.device), []
    for precision in given.precision:
        for batch_size in given.batch_size:
            setting = Setting(device, precision, batch_size, given.compile, given.clock)
            results.append(measure(given, setting, given.rounds, not given.no_strategies))
            if not given.json:
                show(results[-1], console)
    if given.json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        print(
            json.dumps({"device": name, "torch": torch.__version__, "size": vars(given), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
