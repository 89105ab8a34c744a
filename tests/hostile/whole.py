"""Whole files to mutate: a small model exported in every form, and a recipe with its files."""

from __future__ import annotations

import json
from pathlib import Path

import fisopt
from fisopt import FrameInterleave, MaskTable, ModelSpec, RadialDecay, Schedule, TokenReduction
from fisopt.passes.schedule import Measured
from fisopt.recipe.recipe import Recipe
from tests import plain_dit
from tests.hostile.mutations import Corpus
from tests.plain_dit import FORMS, PlainDiT

GRID = (5, 2, 3)


def corpus(folder: Path, *, onnx: bool = True) -> Corpus:
    """Write whole files of every kind."""
    form = FORMS["text_in_front"]
    model = PlainDiT(form).eval()
    inputs = plain_dit.inputs(form, *GRID, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    made = fisopt.optimize(model, [FrameInterleave()], inputs, spec, "eager")
    whole = {"pt2": fisopt.export(made, folder / "whole.pt2", dynamic=False)}
    ends = fisopt.optimize(made, [FrameInterleave(dense_steps=(0,))], inputs, spec, "eager")
    whole["folder"] = fisopt.export(ends, folder / "whole", steps=3, dynamic=False)
    if onnx:
        whole["onnx"] = fisopt.export(made, folder / "whole.onnx", "onnx", dynamic=False)
    return Corpus(whole | texts(folder, model))


def texts(folder: Path, model: PlainDiT) -> dict[str, Path]:
    """Whole files of text."""
    measured = Measured(model="PlainDiT", grid=GRID, prompts=2, seed=1)
    schedule = Schedule(((1, 7, 9),) * 3, ((0, 8, 8),) * 3, ((5, 0.3),), ((8, 0.3),), measured)
    table = MaskTable({"layers.0": 2, "layers.1": RadialDecay(2), "layers.2": None}, {"frames": 5})
    passes = [fisopt.TileAttention(table=table), TokenReduction(schedule=schedule)]
    recipe = Recipe.of(model, passes).save(_in(folder, "recipe") / "recipe.yaml")
    schedule.save(_in(folder, "schedule") / "schedule.yaml")
    choices = _in(folder, "choices") / "gpu.json"
    choices.write_text(json.dumps({"kernel 1": {"reference": 3.5, "1 warps": 2.25}}))
    return {
        "recipe": recipe,
        "schedule": folder / "schedule" / "schedule.yaml",
        "mask_table": table.save(_in(folder, "mask_table") / "masks.json"),
        "choices": choices,
    }


def _in(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


WARM = {"pt2": "artefact", "onnx": "artefact", "folder": "artefact"}


def warm(corpus: Corpus) -> list[tuple[str, Path]]:
    """What a watched process reads first, so that all modules that readers need are there."""
    return [(WARM.get(kind, kind), path) for kind, path in corpus.whole.items()]
