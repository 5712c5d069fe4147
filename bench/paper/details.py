"""Every figure of an experiment, for the page of all results."""

from bench.results import Results
from bench.tables import ACCURACY, LOSS, VALIDATION, Column, Rows, Table, show_number

SIZE = Column("step\nsize", "step_size", show_number, "median")
WORK = Column("extra\nwork %", "overhead", lambda share: f"{100 * share:.0f}")
COLUMNS = (
    LOSS, VALIDATION, ACCURACY._replace(title="peak\naccuracy %", metric="peak_accuracy"), SIZE,
    Column("change\nper step", "change", show_number),
    Column("largest\nfall", "fall", "{:.3g}".format), WORK,
    Column("lr\nchosen", "chosen_lr", "{:g}".format),
    LOSS._replace(title="loss on what\nwas before", metric="before_loss"),
)  # fmt: skip
TESTED = (
    ACCURACY._replace(title="test\naccuracy %", metric="test_accuracy"),
    LOSS._replace(title="test\nloss", metric="test_loss"),
    Column("epochs", "epochs", "{:.0f}".format, spread=True),
)


def details(results: Results) -> Table:
    columns = TESTED if results.rows[0].bench == "fine_tuning" else COLUMNS
    rows: Rows = {
        (title, name): [column.cell(results, case, name) for column in columns]
        for case, title in results.settings["cases"].items()
        for name in results.settings["optimizers"]
        if any((row.case, row.optimizer) == (case, name) for row in results.rows)
    }
    how = "; ".join(f"{name}: {what}" for name, what in results.settings["optimizers"].items())
    problems = "; ".join(
        f"{results.settings['cases'][case]}: {what}"
        for case, what in results.settings["descriptions"].items()
    )
    said = f"Means of the seeds (step sizes: medians), lowest and highest in brackets. {how}. "
    said += f"Problems: {problems}."
    return Table([column.title for column in columns], rows, said, ("problem", "optimizer"))
