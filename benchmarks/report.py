"""Write what was measured into README.md and the pages of docs, and draw it.

    make results

Reads benchmarks/results/*.json; only what stands there is written, between the marks
``<!-- results ... -->`` and ``<!-- end of results -->``.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tables
from harness import RESULTS
from plots import plot_growth, plot_peers, plot_quality, plot_students

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FIGURES = ROOT / "fisopt" / "passes" / "figures.json"
PRIOR = ROOT / "fisopt" / "tuning" / "prior.json"
MARKS = re.compile(r"(<!-- results[^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)


FEW = 8
"""Steps up to which nothing is worth reusing by threshold."""
CACHES = re.compile("Cache|cache-dit|TaylorSeer|many-|tuned")
"""The rows of bench_peers.py that reuse steps."""
Section = Callable[[dict[str, Any]], list[str]]
"""Lines of markdown of one result file."""


def load(name: str) -> dict[str, Any] | None:
    """One result file, None if it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def filled(path: Path, sections: Mapping[str, Section]) -> str:
    """A page with what was measured between its marks."""
    page = path.read_text()
    if not MARKS.search(page):
        raise SystemExit(f"{path}: no <!-- results --> ... <!-- end of results --> marks")
    found = [write(held) for name, write in sections.items() if (held := load(name))]
    text = "\n".join(line for lines in found for line in lines).rstrip()
    return MARKS.sub(lambda m: m[1] + text + "\n" + m[2], page)


def speed_section(wall: dict[str, Any]) -> list[str]:
    """Wall-clock on the testbed."""
    where = f"over `{wall['baseline']}` of the same run ({tables.host(wall)})"
    off = tables.most_off(wall["rows"])
    text = (
        f"Wall-clock, {wall['what']}, {where}. All configurations take turns, so each call finds "
        "cold caches. The last columns are milliseconds by torch's profiler: `pointwise` is norms, "
        "rotary tables, GELU, gathers and fills; `calls` is the rest: guards, dispatch, Python and "
        "what cold caches cost. The prediction counts FLOPs alone. By parts is what a call takes "
        "if each of its parts runs at the rate of the dense model's: linears and attention by "
        "FLOPs, pointwise kernels by the bytes that they move, which fall less than FLOPs, and "
        f"calls, which do not fall; single parts are off by up to {off:.0f} ms, one way or the "
        "other."
    )
    clips = (
        "Whole clips of the same testbed, 4 steps, and the calls of their transformer, compiled "
        "dense over optimised in turns. Calls of one clip find warm caches:"
    )
    found = [text, "", tables.speed_table(wall), ""]
    return [*found, clips, "", tables.clip_table(wall["clips"]), ""]


def forward_section(forward: dict[str, Any]) -> list[str]:
    """Published models on a GPU."""
    rounds = min(r["rounds"] for r in forward["rows"] if "rounds" in r)
    note = (
        f"One forward call on {tables.device(forward)}: random bfloat16 weights at the published "
        "size. The baseline is the compiled dense model with the device's fastest dense "
        "attention, in the same process. Predicted is the ratio of FLOPs. At the ceilings is the "
        "time of the call if products, attentions and copies ran at the rates of large ones. If "
        "the benchmark built only some of the layers, the speed-up of all layers follows from "
        "the time of one dense and one sparse layer, assuming that all sparse layers take equal "
        f"time. Alternating rounds: {rounds}."
    )
    return [note, "", tables.forward_table(forward["rows"]), ""]


def strip_summary(strip: dict[str, Any]) -> list[str]:
    """The settings whose clips stand at the head of the README."""
    note = (
        f"{len(strip['rows'][0]['psnr'])} clips of the bundled testbed, on prompts that no search "
        f"used, {strip['what']}; CPU seconds of a whole clip on one thread "
        f"({tables.host(strip)}). PSNR is to the dense clip, with its 95 % interval. A checker "
        "reads colour, shape and direction from the pixels; right is the share of clips in which "
        "all three match the prompt."
    )
    return [note, "", tables.strip_table(strip["rows"]), ""]


