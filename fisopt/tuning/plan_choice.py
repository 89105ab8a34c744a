"""Plan choice: the plan of least error for a saving, or of largest saving for an error.

Squared errors of single changes add up: a knapsack in which every place takes one of its options or
stays dense (multiple choice), and a group of steps may reuse some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fisopt.tuning.option import Option
from fisopt.tuning.space import Change, Place, Plan, Reuse, Space

Prices = Mapping[Change, float]
"""Squared relative error of the final latents for one change alone."""
SECONDS = 20.0
"""The solver is good long before it has proved that it is."""
Mode = tuple[str, tuple[int, ...], Reuse | None]


class Knapsack:
    """The choice as an integer program.

    Args:
        space: what may be chosen.
        prices: what it costs in error; what has no price is not chosen.
    """

    def __init__(self, space: Space, prices: Prices) -> None:
        self.space = space
        reuses = [r for r in space.reuses if r in prices]
        groups = [(c.name, group) for c in space.components.values() for group in c.groups]
        self.modes: list[Mode] = [(*g, None) for g in groups]
        self.modes += [(r.component, r.group, r) for r in reuses]
        self.picks: list[tuple[Place, Option, int]] = []
        saved = [0.0 if r is None else space.reuse_saves(r) for _, _, r in self.modes]
        error = [0.0 if r is None else prices[r] for _, _, r in self.modes]
        for m, (name, group, reuse) in enumerate(self.modes):
            computed = 1 - (len(reuse.steps) / len(group) if reuse is not None else 0)
            for place, options in space.options.items():
                if (place.component, place.steps) != (name, group) or not computed:
                    continue
                for option in options:
                    if (place, option) in prices:
                        self.picks.append((place, option, m))
                        saved.append(space.saves(place, option) * computed)
                        error.append(prices[place, option] * computed)
        self.saved, self.error = np.array(saved) / space.total, np.array(error)
        self.rows: list[list[tuple[int, float]]] = []
        self.bounds: list[tuple[float, float]] = []
        self._constrain(groups)

    def _constrain(self, groups: list[tuple[str, tuple[int, ...]]]) -> None:
        by_group: dict[tuple[str, tuple[int, ...]], list[int]] = {g: [] for g in groups}
        for m, (name, group, _) in enumerate(self.modes):
            by_group[name, group].append(m)
        for members in by_group.values():  # one mode for each group
            self._row([(m, 1.0) for m in members], 1, 1)
        whole = {g: [m for m in ms if self._whole(m)] for g, ms in by_group.items()}
        for one, two in pairwise(groups):  # what is reused is at most one group old
            if one[0] == two[0] and whole[one] and whole[two]:
                self._row([(m, 1.0) for m in (*whole[one], *whole[two])], 0, 1)
        places: dict[tuple[Place, int], list[int]] = {}
        for i, (place, _, m) in enumerate(self.picks):
            places.setdefault((place, m), []).append(len(self.modes) + i)
        for (_, m), members in places.items():  # one option for each place, in the mode that is on
            self._row([*((i, 1.0) for i in members), (m, -1.0)], -np.inf, 0)

    def _whole(self, mode: int) -> bool:
        _, group, reuse = self.modes[mode]
        return reuse is not None and reuse.steps == group

    def _row(self, entries: list[tuple[int, float]], low: float, high: float) -> None:
        self.rows.append(entries)
        self.bounds.append((low, high))

    def least_error(self, saved: float) -> Plan | None:
        """The plan that saves a share of the dense FLOPs at the least error, None if none does."""
        return self._solve(self.error, (self.saved, saved, np.inf))

    def most_saved(self, error: float) -> Plan | None:
        """The plan that saves most at a squared error."""
        return self._solve(-self.saved, (self.error, -np.inf, error))

    def most(self) -> float:
        """The largest share that can be saved."""
        plan = self.most_saved(np.inf)
        assert plan is not None
        return self.saving(plan)

    def saving(self, plan: Plan) -> float:
        """The share of the dense FLOPs that a plan saves, by the sum of its changes."""
        return float(self._chosen(plan) @ self.saved)

    def predicted(self, plan: Plan) -> float:
        """The squared error of a plan, by the sum of its changes."""
        return float(self._chosen(plan) @ self.error)

    def _chosen(self, plan: Plan) -> np.ndarray:
        on = {m for m, (_, _, r) in enumerate(self.modes) if r in plan.reuses}
        busy = {self.modes[m][:2] for m in on}
        on |= {m for m, mode in enumerate(self.modes) if mode[2] is None and mode[:2] not in busy}
        picks = [m in on and plan.options.get(p) == o for p, o, m in self.picks]
        return np.array([m in on for m in range(len(self.modes))] + picks, dtype=np.float64)

    def _solve(self, objective: np.ndarray, bound: tuple[np.ndarray, float, float]) -> Plan | None:
        entries = [(r, i, v) for r, row in enumerate(self.rows) for i, v in row]
        rows, columns, values = zip(*entries, strict=True)
        table = csr_array((values, (rows, columns)), shape=(len(self.rows), len(objective)))
        low, high = np.array(self.bounds).T
        limits, least, most = bound
        scale = float(np.abs(limits).max()) or 1.0
        solved = milp(
            objective / (float(np.abs(objective).max()) or 1.0),
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(table, low, high),
                LinearConstraint(limits[None] / scale, least / scale, most / scale),
            ],
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-3},
        )
        if solved.x is None:
            return None
        chosen = solved.x > 0.5
        reuses = tuple(
            r for (_, _, r), y in zip(self.modes, chosen, strict=False) if y and r is not None
        )
        picked = zip(self.picks, chosen[len(self.modes) :], strict=True)
        return Plan({place: option for (place, option, _), on in picked if on}, reuses)
