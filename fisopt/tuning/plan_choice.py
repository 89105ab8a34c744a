"""Plan choice: the plan of least error for a saving, or of largest saving for an error.

Squared errors of single changes add up: a knapsack in which every place takes one of its options or
stays dense (multiple choice), and runs of steps reuse what the step before them has added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fisopt.tuning.option import Option
from fisopt.tuning.reuse import Reuse
from fisopt.tuning.space import Change, Place, Plan, Space

Prices = Mapping[Change, float]
"""Squared relative error of the final latents for one change alone."""
SECONDS = 20.0
"""The solver is good long before it has proved that it is."""
TRIES = 6
"""A plan whose Programs save too little is chosen so often."""
Mode = tuple[str, tuple[int, ...], int]
"""A group of steps of a transformer, and how many of them are computed."""


class Knapsack:
    """The choice as an integer program.

    Args:
        space: what may be chosen.
        prices: what it costs in error; what has no price is not chosen.
        runs: the steps that reuse, where they are chosen already.
    """

    def __init__(self, space: Space, prices: Prices, runs: Collection[Reuse] | None = None) -> None:
        self.space, self.fixed = space, runs is not None
        self.reuses = [r for r in space.reuses if r in (prices if runs is None else runs)]
        self.groups = [(c.name, group) for c in space.components.values() for group in c.groups]
        reusing = {(r.component, s) for r in self.reuses for s in r.steps}
        self.modes: list[Mode] = []
        for name, group in self.groups:
            least = sum((name, s) not in reusing for s in group)
            self.modes += [(name, group, k) for k in range(least, len(group) + 1)]
        self.picks: list[tuple[Place, Option, int]] = []
        saved = [space.reuse_saves(r) for r in self.reuses] + [0.0] * len(self.modes)
        error = [prices[r] for r in self.reuses] + [0.0] * len(self.modes)
        offered: dict[tuple[str, tuple[int, ...]], list[Place]] = {}
        for place in space.options:
            offered.setdefault((place.component, place.steps), []).append(place)
        for m, (name, group, computed) in enumerate(self.modes):
            for place in offered.get((name, group), ()) if computed else ():
                for option in space.options[place]:
                    if (place, option) in prices:
                        self.picks.append((place, option, m))
                        saved.append(space.saves(place, option) * computed / len(group))
                        error.append(prices[place, option])  # steps that reuse it have it too
        self.saved, self.error = np.array(saved) / space.total, np.array(error)
        self.rows: list[list[tuple[int, float]]] = []
        self.bounds: list[tuple[float, float]] = []
        self._constrain()

    def _constrain(self) -> None:
        runs: dict[tuple[str, int | None], list[int]] = {}
        for i, reuse in enumerate(self.reuses):  # a computed step between two runs
            for step in (*reuse.steps, reuse.then):
                runs.setdefault((reuse.component, step), []).append(i)
        for members in runs.values():
            self._row([(i, 1.0) for i in members], 0, 1)
        first, by_group = len(self.reuses), dict[tuple[str, tuple[int, ...]], list[int]]()
        for m, (name, group, _) in enumerate(self.modes):
            by_group.setdefault((name, group), []).append(m)
        for (name, group), members in by_group.items():
            self._row([(first + m, 1.0) for m in members], 1, 1)
            counted = [(first + m, float(self.modes[m][2])) for m in members]
            for i, reuse in enumerate(self.reuses):
                if reuse.component == name and (both := len({*group} & {*reuse.steps})):
                    counted.append((i, float(both)))
            self._row(counted, len(group), len(group))
        places: dict[tuple[Place, int], list[int]] = {}
        for i, (place, _, m) in enumerate(self.picks):
            places.setdefault((place, m), []).append(first + len(self.modes) + i)
        for (_, m), members in places.items():  # one option for each place, in the mode that is on
            self._row([*((i, 1.0) for i in members), (first + m, -1.0)], -np.inf, 0)
        for (place, m), members in places.items():  # what is a block's only choice
            for (other, n), others in places.items() if place.part == "block" else ():
                if n == m and other != place and {*other.blocks} & {*place.blocks}:
                    self._row([(i, 1.0) for i in (*members, *others)], 0, 1)

    def _row(self, entries: list[tuple[int, float]], low: float, high: float) -> None:
        self.rows.append(entries)
        self.bounds.append((low, high))

    def least_error(self, saved: float) -> Plan | None:
        """The plan that saves a share of the dense FLOPs at the least error, None if none does."""
        return self._solve(self.error, (self.saved, saved, np.inf))

    def reaching(self, saved: float) -> Plan:
        """The plan of least error whose Programs save a share, or the fastest if none does.

        What Programs save differs a little from the sum of their changes, as anchors that rotate
        may be a frame more or less.
        """
        asked, fastest = saved, self.most_saved(np.inf) or Plan()
        for more in range(TRIES):
            plan = self.least_error(asked) or fastest
            short = saved - (1 - self.space.cost(plan) / self.space.total)
            if short <= 0:
                break
            asked += 1.05 * short * 2**more
        return plan

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
        runs = [reuse in plan.reuses for reuse in self.reuses]
        reused = {name: self.space.reused(name, plan) for name in self.space.components}
        on = [k == len({*group} - reused[name]) for name, group, k in self.modes]
        picks = [on[m] and plan.options.get(p) == o for p, o, m in self.picks]
        return np.array([*runs, *on, *picks], dtype=np.float64)

    def _solve(self, objective: np.ndarray, bound: tuple[np.ndarray, float, float]) -> Plan | None:
        entries = [(r, i, v) for r, row in enumerate(self.rows) for i, v in row]
        rows, columns, values = zip(*entries, strict=True)
        table = csr_array((values, (rows, columns)), shape=(len(self.rows), len(objective)))
        low, high = np.array(self.bounds).T
        limits, least, most = bound
        scale = float(np.abs(limits).max()) or 1.0
        least_of = np.zeros(len(objective))
        least_of[: len(self.reuses)] = self.fixed
        solved = milp(
            objective / (float(np.abs(objective).max()) or 1.0),
            integrality=np.ones(len(objective)),
            bounds=Bounds(least_of, 1),
            constraints=[
                LinearConstraint(table, low, high),
                LinearConstraint(limits[None] / scale, least / scale, most / scale),
            ],
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-3},
        )
        if solved.x is None:
            return None
        chosen = solved.x > 0.5
        runs, picks = chosen[: len(self.reuses)], chosen[len(chosen) - len(self.picks) :]
        reuses = tuple(r for r, on in zip(self.reuses, runs, strict=True) if on)
        picked = zip(self.picks, picks, strict=True)
        return Plan({place: option for (place, option, _), on in picked if on}, reuses)
