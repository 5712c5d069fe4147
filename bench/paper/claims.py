"""The papers' claims, each with what is measured for it; the verdict is computed, not written."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.paper import evidence as e
from bench.paper.evidence import Evidence, Measure
from bench.results import Results
from bench.tables import Cell, Table

SIX = ("Adam", "SGD", "Adam+SLS", "SGD+SLS", "Adam+SaLSa", "SGD+SaLSa")


class Claim(NamedTuple):
    """`where` it is said; `experiment` measures it."""

    where: str
    said: str
    experiment: str
    measure: Measure


SALSA, UNITS, DEPTH = (
    "arXiv 2407.20650 (SaLSa)",
    "arXiv 2403.18506 (units)",
    "arXiv 2404.01317 (depth)",
)
TRUST, ADAPTIVE = "arXiv 2011.13584 (LAMBC)", "arXiv 2202.02617 (adaptive fine-tuning)"
OURS = "This package"
BETA3_SETTINGS = ("beta3=0", "beta3=0.9", "beta3=0.999")

CLAIMS = (
    Claim(SALSA, "Adam+SaLSa ends with a lower training loss than tuned Adam", "tables",
          e.ratio("train_loss", "Adam+SaLSa", "Adam")),
    Claim(SALSA, "Adam+SaLSa's log average of losses is below tuned Adam's (by a half)", "tables",
          e.overall("train_loss", "Adam+SaLSa", "Adam")),
    Claim(SALSA, "Adam+SaLSa's peak accuracy is higher than tuned Adam's", "tables",
          e.gain("peak_accuracy", "Adam+SaLSa", "Adam")),
    Claim(SALSA, "Adam+SaLSa's average accuracy is above tuned Adam's (by 1.5 points)", "tables",
          e.overall_gain("peak_accuracy", "Adam+SaLSa", "Adam")),
    Claim(SALSA, "SGD+SaLSa ends with a lower training loss than tuned SGD", "tables",
          e.ratio("train_loss", "SGD+SaLSa", "SGD")),
    Claim(SALSA, "Adam+SaLSa ends with a lower loss than Adam+SLS", "tables",
          e.ratio("train_loss", "Adam+SaLSa", "Adam+SLS")),
    Claim(SALSA, "SGD+SaLSa ends with a lower loss than SGD+SLS", "tables",
          e.ratio("train_loss", "SGD+SaLSa", "SGD+SLS")),
    Claim(SALSA, "Of the six, Adam+SaLSa has the best mean rank by peak accuracy", "tables",
          e.first_by_rank("peak_accuracy", "Adam+SaLSa", SIX, -1)),
    Claim(SALSA, "Of the six, Adam+SaLSa has the best mean rank by final loss", "tables",
          e.first_by_rank("train_loss", "Adam+SaLSa", SIX)),
    Claim(SALSA, "Adam+SaLSa converges faster: half-way its loss is below tuned Adam's", "tables",
          e.ratio("half_loss", "Adam+SaLSa", "Adam")),
    Claim(SALSA, "SaLSa's step size changes less from step to step than SLS's (Figure 2)", "tables",
          e.ratio("change", "Adam+SaLSa", "Adam+SLS")),
    Claim(SALSA, "SaLSa's step size differs less between runs than SLS's (Figure 1)", "tables",
          e.steadier("step_size", "Adam+SaLSa", "Adam+SLS")),
    Claim(SALSA, "Rounding makes SLS's step size fall further than SaLSa's (Figure 3)", "rounding",
          e.ratio("fall", "Adam+SaLSa", "Adam+SLS")),
    Claim(SALSA, "A search in every step costs about 30 % more work (20 to 40)", "schedule",
          e.within("overhead", "Adam+SaLSa, every step", 20, 40)),
    Claim(SALSA, "With the schedule 3,000 steps cost about 3 % more (up to 6)", "schedule",
          e.within("overhead", "Adam+SaLSa", 0, 6, ["plays-long"])),
    Claim(SALSA, "With the schedule 8,000 steps and more cost about 3 % more (up to 6)", "rounding",
          e.within("overhead", "Adam+SaLSa", 0, 6)),
    Claim(SALSA, "The schedule costs no performance: the loss is no higher", "schedule",
          e.ratio("train_loss", "Adam+SaLSa", "Adam+SaLSa, every step", no_higher=True)),
    Claim(SALSA, "The best c is from 0.3 to 0.5, whatever the problem", "c",
          e.best_of("train_loss", ("Adam+SaLSa", "c=0.5"), ("c=0.1", "c=0.2", "c=0.7"))),
    Claim(SALSA, "beta3 = 0.99 is the best choice", "beta3",
          e.best_of("train_loss", ("Adam+SaLSa",), BETA3_SETTINGS)),
    Claim(SALSA, "beta3 matters little: from 0.9 to 0.999 losses are within a quarter", "beta3",
          e.alike("train_loss", ("beta3=0.9", "Adam+SaLSa", "beta3=0.999"), 1.25)),
    Claim(SALSA, "The step size found grows with the square root of the batch (exponent 0.35 to "
          "0.65)", "batch", e.exponent("step_size", "Adam+SaLSa", 0.5, 0.15)),
    Claim(UNITS, "A search for each unit ends with a lower loss than tuned Adam, on small data and "
          "short runs", "units", e.ratio("train_loss", "PLASLS", "Adam")),
    Claim(UNITS, "A search for each unit ends with a lower loss than one search for all", "units",
          e.ratio("train_loss", "PLASLS", "Adam+SLS")),
    Claim(DEPTH, "The distribution over the depth gives Adam a lower validation loss than one "
          "learning rate", "distribution", e.ratio("validation_loss", "Adam, distributed", "Adam")),
    Claim(DEPTH, "With it Adam forgets less: a lower loss on what was trained before",
          "distribution", e.ratio("before_loss", "Adam, distributed", "Adam")),
    Claim(DEPTH, "The distribution gives FusedSaLSa a lower validation loss, too", "distribution",
          e.ratio("validation_loss", "FusedSaLSa, distributed", "FusedSaLSa")),
    Claim(DEPTH, "With it FusedSaLSa forgets less", "distribution",
          e.ratio("before_loss", "FusedSaLSa, distributed", "FusedSaLSa")),
    Claim(TRUST, "LAMBC ends with a lower loss than LAMB, whatever the batch", "trust",
          e.ratio("train_loss", "LAMBC", "LAMB")),
    Claim(TRUST, "LAMBC has a higher peak accuracy than LAMB, whatever the batch", "trust",
          e.gain("peak_accuracy", "LAMBC", "LAMB")),
    Claim(ADAPTIVE, "Adaptive fine-tuning is more accurate than five epochs", "fine_tuning",
          e.gain("test_accuracy", "adaptive", "5 epochs")),
    Claim(ADAPTIVE, "Adaptive fine-tuning is more accurate than twenty epochs", "fine_tuning",
          e.gain("test_accuracy", "adaptive", "20 epochs")),
    Claim(ADAPTIVE, "Adaptive fine-tuning needs fewer epochs than twenty", "fine_tuning",
          e.ratio("epochs", "adaptive", "20 epochs")),
    Claim(ADAPTIVE, "Its accuracy differs less between runs than five epochs' does", "fine_tuning",
          e.steadier("test_accuracy", "adaptive", "5 epochs")),
    Claim(OURS, "The defaults end with a lower loss than the paper's settings", "tables",
          e.ratio("train_loss", "FusedSaLSa", "Adam+SaLSa")),
    Claim(OURS, "The defaults' loss is no higher than tuned Adam's", "tables",
          e.ratio("train_loss", "FusedSaLSa", "Adam", no_higher=True)),
    Claim(OURS, "With the number of steps known it is no higher than tuned Adam's", "tables",
          e.ratio("train_loss", "FusedSaLSa, total_steps", "Adam", no_higher=True)),
    *(Claim(OURS, f"A search at least every {n} steps, not every 10, loses nothing", "period",
            e.ratio("train_loss", f"period up to {n}", "FusedSaLSa", no_higher=True))
      for n in (20, 50, 100)),
)  # fmt: skip


def verdict(found: Sequence[Evidence]) -> str:
    """As the caption says."""
    pro, contra = (sum(one.speaks == side for one in found) for side in (1, -1))
    if not pro:
        return "does not hold" if contra else "is not shown"
    return "holds" if 2 * pro >= len(found) and not contra else "holds partly"


def files_of(claim: Claim, folder: Path) -> list[Path]:
    """What the tables claim is measured on the papers' own data, too."""
    own = ["published"] if claim.experiment == "tables" else []
    paths = [folder / f"paper_{name}.json" for name in (claim.experiment, *own)]
    return [path for path in paths if path.exists()]


