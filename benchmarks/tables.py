"""Measured results as markdown tables."""

from __future__ import annotations

from typing import Any

from fisopt.comparison.intervals import difference_of, mean_of
from fisopt.comparison.shown import FORMS

Result = dict[str, Any]
MEASURED = ("PSNR dB", "SSIM", "all three %", "clips")
"""The last columns of a table whose rows are of several numbers of clips."""


def speed(row: Result) -> float:
    """Speed-up of a row by FLOPs over all steps."""
    return float(row["flops_ratio"])


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def quality_table(rows: list[Result], steps: int) -> str:
    """The rows of one number of steps, the fastest first."""
    shown = ["colour %", "shape %", "direction %", "all three %"]
    head = ["speed-up", "one forward", "PSNR dB", "SSIM", *shown]
    mine = sorted((r for r in rows if r["steps"] == steps), key=speed, reverse=True)
    return markdown(
        [f"{steps} steps", *head],
        [
            [
                r["name"],
                f"{speed(r):.2f}x",
                f"{r['one_forward_l2']:.3f}",
                "" if r["name"] == "dense" else _with_half(r),
                f"{r['ssim']:.3f}",
                *(f"{r[k]:.0f}" for k in ("colour", "shape", "direction", "right")),
            ]
            for r in mine
        ],
    )


def _with_half(row: Result) -> str:
    """PSNR, with half of its interval where there were clips enough for one."""
    half = f" ± {row['half']:.1f}" if "half" in row else ""
    return f"{row['psnr']:.1f}{half}"


PEERS = {
    name: FORMS[name] for name in ("psnr", "uneven", "ssim", "ms_ssim", "flip", "flicker", "motion")
}
"""Header and form of each figure of a clip beside the dense one."""


def peers_table(rows: list[Result], steps: int, figures: tuple[str, ...] = tuple(PEERS)) -> str:
    """Ours and others at one number of steps, the fastest first, means over the clips."""
    mine = sorted((r for r in rows if r["steps"] == steps), key=speed, reverse=True)
    dense = next(r for r in mine if r["name"] == "dense")
    body = []
    for row in mine:
        cells = []
        for name in figures:
            if name not in row:
                cells.append("")
            elif name == "psnr":
                cells.append(mean_of(row[name]).text(".1f"))
            else:
                cells.append(f"{mean_of(row[name]).mean:{PEERS[name][1]}}")
        right = [100 * x for x in row["right"]]
        less = difference_of(right, [100 * x for x in dense["right"]])
        points = "" if row is dense else less.text("+.0f")
        body.append(
            [row["name"], f"{speed(row):.2f}x", *cells, f"{mean_of(right).mean:.0f}", points]
        )
    head = [f"{steps} steps", "speed-up", *(PEERS[name][0] for name in figures)]
    return markdown([*head, "all three %", "minus dense"], body)


def strip_table(rows: list[Result]) -> str:
    """Settings of the testbed: measured seconds, nearness to the dense clip, checker's score."""
    return markdown(
        ["setting", "seconds", "speed-up", "PSNR dB", "right"],
        [
            [
                r["setting"] if r["setting"] == "dense" else f"tuned for {r['setting']}",
                f"{r['seconds']:.2f}",
                f"{r['speed_up']:.2f}x",
                "" if r["setting"] == "dense" else mean_of(r["psnr"]).text(".1f"),
                f"{100 * mean_of(r['right']).mean:.0f} %",
            ]
            for r in rows
        ],
    )


def forward_lines(rows: list[Result], shown: tuple[str, ...]) -> list[str]:
    """The models of which these configurations were timed, with their speed-ups over all layers."""
    whole = {r["model"]: r for r in rows if r["configuration"] == "dense"}
    lines = []
    for model, dense in whole.items():
        found = []
        for row in rows:
            if row["model"] != model or row["configuration"] not in shown or "ratio" not in row:
                continue
            few = row["layers"] < row["of_layers"]
            if few and not (row.get("seconds_all_layers") and dense.get("seconds_all_layers")):
                continue
            ratio = dense["seconds_all_layers"] / row["seconds_all_layers"] if few else row["ratio"]
            found.append(f"{ratio:.2f}x")
        if len(found) == len(shown):
            layers = f"{dense['layers']} of {dense['of_layers']} layers"
            lines.append(f"{model} {', '.join(found)} ({layers})")
    return lines


SPENT = ("linear", "attention", "pointwise", "calls")
"""Where a call on the testbed spends its milliseconds."""


PARTS = {"linear": "linear", "attention": "attention", "pointwise": "memory"}
"""What of a roofline says how much work a part of these is."""