def forward_summary(forward: dict[str, Any]) -> list[str]:
    """Speed-ups of published models on a GPU, in one line."""
    told = ", ".join(tables.forward_lines(forward["rows"], ("stride 2", "stride 3")))
    where = forward["machine"]["device"]
    return [f"- {where}, one call of random weights at strides 2 and 3: {told}"]


def students_section(held: dict[str, Any]) -> list[str]:
    """Students of few steps, on a GPU."""
    note = (
        f"On {tables.device(held)}, with three other trainings and further work running at once, "
        f"{trained(held['students'])}. Evaluations counts calls of the model, with guidance. "
        "Before is the student with the weights from before training, under the same steps and "
        "passes. Fréchet is the distance between the middle block's features and those of the "
        "50-step clips. Motion is the energy of frame differences, relative to the 50-step clips."
    )
    return [note, "", tables.students_table(held["students"]), ""]


def sparse_section(held: dict[str, Any]) -> list[str]:
    """Sparse students, on a CPU."""
    note = (
        f"On a CPU ({tables.host(held)}), at full precision: {trained(held['students'])}. The "
        "passes are plans of `fisopt.tune` for that speed."
    )
    picture = "![Distance to the teacher against clips](images/distillation.png)"
    return [note, "", tables.students_table(held["students"]), "", picture, ""]


def trained(students: dict[str, Any]) -> str:
    """How long students were trained, in words."""
    ends = [s["curve"][-1] for s in students.values() if s["curve"]]
    seconds, clips = ([end[key] for end in ends] for key in ("seconds", "clips"))
    return (
        f"{min(seconds):.0f} to {max(seconds):.0f} seconds each, on "
        f"{min(clips)} to {max(clips)} clips; the figures are of 24 clips that no student trained "
        "on"
    )


def tiles_section(tiles: dict[str, Any]) -> list[str]:
    """Tile-sparse attention on a GPU."""
    note = (
        f"On {tables.device(tiles)}: time, and the rate on the kept pairs as a share of dense "
        "cuDNN's rate:"
    )
    return [note, "", tables.tiles_table(tiles["rows"]), ""]


def quality_section(quality: dict[str, Any]) -> list[str]:
    """Frame sparsity: the plot and every row."""
    interval = any("half" in row for row in quality["rows"])
    psnr = "PSNR has half of its 95 % interval over the clips. " if interval else ""
    note = (
        f"{quality['clips']} clips, {quality['what']} ({tables.host(quality)}). The first block "
        f"is dense unless the name says otherwise. {psnr}Speed-ups are ratios of FLOPs. One "
        "forward is the relative L2 error of one call at fixed latents, mean over three noise "
        "levels."
    )
    picture = "![PSNR against speed-up](images/quality.png)"
    lines = ["### Forms of frame sparsity", "", picture, "", note, ""]
    for steps in sorted({r["steps"] for r in quality["rows"]}):
        lines += [tables.quality_table(quality["rows"], steps), ""]
    return lines


def peers_note(peers: dict[str, Any]) -> str:
    """What the rows of presets, caches and peers are."""
    return (
        f"{peers['clips']} clips on prompts that no search used, each generated alone, all "
        f"methods from the same noise, {peers['what']} ({tables.host(peers)}). Speed-ups are "
        "ratios of FLOPs over a whole clip; they do not count a cache's own bookkeeping. "
        "Brackets hold 95 % intervals over the clips. From frame to frame is the jump of PSNR "
        "between neighbouring frames. Flicker and motion are ratios to the dense clip. FLIP is 0 "
        "for equal clips. All three is the share of clips in which the checker finds colour, "
        "shape and direction as prompted; minus dense is its difference from the dense clips, "
        "paired clip by clip, in points."
    )


def peers_section(peers: dict[str, Any]) -> list[str]:
    """Presets, step caches and other libraries' methods, in one script."""
    lines = ["### Presets, caches and other libraries", "", peers_note(peers), ""]
    lines += ["![Ours in blue, others in grey](images/peers.png)", ""]
    for steps in sorted({r["steps"] for r in peers["rows"]}):
        lines += [tables.peers_table(peers["rows"], steps), ""]
    return lines


