"""Tables I and II of arXiv 2407.20650 as published, and ours below them in the same form."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from bench.paper.claims import SIX
from bench.paper.evidence import logarithm, mean_ranks
from bench.results import Results, Row
from bench.tables import DASH, Cell, Rows, Table, show_number

# In the order of SIX. None: the page that the figures are from does not have it.
ACCURACIES: dict[str, tuple[float, ...]] = {
    "MNLI": (0.8340, 0.8256, 0.8446, 0.8303, 0.8409, 0.8305),
    "QNLI": (0.9090, 0.8972, 0.9044, 0.8971, 0.9090, 0.9014),
    "MRPC": (0.8279, 0.8441, 0.8667, 0.8441, 0.8745, 0.8473),
    "SST2": (0.9271, 0.9225, 0.9261, 0.9167, 0.9216, 0.9245),
    "CIFAR10": (0.9312, 0.9229, 0.9401, 0.9453, 0.9389, 0.9384),
    "CIFAR100": (0.6733, 0.7057, 0.7128, 0.6859, 0.7114, 0.7064),
    "ImageNet": (0.6486, 0.5633, 0.4836, 0.6234, 0.6684, 0.6594),
    "average": (0.8215, 0.8116, 0.8111, 0.8204, 0.8378, 0.8297),
}
ACCURACY_RANKS = (3.57, 4.86, 2.42, 4.43, 2.14, 3.28)
LOSSES: dict[str, tuple[float | None, ...]] = {
    "MNLI": (0.009567, None, 0.03713, None, 0.005867, 0.02174),
    "QNLI": (0.00258, None, 0.00504, None, 0.000628, 0.00916),
    "MRPC": (0.01312, None, 0.007298, None, 0.003126, 0.03862),
    "SST2": (0.005857, None, 0.009457, None, 0.006991, 0.01837),
    "GPT-2, Shakespeare": (2.86, None, 2.917, None, 2.772, 3.559),
    "CIFAR10": (0.01394, None, 0.00095, None, 0.003314, 0.003773),
    "CIFAR100": (0.03739, None, 0.01337, None, 0.003774, 0.01453),
    "ImageNet": (0.9122, None, 2.036, None, 0.8339, 0.9788),
}


def accuracy_table(results: Results) -> Table:
    """Table I: peak accuracies."""
    table = _table(results, ACCURACIES, "peak_accuracy", -1, "{:.4f}".format)
    ranks = dict(zip(SIX, ACCURACY_RANKS))
    cells = [
        Cell(f"{ranks[name]:.2f}", best=ranks[name] == min(ACCURACY_RANKS))
        if name in ranks else Cell(DASH)
        for name in results.settings["optimizers"]
    ]  # fmt: skip
    upper = {names: row for names, row in table.rows.items() if names[0] == "published"}
    return table._replace(rows={**upper, ("published", "mean rank"): cells, **table.rows})


def loss_table(results: Results) -> Table:
    """Table II: final training losses; averages are of logarithms."""
    return _table(results, LOSSES, "train_loss", 1, show_number)


def _table(
    results: Results, published: Mapping[str, Sequence[float | None]], metric: str, sign: int,
    show: Callable[[float], str],
) -> Table:  # fmt: skip
    names = list(results.settings["optimizers"])
    rows: Rows = {}
    for case, figures in published.items():
        best = min((sign * value for value in figures if value is not None), default=None)
        by_name = dict(zip(SIX, figures))
        values = [by_name.get(name) for name in names]
        rows["published", case] = [
            Cell(DASH) if value is None else Cell(show(value), best=sign * value == best)
            for value in values
        ]
    cases = results.settings["cases"]
    measured = {case: found for case in cases if (found := results.rows_of(case, metric))}
    for case, found in measured.items():
        rows["here", cases[case]] = _cells(found, names, sign, show)
    means = _averages([*measured.values()], names, sign)
    best = min((sign * mean for mean in means.values() if math.isfinite(mean)), default=None)
    rows["here", "log average" if sign == 1 else "average"] = [
        Cell(show(means[name]), best=sign * means[name] == best) if name in means else Cell(DASH)
        for name in names
    ]
    for title, ranked in (("rank of six", SIX), ("rank of all", names)):
        ranks = {name: fmean(by_seed) for name, by_seed in
                 mean_ranks(results, metric, ranked, sign).items() if by_seed}  # fmt: skip
        first = min(ranks.values(), default=0)
        rows["here", title] = [
            Cell(f"{ranks[name]:.2f}", best=ranks[name] == first) if name in ranks else Cell(DASH)
            for name in names
        ]
    seeds = results.settings["seeds"]
    said = f"Mean of {seeds} seeds, with its standard error in brackets; the best in bold."
    titles = [re.sub(r"([+,]) ?", r"\1\n", name).replace("+", " +") for name in names]
    return Table(titles, rows, said, ("", "data"))


def _averages(
    found: Sequence[Mapping[str, Row]], names: Sequence[str], sign: int
) -> dict[str, float]:
    """Over the problems where all were run; losses that are not finite count as in `logarithm`."""
    whole = [rows for rows in found if set(names) <= set(rows)]
    if not whole:
        return {}
    if sign == 1:
        logs = {name: fmean(logarithm(rows[name].mean) for rows in whole) for name in names}
        return {name: math.exp(mean) for name, mean in logs.items()}
    return {name: fmean(rows[name].mean for rows in whole) for name in names}


def _cells(
    found: Mapping[str, Row], names: Sequence[str], sign: int, show: Callable[[float], str]
) -> list[Cell]:
    finite = [sign * row.mean for row in found.values() if math.isfinite(row.mean)]
    best = min(finite, default=None)
    return [
        Cell(show(row.mean), _error(row), sign * row.mean == best)
        if (row := found.get(name)) else Cell(DASH)
        for name in names
    ]  # fmt: skip


def _error(row: Row) -> str:
    if row.n < 2 or not all(map(math.isfinite, row.values)):
        return ""
    return f"{stdev(row.values) / row.n**0.5:.2g}"