def by_parts(row: Result, dense: Result) -> dict[str, float]:
    """Milliseconds of each part of a call, at the rates of the dense one's parts."""
    spent, work, mine = dense["spent_ms"], dense["parts_ms"], row["parts_ms"]
    found = {k: spent[k] * mine[of] / work[of] for k, of in PARTS.items()}
    return {**found, "calls": spent["calls"]}


def dense_of(rows: list[Result]) -> Result:
    """The row of the dense model."""
    return next(r for r in rows if r["configuration"] == "dense")


def most_off(rows: list[Result]) -> float:
    """By how many milliseconds a part of a call is off at most, one way or the other."""
    dense = dense_of(rows)
    timed = [r for r in rows if "parts_ms" in r]
    return max(abs(r["spent_ms"][k] - ms) for r in timed for k, ms in by_parts(r, dense).items())


def speed_table(result: Result) -> str:
    """Wall-clock on the testbed beside the prediction."""
    dense = dense_of(result["rows"])

    def share(row: Result) -> list[str]:
        if "parts_ms" not in row:
            return ["", ""]
        expected = sum(by_parts(row, dense).values())
        return [f"{expected:.1f}", f"{100 * expected / row['median_ms']:.0f} %"]

    head = ["configuration", "median ms", "speed-up", "predicted", "reached"]
    return markdown(
        [*head, "by parts, ms", "reached by parts", *SPENT],
        [
            [
                r["configuration"],
                r["median_ms"],
                f"{r['ratio']:.2f}x",
                f"{r['predicted']:.2f}x" if r["predicted"] else "",
                f"{100 * r['reached']:.0f} %" if r["reached"] else "",
                *share(r),
                *(r["spent_ms"][kind] if "spent_ms" in r else "" for kind in SPENT),
            ]
            for r in result["rows"]
        ],
    )


def clip_table(rows: list[Result]) -> str:
    """Whole clips of the testbed, and their transformer calls alone."""
    return markdown(
        ["configuration", "clip ms", "transformer ms", "speed-up", "predicted", "reached"],
        [
            [
                r["configuration"],
                r["median_ms"],
                r["transformer_ms"],
                f"{r['ratio']:.2f}x",
                f"{r['predicted']:.2f}x",
                f"{100 * r['reached']:.0f} %",
            ]
            for r in rows
        ],
    )


def capture_table(result: Result) -> str:
    """Published models captured without weights."""
    labels = list(result["rows"][0]["predicted_ratio"])
    return markdown(
        ["model", "grid", "blocks", "attention share", "capture", "read from disk", *labels],
        [
            [
                r["model"],
                r["grid"],
                r["blocks"],
                f"{r['attention_share']:.0f} %",
                f"{r['cpu_seconds']:.0f} s, {r['peak_gib']:.1f} GiB",
                f"{r['cached_cpu_seconds']:.1f} s" if r.get("cached_cpu_seconds") else "",
                *(f"{x:.2f}x" if x else "refused" for x in r["predicted_ratio"].values()),
            ]
            for r in result["rows"]
        ],
    )


def reduction_table(rows: list[Result]) -> str:
    """Token reduction: calibrated schedules beside one share for all, at equal cost."""
    return markdown(
        ["steps", "cost of attention", "form", "one forward", *MEASURED],
        [
            [
                r["steps"],
                f"{r['cost']:.2f}"
                + (f" (timed {r['cost_timed']:.2f})" if "cost_timed" in r else ""),
                r["form"],
                f"{r['one_forward_error']:.3f}",
                f"{r['psnr']:.1f}",
                f"{r['ssim']:.3f}",
                f"{r['right']:.0f}",
                r["clips"],
            ]
            for r in rows
        ],
    )


def redraw_table(rows: list[Result]) -> str:
    """Destinations drawn once beside those drawn in every cache window."""
    head = ["steps", "cache", "queries dropped", "values dropped", "seeds", "gain dB"]
    return markdown(
        [*head, "better clips", "all three %"],
        [
            [
                *(r["steps"], r["cache_steps"], r["query"], r["value"], len(r["seeds"])),
                f"{r['gain_db']:+.2f} ± {r['standard_error_db']:.2f}",
                f"{r['better_clips']} of {r['clips']}",
                f"{r['right_once']:.0f}, {r['right_redrawn']:.0f}",
            ]
            for r in rows
        ],
    )


def search_table(result: Result) -> str:
    """All destinations beside those nearby."""
    rows = {(r["steps"], r["share"], r["search"]): r for r in result["rows"]}

    def both(pair: Result, name: str) -> list[float]:
        return [rows[pair["steps"], pair["share"], s][name] for s in ("all", "near")]

    def line(pair: Result) -> list[Any]:
        decibels, alike, right = (both(pair, name) for name in ("psnr", "ssim", "right"))
        return [
            *(pair["steps"], pair["share"]),
            *(f"{x:.1f}" for x in decibels),
            f"{pair['gain_db']:+.2f} ± {pair['standard_error_db']:.2f}",
            f"{pair['better_clips']} of {pair['clips']}",
            *(f"{x:.3f}" for x in alike),
            *(f"{x:.0f}" for x in right),
        ]

    head = ["everywhere, dB", "nearby, dB", "gain dB", "better clips"]
    head += ["everywhere, SSIM", "nearby, SSIM", "everywhere, all three %", "nearby, all three %"]
    return markdown(["steps", "share", *head], [line(pair) for pair in result["compared"]])