def reduction_section(reduction: dict[str, Any]) -> list[str]:
    """Token reduction."""
    note = (
        f"{reduction['what']}, tested on other clips ({tables.host(reduction)}). The cost is the "
        "mean cost of a visual attention over blocks and steps, without matching, as a share of "
        "the dense one; timed is the measured cost of the same attentions on this machine. "
        "Uniform drops the same share everywhere. One forward is the relative L2 error of one "
        "call on the dense trajectory, mean over four steps."
    )
    table = tables.reduction_table(reduction["rows"])
    return ["### Token reduction", "", note, "", table, ""]


def redraw_section(redraw: dict[str, Any]) -> list[str]:
    """Destinations drawn once for all steps, or anew in every cache window."""
    note = (
        "Destinations drawn once for all steps, compared with destinations drawn anew in every "
        f"cache window: {redraw['what']}, {redraw['clips']} clips ({tables.host(redraw)}). The "
        "gain is the paired gain in PSNR to the dense clip, mean over the seeds of the draws, "
        "with its standard error over the clips. All three is the checker's score, drawn once "
        "and redrawn."
    )
    return ["### Redrawn destinations", "", note, "", tables.redraw_table(redraw["compared"]), ""]


def search_section(search: dict[str, Any]) -> list[str]:
    """Tokens that look for what stands for them everywhere, or nearby."""
    note = (
        "Dropped tokens that search among all destinations, compared with dropped tokens that "
        f"search only in the cells around their own: {search['what']} "
        f"({tables.host(search)}). Every block drops this share of its queries and of its keys "
        "and values. The "
        "gain is the paired gain in PSNR to the dense clip by the nearby search, with its "
        "standard error over the clips."
    )
    return ["### Where tokens look", "", note, "", tables.search_table(search), ""]


def published_section(matching: dict[str, Any]) -> list[str]:
    """What the authors' own schedules leave of a visual attention."""
    return [tables.published_table(matching["published_cost"]), ""]


def masks_section(masks: dict[str, Any]) -> list[str]:
    """Tile-sparse attention."""
    note = (
        f"{masks['what']}, tested on other clips ({tables.host(masks)}). All masks of one cost "
        "compute the same FLOPs."
    )
    return ["### Tile-sparse attention", "", note, "", tables.masks_table(masks["rows"]), ""]


def precision_section(precision: dict[str, Any]) -> list[str]:
    """Linears in FP8."""
    note = (
        f"{precision['what']}, {precision['clips']} clips ({tables.host(precision)}). All rows "
        "compare with the model's own dense clips. The time that FP8 saves depends on the GPU "
        "and is not in this table."
    )
    table = tables.precision_table(precision["rows"])
    return ["### Linears in FP8", "", note, "", table, ""]


def caches_section(peers: dict[str, Any]) -> list[str]:
    """Step caches of many steps, ours and others'."""
    rows = [r for r in peers["rows"] if r["steps"] > FEW]
    caches = [r for r in rows if r["name"] == "dense" or CACHES.search(r["name"])]
    lines = []
    for steps in sorted({r["steps"] for r in caches}):
        lines += [tables.peers_table(caches, steps, ("psnr", "ssim", "motion")), ""]
    return [peers_note(peers), "", *lines]


def capture_section(capture: dict[str, Any]) -> list[str]:
    """Published shapes."""
    text = "Published shapes, captured without weights; speed-ups are ratios of FLOPs:"
    return [text, "", tables.capture_table(capture), ""]


def aot_section(aot: dict[str, Any]) -> list[str]:
    """Kernels compiled without a GPU."""
    note = f"Defaults, compiled by Triton {aot['triton']} without a GPU:"
    return [note, "", tables.aot_table(aot["rows"]), ""]


def export_section(exported: dict[str, Any]) -> list[str]:
    """The matrix of exports."""
    note = (
        "Largest difference between the optimised module and its artefact, loaded by a fresh "
        f"process, for tiny models of every variant ({tables.host(exported)}):"
    )
    return [note, "", tables.export_table(exported["rows"]), ""]


