"""What a whole training step costs on real architectures: time, and peak memory.

On a CPU all optimizers take turns, round after round, so that a machine that is busy for a while
slows all of them down; on a GPU, where they would not fit side by side, one comes after the other.
"""

import argparse
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from statistics import fmean, median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from bench import console as c
from bench import networks, results
from bench.kernels import ratios, turns
from bench.methods import Method, adamw, closure_step, plain_step
from bench.networks import parameter_count
from bench.optimizers import fused_salsa
from bench.peers import AUTHORS_SALSA, D_ADAPTATION, PRODIGY, SCHEDULE_FREE, versions
from bench.results import Results, Row, timed_rows
from bench.sets.batches import Batch, on, random_windows
from bench.sets.reviews import reviews
from bench.sets.text import plays
from bench.tables import by_case
from bench.training import Loop, Run

T = TypeVar("T")
FUSED, OURS = "AdamW, fused", "FusedSaLSa"  # the ratios are to the first
WARM_UP = 20  # steps of an optimizer that searches: it looks for the order of magnitude first
BLOCK = 10  # steps in a round of an optimizer that searches: its longest period
FEW = 3  # of the others
SETTLED = 4  # steps after which memory has reached its peak
KINDS = ("a plain step", "a search accepted at once", "a search with rejections")
PLAIN, AT_ONCE, REJECTED = KINDS


def compiled_adamw() -> Method:
    """AdamW whose step torch.compile has made one graph of."""
    method = adamw("AdamW, compiled", "torch.compile")

    def build(model: nn.Module) -> torch.optim.Optimizer:
        torch._dynamo.reset()  # it keeps the tensors of what it compiled before
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # that profilers are left out
        optimizer = method.build(model)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[assignment]
        return optimizer

    return replace(method, build=build)


def in_bf16(method: Method) -> Method:
    return replace(method, build=lambda model: method.build(model.bfloat16()))


METHODS = (
    adamw(FUSED, fused=True), adamw("AdamW, foreach", foreach=True), compiled_adamw(),
    fused_salsa(OURS), AUTHORS_SALSA, PRODIGY, SCHEDULE_FREE,
)  # fmt: skip
HALVES: dict[str, Any] = {"exp_avg_dtype": torch.bfloat16, "exp_avg_sq_dtype": torch.bfloat16}
MASTERS = partial(fused_salsa, master_weights=True, look_back=False)
MEMORY_METHODS = (
    *METHODS, D_ADAPTATION, fused_salsa(f"{OURS}, look_back=False", look_back=False),
    in_bf16(adamw("bf16: AdamW, fused", fused=True)),
    in_bf16(MASTERS("bf16: masters, look_back=False")),
    in_bf16(MASTERS("bf16: masters, bf16 moments, look_back=False", **HALVES)),
)  # fmt: skip


# --- the workloads: to add one, name it in ON_CPU or ON_GPU ---------------------------------------

# The data can be learnt, so that searches find what they find in training: plays, reviews with a
# word in seven masked, and images with their class's pattern.
IGNORED, MASK = -100, 103  # the target of a token that is not to be predicted; BERT's own token
CLASSES = 1000


class Workload(NamedTuple):
    title: str
    model: Callable[[], nn.Module]
    draw: Callable[[int, int, torch.Generator], Iterator[Batch]]  # of a batch, and of its rows
    batch: int
    length: int  # of a row, in tokens, or of an image's side

    @property
    def case(self) -> str:
        return self.title.lower().replace(" ", "-").replace(",", "")

    def describe(self) -> str:
        with torch.device("meta"):
            count = parameter_count(self.model())
        side = f"3 x {self.length} x {self.length}" if self.draw is images else self.length
        return f"{self.title}, {count / 1e6:,.1f} M parameters, batch {self.batch} x {side}"


def images(batch: int, side: int, generator: torch.Generator) -> Iterator[Batch]:
    patterns = torch.randn(CLASSES, 3, 1, 1, generator=generator)
    while True:
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        noise = torch.randn(batch, 3, side, side, generator=generator)
        yield Batch(noise + patterns[labels], labels)