def published_table(rows: dict[str, Result]) -> str:
    """Cells that drop something, mean shares, and the mean cost of a visual attention."""
    head = ["published", "query cells", "mean share", "value cells", "mean share", "cost"]
    names = ("query_cells", "query_mean", "value_cells", "value_mean", "cost")
    return markdown(
        [*head, "cost with text"],
        [
            [
                name,
                *(f"{row[n]:.3f}" for n in names),
                f"{row['cost_in_graph']:.3f}" if "cost_in_graph" in row else "",
            ]
            for name, row in rows.items()
        ],
    )


def masks_table(rows: list[Result]) -> str:
    """Searched mask tables beside one mask for every block, at equal cost."""
    return markdown(
        ["steps", "cost of", "masks", "speed-up", "one forward", *MEASURED],
        [
            [
                r["steps"],
                r["cost_of"],
                r["table"],
                f"{r['flops_ratio']:.2f}x",
                f"{r['one_forward_error']:.3f}",
                f"{r['psnr']:.1f}",
                f"{r['ssim']:.3f}",
                f"{r['right']:.0f}",
                r["clips"],
            ]
            for r in rows
        ],
    )


def tune_table(result: Result) -> str:
    """Tuned plans and presets on clips that no search saw, the fastest first."""
    plans, times = result["plans"], result.get("times", {})
    return markdown(
        [
            *("plan", "speed-up", "eager", "compiled", "PSNR dB", "SSIM", "error", "reported"),
            "all three %",
        ],
        [
            [
                f"tuned for {r['target']}" if r["target"] in plans else r["target"],
                f"{r['speed_up']:.2f}x" if r["speed_up"] is not None else "",
                *(_timed(times.get(r["target"], {}), b) for b in ("eager", "inductor")),
                f"{r['psnr']:.1f} ± {r['half']:.1f}" if r["target"] != "dense" else "",
                f"{r['ssim']:.3f}",
                f"{r['error']:.3f}" if r["target"] != "dense" else "",
                f"{plans[r['target']]['error']:.3f}" if r["target"] in plans else "",
                f"{r['right']:.0f}",
            ]
            for r in sorted(result["rows"], key=lambda r: -(r["speed_up"] or 0.0))
        ],
    )


def _timed(times: Result, backend: str) -> str:
    """The speed-up in seconds, and its share of the predicted one."""
    found = times.get(backend)
    return f"{found['speed_up']:.2f}x ({found['reached']:.0%})" if found else ""


def precision_table(rows: list[Result]) -> str:
    """Linears in FP8 beside those in the model's precision, under the same passes."""
    names = {"model": "as the model", "fp8-simulated": "fp8"}
    return markdown(
        ["steps", "passes", "linears", "one forward", "PSNR dB", "SSIM", "all three %"],
        [
            [
                *(r["steps"], r["passes"], names[r["linear"]]),
                f"{r['one_forward_l2']:.3f}" if r["one_forward_l2"] is not None else "",
                f"{r['psnr']:.1f}" if r["one_forward_l2"] != 0 else "",
                f"{r['ssim']:.3f}",
                f"{r['right']:.0f}",
            ]
            for r in rows
        ],
    )


def host(result: Result) -> str:
    """The machine a result was measured on, in words."""
    m = result["machine"]
    threads = f"{m['threads']} thread{'s' if m['threads'] > 1 else ''}"
    return f"{m['device']}, {threads}, load average {m['load']}, torch {m['torch']}"


def aot_table(rows: list[Result]) -> str:
    """The default config of every kernel, shape class and architecture, compiled ahead of time."""
    head = ["kernel", "shapes", "arch", "config", "registers", "spilled", "shared KiB"]
    return markdown(
        [*head, "tensor core", "waits, barriers a 64 keys"],
        [
            [
                r["kernel"],
                r["shape_class"],
                r["arch"],
                r["config"],
                r["registers"],
                r["spilled"],
                round(r["shared"] / 1024),
                ", ".join(f"{n} {name}" for name, n in r["tensor_core"].items()),
                ", ".join(f"{n:g}" for n in r.get("per_64_keys", {}).values()),
            ]
            for r in rows
            if r["default"] and "registers" in r
        ],
    )


