"""Training runs by the dozen: in turn, with progress, each kept so that a stop loses nothing."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console

from bench import results, summary
from bench.method import Method
from bench.peers import MissingPeer, versions
from bench.progress import progress_bars
from bench.results import REPOSITORY, commit
from bench.training import Checkpoint, Problem, Run, train

KEPT = Path(__file__).parent / ".runs"
TUNING_SEED = 1000  # none of the seeds that count

MakeMethod = Callable[..., Method]


@cache
def code(ours: bool) -> str:
    """A digest of the sources that decide what a run does; FusedSaLSa's only where it is run."""
    bench = ("method", "losses", "training", "hub", "problems/*", "models/*", "sets/*")
    patterns = [f"bench/{name}.py" for name in bench]
    patterns += (
        ["salsa_fused/**/*.py", "csrc/*", "bench/optimizers.py"] if ours else ["bench/others.py"]
    )
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Store:
    """Runs on disk: one is measured again where settings, sources, versions or machine differ."""

    folder: Path
    device: torch.device
    again: bool = False  # measure what is there already, too

    def key(self, case: Problem, method: Method, seed: int) -> dict[str, object]:
        where = results.environment(self.device)
        machine = {name: where[name] for name in ("device", "threads", "torch", "python")}
        budget = {"steps": case.plain_steps, "checkpoints": case.checkpoints}
        what = {"case": case.case, "description": case.description, **budget}
        how = {"method": method.name, "settings": method.settings, "seed": seed}
        return {**what, **how, **machine, "code": code(method.ours), "peers": versions()}

    def get(self, key: dict[str, object]) -> tuple[Run, str] | None:
        """The run, and the commit that it is of; None also for what an older version wrote."""
        path = self._path(key)
        if self.again or not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            points = [Checkpoint(**point) for point in content["run"].pop("checkpoints")]
            return Run(**content["run"], checkpoints=points), content["commit"]
        except (KeyError, TypeError):
            return None

    def put(self, key: dict[str, object], run: Run, measured_at: str) -> None:
        """All or nothing: a file that was half written has another name."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        content = {"key": key, "commit": measured_at, "run": asdict(run)}
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(path)

    def _path(self, key: dict[str, object]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        name = re.sub(r"\W+", "-", f"{key['case']} {key['method']} {key['seed']}")
        return self.folder / f"{name}-{digest}.json"


@dataclass
class Done:
    """Of one method on one problem: a run for every seed, and what it cost to tune it."""

    method: Method
    runs: list[Run] = field(default_factory=list)
    tuning: dict[float, float] = field(default_factory=dict)  # learning rate: validation loss


@dataclass
class Runner:
    """Runs every method on every problem; what cannot run is said, and left out."""

    device: torch.device
    console: Console
    store: Store | None = None
    missing: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    commits: set[str] = field(default_factory=set)  # that the runs are of

    def run_all(self, case: Problem, make_methods: Sequence[MakeMethod], seeds: int) -> list[Done]:
        """The methods take turns, also in going first: a busy machine slows all of them down."""
        with self._bar(case, make_methods, seeds) as advance:
            found = []
            for make in make_methods:
                method = make()
                with self._reported(case, method):
                    found.append(self._tuned(case, make, advance))
            for seed in range(seeds):
                for done in found if seed % 2 == 0 else reversed(found):
                    title = f"{done.method.name}, seed {seed + 1} of {seeds}"
                    with self._reported(case, done.method):
                        done.runs.append(self._run(case, done.method, seed, advance, title))
        return [done for done in found if len(done.runs) == seeds]

    def _tuned(self, case: Problem, make: MakeMethod, advance: Advance) -> Done:
        """The method itself, or the best of its grid by validation loss."""
        done = Done(make())
        if not done.method.grid:
            return done
        for lr in done.method.grid:
            title = f"{done.method.name}, tuning lr={lr:g}"
            run = self._run(case, make(lr=lr), TUNING_SEED, advance, title)
            loss = fmean(point.validation_loss for point in summary.final(case, run))
            done.tuning[lr] = loss
        done.method = make(lr=min(done.tuning, key=lambda lr: _or_infinite(done.tuning[lr])))
        return done

    def _run(self, case: Problem, method: Method, seed: int, advance: Advance, title: str) -> Run:
        key = self.store.key(case, method, seed) if self.store else {}
        kept = self.store.get(key) if self.store else None
        if kept is not None:
            run, measured_at = kept
            self.reused += 1
        else:
            measured_at = commit()  # before: sources may change while it runs
            run = train(case, method, seed, self.device, on_work=partial(advance, title))
            if self.store:
                self.store.put(key, run, measured_at)
        self.commits.add(measured_at)
        advance(title, None)
        return run

    @contextmanager
    def _reported(self, case: Problem, method: Method) -> Iterator[None]:
        name = f"{case.title}: {method.name}"
        try:
            yield
        except MissingPeer as error:
            self.missing[name] = str(error)
        except Exception as error:  # of a peer, or of this machine: the others still count
            self.missing[name] = f"{type(error).__name__}: {error}"
        if name in self.missing:
            self.console.print(f"{name}: left out: {self.missing[name]}", style="yellow")

    @contextmanager
    def _bar(
        self, case: Problem, make_methods: Sequence[MakeMethod], seeds: int
    ) -> Iterator[Advance]:
        runs = sum(seeds + len(make().grid) for make in make_methods)
        with progress_bars(self.console) as progress:
            bar = progress.add_task(case.title, total=runs * case.budget)
            finished = 0

            def advance(title: str, units: int | None) -> None:
                nonlocal finished
                if units is None:  # the run's end
                    finished += case.budget
                    units = 0
                description = f"{case.title}: {title:34}"
                progress.update(bar, completed=finished + units, description=description)

            yield advance
            progress.update(bar, completed=runs * case.budget, description=case.title)


Advance = Callable[[str, "int | None"], None]


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