def masked(batch: int, time: int, generator: torch.Generator) -> Iterator[Batch]:
    (rows, _), _ = reviews()
    for tokens, _ in random_windows(rows[rows != networks.PADDING], time, batch, generator):
        chosen = torch.rand(tokens.shape, generator=generator) < 0.15
        yield Batch(torch.where(chosen, MASK, tokens), torch.where(chosen, tokens, IGNORED))


def text(batch: int, time: int, generator: torch.Generator) -> Iterator[Batch]:
    return random_windows(plays().train, time, batch, generator)


def bert(size: str) -> nn.Module:
    return networks.masked_bert(networks.bert_config(size))


gpt2 = partial(networks.gpt, networks.GPT2_VOCABULARY, 1024)

ON_CPU = (
    Workload("ResNet-18", partial(networks.resnet, 18), images, 8, 64),
    Workload("BERT-small", partial(bert, "small"), masked, 2, 64),
    Workload("GPT-2, 6 layers of 384", partial(gpt2, 6, 6, 384), text, 2, 64),
    Workload("Llama, 4 layers of 256", partial(networks.llama, "tiny"), text, 2, 64),
)
REAL_SIZES = (  # with batches that a CPU can do
    Workload("ResNet-50", partial(networks.resnet, 50), images, 4, 224),
    Workload("BERT-base", partial(bert, "base"), masked, 2, 64),
    Workload("GPT-2 small", partial(gpt2, 12, 12, 768), text, 1, 64),
)
ON_GPU = (
    Workload("ResNet-50", partial(networks.resnet, 50), images, 64, 224),
    Workload("BERT-base", partial(bert, "base"), masked, 32, 128),
    Workload("GPT-2 small", partial(gpt2, 12, 12, 768), text, 8, 1024),
    Workload("GPT-2 XL", partial(gpt2, 48, 25, 1600), text, 2, 1024),
    Workload("Llama 1B", partial(networks.llama, "1B"), text, 2, 1024),
)


