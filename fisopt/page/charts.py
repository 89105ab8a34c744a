"""The charts of a page as Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fisopt.page.data import Choice, Film, Front, Page, Stage
from fisopt.page.films import evenly

Spec = dict[str, Any]
WIDTH = 640
NUMBERS = ("speed", "quality", "low", "high")
MOST = 100.0
"""Decibels of equal frames, whose PSNR is infinite."""
FRAMES = 128
"""So many frames of a clip are plotted."""


def charts(page: Page) -> dict[str, Spec]:
    """The charts for which there is something to show, by name."""
    found: dict[str, Spec] = {}
    if page.front.points:
        found["front"] = _front(page.front)
    if any(film.psnr for film in page.films):
        found["frames"] = _frames(page.films)
    for name in ("choice", "price", "share"):
        if any(getattr(choice, name) is not None for choice in page.choices):
            found[f"choices-{name}"] = _choices(page.choices, name)
    if page.stages:
        found["stages"] = _stages(page.stages)
    return found


def _front(front: Front) -> Spec:
    x = {
        "field": "speed",
        "type": "quantitative",
        "title": front.speed,
        "scale": {"zero": False, "padding": 20},
        "axis": {"labelExpr": "datum.label + 'x'"},
    }

    def y(name: str) -> Spec:
        scale = {"zero": False, "padding": 12}
        return {"field": name, "type": "quantitative", "title": front.quality, "scale": scale}

    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.low != null"}],
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"y": y("low"), "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90},
            "encoding": {
                "y": y("quality"),
                "shape": {"field": "kind", "type": "nominal", "title": None},
                "tooltip": [
                    {"field": "name"},
                    {"field": "kind"},
                    *({"field": name, "format": ".2f"} for name in NUMBERS),
                ],
            },
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 8, "dy": -6},
            "encoding": {"y": y("quality"), "text": {"field": "name"}},
        },
    ]
    colour = {"field": "kind", "type": "nominal", "title": None}
    return {
        "data": {"values": [asdict(point) for point in front.points]},
        "width": WIDTH,
        "height": 320,
        "encoding": {"x": x, "color": colour},
        "layer": layers,
    }


def _frames(films: Sequence[Film]) -> Spec:
    values = [
        {
            "prompt": film.prompt,
            "configuration": film.configuration,
            "frame": frame,
            "psnr": round(min(film.psnr[frame], MOST), 3),
        }
        for film in films
        for frame in (evenly(len(film.psnr), FRAMES) if film.psnr else ())
    ]
    return {
        "params": [{"name": "prompt", "value": films[0].prompt}],
        "data": {"values": values},
        "transform": [{"filter": "datum.prompt == prompt"}],
        "width": WIDTH,
        "height": 200,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "frame", "type": "quantitative", "axis": {"tickMinStep": 1}},
            "y": {
                "field": "psnr",
                "type": "quantitative",
                "title": "PSNR, dB",
                "scale": {"zero": False},
            },
            "color": {"field": "configuration", "type": "nominal", "title": None},
            "tooltip": [{"field": name} for name in ("configuration", "frame", "psnr")],
        },
    }


def _choices(choices: Sequence[Choice], name: str) -> Spec:
    """A heat map: blocks from left to right, their branches and the steps from top to bottom."""
    several = len({choice.transformer for choice in choices}) > 1
    values = [
        {
            **asdict(choice),
            "row": " · ".join(
                (*((choice.transformer,) if several else ()), choice.branch, choice.steps)
            ),
        }
        for choice in choices
    ]
    by_kind: Spec = {"type": "nominal"}
    if name != "choice":
        by_kind = {"type": "quantitative", "scale": {"scheme": "viridis"}}
    shown = ("configuration", "transformer", "block", "branch", "steps", "choice", "share", "price")
    return {
        "params": [{"name": "configuration", "value": choices[0].configuration}],
        "data": {"values": values},
        "transform": [{"filter": "datum.configuration == configuration"}],
        "width": WIDTH,
        "height": {"step": 18},
        "mark": {"type": "rect", "stroke": "white", "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "block", "type": "ordinal", "axis": {"labelAngle": 0}},
            "y": {
                "field": "row",
                "type": "ordinal",
                "title": None,
                "sort": list(dict.fromkeys(value["row"] for value in values)),
                "axis": {"labelLimit": 320},
            },
            "color": {"field": name, "title": _TITLES[name], **by_kind},
            "tooltip": [{"field": field} for field in shown],
        },
    }


_TITLES = {"choice": None, "price": "error it adds", "share": "share of the dense FLOPs"}


def _stages(stages: Sequence[Stage]) -> Spec:
    values = [
        {
            "configuration": stage.configuration,
            "stage": stage.name,
            "what": what,
            "ms": round(milliseconds, 4),
            "reached": _reached(stage) if what == "measured" else "",
        }
        for stage in stages
        for what, milliseconds in (("predicted", stage.predicted), ("measured", stage.measured))
        if milliseconds is not None
    ]
    y = {
        "field": "stage",
        "type": "ordinal",
        "title": None,
        "sort": list(dict.fromkeys(stage.name for stage in stages)),
    }
    bars = {
        "x": {"field": "ms", "type": "quantitative", "title": "milliseconds"},
        "yOffset": {"field": "what", "sort": ["predicted", "measured"]},
    }
    return {
        "params": [{"name": "configuration", "value": stages[-1].configuration}],
        "data": {"values": values},
        "transform": [{"filter": "datum.configuration == configuration"}],
        "width": WIDTH - 60,
        "height": {"step": 13},
        "encoding": {"y": y, **bars},
        "layer": [
            {
                "mark": "bar",
                "encoding": {
                    "color": {"field": "what", "type": "nominal", "title": None},
                    "tooltip": [{"field": name} for name in ("stage", "what", "ms", "reached")],
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 9},
                "encoding": {"text": {"field": "reached"}},
            },
        ],
    }


def _reached(stage: Stage) -> str:
    """How much of the predicted speed a stage has."""
    if stage.predicted is None or not stage.measured:
        return ""
    return f"{stage.predicted / stage.measured:.0%} reached"
