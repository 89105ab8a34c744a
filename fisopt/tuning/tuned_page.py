"""The page of a tuned plan: the front, what runs where and at what price, settings to copy."""

from __future__ import annotations

from typing import Any

from fisopt.page.data import Front, Page, Point, Table
from fisopt.page.environment import environment
from fisopt.recipe.recipe import as_yaml
from fisopt.tuning.goal import psnr_of
from fisopt.tuning.tuned import Tuned


def page_of(tuned: Tuned, pipeline: Any, command: str = "") -> Page:
    """A page of what was found; `fisopt.page.write.write_page` writes it."""
    peak = tuned.error * 10 ** (tuned.psnr / 20)
    points = [
        Point(f"{speed:g}x by prices", speed, psnr_of(error, peak), "predicted")
        for speed, error in tuned.front
    ]
    points.append(Point(f"target {tuned.target}", tuned.speed_up, tuned.psnr))
    rows = (
        (tuned.speed, f"{tuned.speed_up:.2f}x"),
        ("error of the final latents", f"{tuned.error:.4f}"),
        ("PSNR of the final latents", f"{tuned.psnr:.1f} dB"),
        ("error by prices", f"{tuned.predicted:.4f}"),
    )
    settings = {
        f"recipe of {name}": as_yaml(recipe.plain()) for name, recipe in tuned.recipes.items()
    }
    return Page(
        title=f"Tuned for {tuned.target}",
        lead="" if tuned.reached else "The target is out of reach; this is the nearest plan.",
        command=command,
        settings=settings,
        tables=(Table("What the plan reaches", ("", ""), rows),),
        front=Front(tuple(points), "PSNR of the final latents, dB", tuned.speed),
        choices=tuned.choices,
        environment=environment(pipeline),
        notes=tuned.notes,
    )
