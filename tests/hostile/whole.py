"""Whole files to mutate: a small model exported in every form, and a recipe with its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import minisign
import torch
from safetensors.torch import save_file
from torch import nn

import fisopt
from fisopt import (
    FrameInterleave,
    MaskTable,
    ModelSpec,
    OptimizedModule,
    Pass,
    RadialDecay,
    Schedule,
    TokenReduction,
)
from fisopt.passes.reduction.measured import Measured
from fisopt.recipe.recipe import Recipe
from tests import plain_dit
from tests.hostile.mutations import KINDS, Corpus
from tests.plain_dit import FORMS, PlainDiT

GRID = (5, 2, 3)
KEY = (
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA4OKjzlw64n+DXx5hxbWh5s9euqbC+cnpOE"
    "axMvVZAyGClLkdNFZHNF8JV7LaTtjJOyFp9KmNKZaMhkYjTy4xwf2LqnJcndt3m2wi2GhZjL0lWRXc2sOT7lNn8W80PhbdeeNErntFbJc="
)
"""A secret key of minisign, the same in every run."""


Made = Callable[[Sequence[Pass]], OptimizedModule]


def plain(passes: Sequence[Pass]) -> OptimizedModule:
    """A plain model with some passes."""
    form = FORMS["text_in_front"]
    inputs = plain_dit.inputs(form, *GRID, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    return fisopt.optimize(PlainDiT(form).eval(), passes, inputs, spec, "eager")


def corpus(folder: Path, made: Made = plain, *, onnx: bool = True) -> Corpus:
    """Write whole files of every kind."""
    stepwise = made([FrameInterleave(steps="1:")])
    whole = {"folder": fisopt.export(stepwise, folder / "whole", steps=3, dynamic=False)}
    sparse = made([FrameInterleave()])
    whole["pt2"] = fisopt.export(sparse, folder / "whole.pt2", dynamic=False)
    if onnx:
        whole["onnx"] = fisopt.export(sparse, folder / "whole.onnx", "onnx", dynamic=False)
    whole["signature"] = signed(whole["pt2"], _in(folder, "signature"))
    return Corpus(whole | texts(folder, sparse.original))


def signed(artefact: Path, folder: Path) -> Path:
    """A signature beside what it is of and the key that it is by."""
    path = shutil.copy(artefact, folder / "a.pt2")
    secret = folder.parent / "secret.key"
    secret.write_text(f"untrusted comment: of these tests\n{KEY}")
    key = minisign.SecretKey.from_file(secret).get_public_key()
    (folder / "key.pub").write_bytes(bytes(key))
    return fisopt.sign(path, secret)


def texts(folder: Path, model: nn.Module) -> dict[str, Path]:
    """Whole files of text."""
    measured = Measured(model="PlainDiT", grid=GRID, prompts=2, seed=1)
    schedule = Schedule(((1, 7, 9),) * 3, ((0, 8, 8),) * 3, ((5, 0.3),), ((8, 0.3),), measured)
    table = MaskTable({"layers.0": 2, "layers.1": RadialDecay(2), "layers.2": None}, {"frames": 5})
    passes = [fisopt.TileAttention(table=table), TokenReduction(schedule=schedule)]
    recipe = Recipe.of(model, passes).save(_in(folder, "recipe") / "recipe.yaml")
    schedule.save(_in(folder, "schedule") / "schedule.yaml")
    authors = _in(folder, "authors") / "limits.yaml"
    authors.write_text("q:\n  5: 0.3\nv:\n  8: 0.3\ntable: tiers.safetensors\n")
    tiers = torch.tensor([[1, 7, 9], [0, 8, 8]])
    save_file({"q": tiers, "v": tiers.clone()}, authors.parent / "tiers.safetensors")
    choices = _in(folder, "choices") / "gpu.json"
    choices.write_text(json.dumps({"kernel 1": {"reference": 3.5, "1 warps": 2.25}}))
    return {
        "recipe": recipe,
        "schedule": folder / "schedule" / "schedule.yaml",
        "mask_table": table.save(_in(folder, "mask_table") / "masks.json"),
        "authors": authors,
        "choices": choices,
    }


def _in(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def warm(corpus: Corpus) -> list[tuple[str, Path]]:
    """What a watched process reads first, so that all modules that readers need are there."""
    return [(KINDS[kind], path) for kind, path in corpus.whole.items()]