def tune_section(tuned: dict[str, Any]) -> list[str]:
    """Plans for a speed, and presets."""
    note = (
        f"{tuned['what']}, {max(r['clips'] for r in tuned['rows'])} clips on prompts that no "
        f"search used ({tables.host(tuned)}). The plans were tuned on other prompts. PSNR is to "
        "the dense clip, mean and 95 % interval. The error is the relative L2 error of the final "
        "latents, geometric mean over the clips; reported is the error that `fisopt.tune` "
        "reported on its own prompts. Speed-ups are ratios of FLOPs over all steps. Eager and "
        "compiled are ratios of CPU seconds of a clip on one thread, measured in turns, with "
        "their share of the FLOPs ratio in brackets. All three is the checker's score. "
        f"{tuned.get('note', '')}"
    ).rstrip()
    title = f"### Tuned plans of {tuned['steps']} steps"
    return [title, "", note, "", tables.tune_table(tuned), ""]


DETAIL = {
    "testbed_peers": peers_section,
    "testbed_quality": quality_section,
    "token_reduction": reduction_section,
    "redraw": redraw_section,
    "token_search": search_section,
    "mask_search": masks_section,
    "precision": precision_section,
}
H100, H200 = "nvidia-h100-80gb-hbm3", "nvidia-h200"
SUMMARY = {
    "strip": strip_summary,
    f"{H200}/forward": forward_summary,
    f"{H100}/forward": forward_summary,
}
SPEED = {
    f"{H200}/forward": forward_section,
    f"{H100}/forward": forward_section,
    "testbed_speed": speed_section,
    "capture": capture_section,
}


PAGES = {
    "docs/quality.md": DETAIL,
    "docs/results.md": SPEED,
    "README.md": SUMMARY,
    "docs/passes/token_reduction.md": {"matching": published_section},
    "docs/writing_a_kernel.md": {"aot": aot_section},
    "docs/passes/step_cache.md": {"testbed_peers": caches_section},
    "docs/passes/tile_attention.md": {f"{H200}/tile_attention": tiles_section},
    "docs/export.md": {"export": export_section},
    "docs/tuning.md": {"tune": tune_section, "tune_25": tune_section},
    "docs/distillation.md": {
        f"{H100}/distillation": students_section,
        "distillation": sparse_section,
    },
}


def preset_figures(peers: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """What `fisopt choose` and `fisopt models` say of the presets."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in peers["rows"]:
        kind, _, name = row["name"].partition(" ")
        if kind == "preset":
            figure = {
                "steps": row["steps"],
                "speed_up": round(row["flops_ratio"], 3),
                "psnr": round(statistics.mean(row["psnr"]), 2),
                "right": round(100 * statistics.mean(row["right"]), 1),
                "clips": len(row["psnr"]),
            }
            found.setdefault(name, []).append(figure)
    return found


def prior_prices(held: dict[str, Any]) -> dict[str, Any]:
    """What `fisopt.rehearse` plans by."""
    return {name: held[name] for name in ("options", "first")}


def main() -> None:
    for page, sections in PAGES.items():
        (ROOT / page).write_text(filled(ROOT / page, sections))
    if (quality := load("testbed_quality")) is not None:
        plot_quality(quality["rows"], IMAGES / "quality.png")
    if (peers := load("testbed_peers")) is not None:
        plot_peers(peers["rows"], IMAGES / "peers.png")
        FIGURES.write_text(json.dumps(preset_figures(peers), indent=1) + "\n")
    if (held := load("prior")) is not None:
        PRIOR.write_text(json.dumps(prior_prices(held), indent=1) + "\n")
    made = [held for held in map(load, (f"{H100}/distillation", "distillation")) if held]
    if students := {name: s for held in made for name, s in held["students"].items()}:
        plot_students(students, IMAGES / "distillation.png")
    if (tiles := load("tile_attention")) is not None:
        plot_growth(tiles["growth"], IMAGES / "tile_growth.png")


if __name__ == "__main__":
    main()