def claims_tables(folder: Path) -> dict[str, Table]:
    """By paper: every claim that the files of a folder have something about."""
    tables: dict[str, Table] = {}
    read = cache(Results.read)
    for claim in CLAIMS:
        found = [one for path in files_of(claim, folder) for one in claim.measure(read(path))]
        if found:
            counts = ", ".join(map(str, sorted({one.n for one in found})))
            figures = "\n".join(f"{one.problem}: {_marked(one)}" for one in found)
            table = tables.setdefault(claim.where, Table(COLUMNS, {}, "", ("claim",)))
            table.rows[claim.said,] = [Cell(verdict(found)), Cell(figures), Cell(counts)]
    return tables


def _marked(one: Evidence) -> str:
    return f"{MARKS[one.speaks]} {one.figure}".strip()


COLUMNS = ("verdict", "figures, with 95 % intervals", "seeds")
MARKS = {1: "+", 0: "", -1: "x"}
CAPTION = (
    "Marks: + the figure speaks for the claim, x against it; without a mark the interval says "
    "neither. A ratio is of the first named to the other, seed by seed: below 1 it is lower. "
    "A claim holds where half of the problems or more speak for it and none against it, and holds "
    "partly where some do. It does not hold where some speak against it and none for it, and is "
    "not shown where none speaks at all."
)
