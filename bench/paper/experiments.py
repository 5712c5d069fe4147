"""What is measured for the papers' claims: which methods on which problems, with how many seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.methods import Method
from bench.paper import methods as m
from bench.paper.hub import HUB
from bench.paper.problems import BATCHES, LARGE
from bench.training import Problem


@dataclass(frozen=True)
class Experiment:
    """Each writes `paper_NAME.json`; `quick` are the problems of `--quick`."""

    title: str
    problems: tuple[str, ...]
    methods: Callable[[Problem], Sequence[Method]]
    quick: tuple[str, ...]
    seeds: int = 5
    asked: bool = False  # measured only where it is asked for by name


TEXTS = ("plays-continued", "reviews-few")
IMAGES = ("digits-resnet", "digits-resnet-norm")
SMALL = ("plays-continued", "digits-resnet", "reviews-few")
LONGER = ("plays-continued", *IMAGES)
QUICK = ("plays-continued", "digits-resnet")


EXPERIMENTS = {
    "tables": Experiment(
        "Tables I and II", (*IMAGES, *TEXTS), m.candidates, (*QUICK, "reviews-few"),
    ),
    # It needs a hub, a GPU and days.
    "published": Experiment("On the papers' own data", (*HUB,), m.candidates, (), asked=True),
    "rounding": Experiment(
        "Step sizes and rounding", ("digits-rounded", "digits-exact"), m.line_searches,
        ("digits-rounded",), 3,
    ),
    "schedule": Experiment(
        "With and without the schedule", (*LONGER, "plays-long"), m.with_and_without_schedule,
        QUICK,
    ),
    "c": Experiment("The constant c", SMALL, m.of_c, QUICK, 3),
    "beta3": Experiment("The smoothing beta3", SMALL, m.of_beta3, QUICK, 3),
    "period": Experiment("The longest period", LONGER, m.of_period, QUICK, 3),
    "batch": Experiment(
        "Step size and batch size",
        tuple(f"{name}-b{batch}" for name, batches in BATCHES.items() for batch in batches),
        m.by_batch, tuple(f"plays-b{batch}" for batch in BATCHES["plays"]), 3,
    ),
    "units": Experiment(
        "A step size for each unit",
        ("plays-continued", "reviews-once", "reviews-few"), m.units, QUICK[:1],
    ),
    "distribution": Experiment(
        "Learning rates over the depth", ("plays-forgotten", "reviews-few"),
        m.distributions, ("plays-forgotten",),
    ),
    "trust": Experiment(
        "Trust ratios and large batches", tuple(f"digits-cnn-b{batch}" for batch in LARGE),
        m.trust_ratios, ("digits-cnn-b256",),
    ),
    "fine_tuning": Experiment(
        "Fine-tuning until it is done",
        ("digits-until-20", "digits-until-100", "digits-until-400", "reviews-until-32",
         "reviews-until-64"),
        m.until_done, ("digits-until-20", "digits-until-100"),
    ),
}  # fmt: skip