def loss_of(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Cross entropy in fp32; on a GPU the forward runs in bf16 autocast."""
    inputs, weight = batch.inputs, next(model.parameters())
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(inputs.to(weight.dtype) if inputs.is_floating_point() else inputs)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten())


# --- the measurements -----------------------------------------------------------------------------


class Step(NamedTuple):
    seconds: float
    extra_forwards: int
    kind: str  # whether FusedSaLSa searched in it; all others' steps are plain


class Figures(NamedTuple):
    """What is measured of one optimizer on one model."""

    peak: int  # bytes
    held: float  # by weights, gradients and state: bytes a parameter
    rounds: list[list[Step]]

    @property
    def times(self) -> list[float]:
        """The mean seconds of a step, by round."""
        return [fmean(step.seconds for step in steps) for steps in self.rounds]


class Stepper:
    """One optimizer on its own copy of a model; weights and batches are the same for all."""

    def __init__(self, workload: Workload, method: Method, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            self.model = workload.model()
        self.method, self.searches = method, method.step is not plain_step
        self.loop = Loop(method.build(self.model), method, Run(), device=device)
        generator = torch.Generator().manual_seed(0)
        batches = workload.draw(workload.batch, workload.length, generator)
        self.batches = map(partial(on, device), batches)

    def steps(self, count: int) -> list[Step]:
        """Take whole steps, forward and backward included."""
        return [self._step(self.loop.optimizer) for _ in range(count)]

    def _step(self, optimizer: Any) -> Step:
        due = self.method.step is closure_step and optimizer.search_due
        seconds = self.loop.step(partial(loss_of, self.model, next(self.batches), self.loop.device))
        kind = PLAIN if not due else AT_ONCE if optimizer.last_search.trials == 1 else REJECTED
        return Step(seconds, self.loop.run.extra_forwards[-1], kind)


def settled(workload: Workload, method: Method, device: torch.device) -> tuple[Stepper, Figures]:
    """Step until memory has reached its peak, which is measured."""

    def make() -> Stepper:
        stepper = Stepper(workload, method, device)
        stepper.steps(SETTLED)
        return stepper

    stepper, peak = with_peak_memory(make, device)
    weights = [(weight, weight.grad) for weight in stepper.model.parameters()]
    tensors = tree_leaves([weights, list(stepper.loop.optimizer.state.values())])
    held = sum(one.nbytes for one in tensors if isinstance(one, Tensor))
    return stepper, Figures(peak, held / parameter_count(stepper.model), [])


def with_peak_memory(make: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """What `make` returns, and the most bytes that tensors took at once, beyond those before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        made = make()
        torch.cuda.synchronize(device)
        return made, torch.cuda.max_memory_allocated(device) - before
    # The allocator of the CPU keeps no statistics; it tells the profiler what it does.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        made = make()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return made, max(accumulate((event.nbytes() for event in events), initial=0))


def measure(
    workload: Workload, group: Sequence[Method], device: torch.device, rounds: int,
    missing: dict[str, str],
) -> dict[str, Figures]:  # fmt: skip
    """Optimizers on this model, in turn. With no rounds only their memory is measured."""
    found: list[tuple[Stepper, Figures]] = []
    for method in group:
        title = f"{workload.title}: {method.name}"
        c.CONSOLE.print(title)
        with c.left_out(missing, title):
            stepper, figures = settled(workload, method, device)
            stepper.steps(WARM_UP - SETTLED if rounds and stepper.searches else 0)
            found.append((stepper, figures))
    for stepper, figures in turns(found, rounds):
        figures.rounds.append(stepper.steps(BLOCK if stepper.searches else FEW))
    return {stepper.method.name: figures for stepper, figures in found}


def rows_of(bench: str, case: str, found: dict[str, Figures]) -> list[Row]:
    """Figures, and what they are of fused AdamW's: times in the same round, or else the peak.

    Those of a kind of step are compared with the median of all rounds.
    """
    rows: list[Row] = []
    fused = next((one.times or [one.peak] for name, one in found.items() if name == FUSED), [])
    for name, one in found.items():
        steps, times = [step for steps in one.rounds for step in steps], one.times
        extra = [fmean(step.extra_forwards for step in steps)] if steps else []
        rows += timed_rows(bench, case, name, {
            ("time", "ms"): [1e3 * t for t in times],
            ("to_fused", "1"): ratios(times or [one.peak], fused),
            ("extra_forwards", "per step"): extra,
            ("peak_memory", "MB"): [one.peak / 1e6],
            ("held", "bytes a parameter"): [one.held],
        })  # fmt: skip
        kinds = {kind: [s.seconds for s in steps if s.kind == kind] for kind in KINDS}
        for kind, seconds in kinds.items() if len(kinds[PLAIN]) < len(steps) else ():
            rows += timed_rows(bench, case, f"{name}: {kind}", {
                ("time", "ms"): [1e3 * t for t in seconds],
                ("to_fused", "1"): [t / median(fused) for t in seconds if fused],
            })  # fmt: skip
    return rows


def step(arguments: argparse.Namespace) -> int:
    gpu = c.chosen_device(arguments.device).type == "cuda"
    more = {"autocast": "bf16" if gpu else None, "in_turn": not gpu, "rounds": arguments.rounds}
    return _run("step", arguments, ON_CPU, METHODS, more)


def memory(arguments: argparse.Namespace) -> int:
    return _run("memory", arguments, REAL_SIZES, MEMORY_METHODS, {"rounds": 0})


def _run(
    bench: str, arguments: argparse.Namespace, on_cpu: Sequence[Workload],
    methods: Sequence[Method], more: dict[str, Any],
) -> int:  # fmt: skip
    device, rounds = c.chosen_device(arguments.device), more["rounds"]
    c.check_writable(arguments.json)
    workloads = ON_GPU if device.type == "cuda" else on_cpu
    alone = device.type == "cuda" or not rounds  # there is no room for all of them side by side
    rows, missing = list[Row](), dict[str, str]()
    for workload in workloads:
        found: dict[str, Figures] = {}
        for group in [[one] for one in methods] if alone else [methods]:
            found |= measure(workload, group, device, rounds, missing)
        rows += rows_of(bench, workload.case, found)
    if not rows:
        raise SystemExit(f"{bench}: nothing could be measured; {'; '.join(missing.values())}")
    settings = {"cases": {workload.case: workload.describe() for workload in workloads},
                "missing": missing, "peers": versions(), **more}  # fmt: skip
    measured = Results(results.environment(device), rows, settings=settings)
    return c.finish(measured, by_case(measured), arguments.json)