def export_table(rows: list[Result]) -> str:
    """Largest difference of every exported cell from the optimised module."""
    formats = list(dict.fromkeys(r["format"] for r in rows))
    cells = {(r["case"], r["passes"], r["format"]): r for r in rows}

    def shown(row: Result | None) -> str:
        if row is None:
            return ""
        if "difference" not in row:
            return "refused" if "error" in row else ""
        return f"{row['difference']:.0e}" if row["difference"] else "0"

    keys = list(dict.fromkeys((r["case"], r["passes"]) for r in rows))
    return markdown(
        ["model", "passes", *formats],
        [[*key, *(shown(cells.get((*key, f))) for f in formats)] for key in keys],
    )


def students_table(students: dict[str, Result]) -> str:
    """Students of the testbed, before and after training, beside the dense model."""
    shown = ("colour", "shape", "direction", "right")
    head = ["evaluations", "FLOPs", "to 50 guided steps, dB", "to 4 guided steps, dB"]
    dense = next(iter(students.values()))["baselines"]

    def line(name: str, calls: int, flops: str, f: Result) -> list[Any]:
        near = ["" if f[k] >= 100 else f"{f[k]:.1f}" for k in ("to_50", "to_4")]
        checked = [f"{f[k]:.0f}" for k in shown]
        return [
            name,
            calls,
            flops,
            *near,
            *checked,
            f"{abs(f['frechet']):.3f}",
            f"{f['motion']:.2f}",
        ]

    body = []
    for name, figures in dense.items():
        steps = int(name.split(", ")[1].split()[0])
        body.append(line(name, 2 * steps, "1.00x", figures))
    for name, student in students.items():
        calls = student["steps"] * (2 if student["guided"] else 1)
        what = f"{student['steps']} steps, {'guided' if student['guided'] else 'guidance learnt'}"
        rows = {"before": "before", "after": "after"}
        for when, said in (rows if student["curve"] else {"before": "not trained"}).items():
            flops = f"{student['flops_ratio']:.2f}x"
            body.append(line(f"{name} ({what}), {said}", calls, flops, student[when]))
    return markdown(["clips of", *head, *(f"{k} %" for k in shown), "Fréchet", "motion"], body)


def forward_table(rows: list[Result]) -> str:
    """One forward call of published models on a GPU, beside what its ceilings allow."""
    head = ["model", "layers", "configuration", "seconds", "speed-up", "predicted", "reached"]
    whole = {
        (r["model"], r["layers"]): r.get("seconds_all_layers")
        for r in rows
        if r["configuration"] == "dense"
    }

    def of_all(row: Result) -> str:
        dense, mine = whole.get((row["model"], row["layers"])), row.get("seconds_all_layers")
        few = row["layers"] < row["of_layers"]
        return f"{dense / mine:.2f}x" if few and dense and mine else ""

    return markdown(
        [*head, "of all layers", "at the ceilings"],
        [
            [
                r["model"],
                f"{r['layers']} of {r['of_layers']}",
                r["configuration"],
                f"{r['seconds']:.3f}",
                f"{r['ratio']:.2f}x",
                f"{r['predicted']:.2f}x" if "predicted" in r else "",
                f"{100 * r['reached']:.0f} %" if "reached" in r else "",
                of_all(r),
                f"{r['roofline']:.3f} s" if "roofline" in r else "",
            ]
            for r in rows
            if "ratio" in r
        ],
    )


def tiles_table(rows: list[Result]) -> str:
    """Tile-sparse attention on a GPU: the rate of each implementation, of the dense one's."""
    ways = {
        "fisopt merge": "dense calls, merged",
        "fisopt": "Gluon kernel",
        "fisopt 128x128, 8 warps, 2 stages, descriptors": "Triton kernel",
        "reference": "dense calls by group",
        "flex attention": "FlexAttention",
    }
    shapes = dict.fromkeys((r["shape"], r["kept"]) for r in rows if "of_dense_rate" in r)
    cells = {(r["shape"], r["kept"], r["implementation"]): r for r in rows if "ms" in r}

    def cell(shape: str, kept: str, way: str) -> str:
        row = cells.get((shape, kept, way))
        return f"{row['ms']:.1f} ms, {100 * row['of_dense_rate']:.0f} %" if row else ""

    body = []
    for shape, kept in shapes:
        density = next(c["density"] for (s, k, _), c in cells.items() if (s, k) == (shape, kept))
        body.append([shape, kept, f"{density:.3f}", *(cell(shape, kept, way) for way in ways)])
    return markdown(["attention", "mask", "density", *ways.values()], body)


def device(result: Result) -> str:
    """The GPU a result was measured on, in words."""
    m = result["machine"]
    return f"one {m['device']}, torch {m['torch']}, cuDNN {m['cudnn']}, Triton {m['triton']}"
