"""PLASLS: one step size per unit, and a unit is a parameter group (arXiv 2403.18506).

Until a search has been accepted, searches are global and their eta is every unit's, also as the
last accepted one. From then on one unit is searched per search step, in turn; the others do not
move in its trials. All units take their final step with their own eta. A unit whose search was
exhausted locates at its next turn, which is the next step: the step was skipped for all.
"""

from dataclasses import dataclass, fields
from typing import Any

from .salsa import Array, LossAndGrads, LossAt, Record, ReferenceSaLSa


@dataclass
class Unit:
    eta: float
    eta_accepted: float
    h: float = 0.0
    s: float = 0.0
    E_fast: float = 1e-8
    E_slow: float = 1e-8
    located: bool = False
    flats: int = 0
    since_search: int = 0  # steps taken since this unit's last search


class UnitSearch(ReferenceSaLSa):
    """Put before a direction: class X(UnitSearch, ReferenceSGD).

    `units[k]` holds what is group k's own, `next_unit` the group whose turn it is; L, steps and
    since_search are one for all. The reference's own eta, h, s and so on are the global search's,
    and after it those of the unit searched last. The units begin with h = s = 0 and no flats.
    """

    looks_back = False  # which needs one step size for all

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        assert not self.look_back
        self.units = [Unit(self.eta, self.eta_accepted) for _ in self.groups]
        self.next_unit = 0
        self.turn: int | None = None  # the unit of this step's search; None: global

    @property
    def etas(self) -> list[float]:
        return [unit.eta for unit in self.units]

    def step(
        self, loss_and_grads: LossAndGrads, loss_at: LossAt, resolution: float = 8 * 2**-52
    ) -> Record:
        self.turn = self.next_unit if self.accepted_once else None
        record = super().step(loss_and_grads, loss_at, resolution)
        if record.searched and self.turn is not None:
            record.unit = self.turn
            record.step_size = self.units[self.turn].eta
        return record

    def _direction(self, g: list[Array | None]) -> tuple[list[Array | None], float]:
        if self.turn is not None:
            own = self.groups[self.turn]["params"]
            g = [gi if i in own else None for i, gi in enumerate(g)]
        return super()._direction(g)

    def _search(self, *args: Any) -> None:
        if self.turn is None:
            super()._search(*args)
            for unit in self.units:
                self._copy(self, unit, "eta", "eta_accepted", "E_fast", "E_slow", "located")
                unit.flats = 0
            return
        names = [field.name for field in fields(Unit)]
        unit = self.units[self.turn]
        since_search = self.since_search
        self._copy(unit, self, *names)
        super()._search(*args)
        self._copy(self, unit, *names)
        self.since_search = since_search

    @staticmethod
    def _copy(source: Any, target: Any, *names: str) -> None:
        for name in names:
            setattr(target, name, getattr(source, name))

    def _count(self, searched: bool) -> None:
        super()._count(searched)
        for k, unit in enumerate(self.units):
            own = searched and self.turn in (None, k)
            unit.since_search = 0 if own else unit.since_search + 1
        if searched and self.turn is not None:
            self.next_unit = (self.turn + 1) % len(self.units)

    def _eta_of(self, k: int) -> float:
        return self.units[k].eta


class ReferencePLASLS(UnitSearch):
    """PLASLS along Adam's direction."""
