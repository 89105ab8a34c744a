"""Recipes: written, read in another process, refused where they do not fit."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn

import fisopt
from fisopt import (
    FrameInterleave,
    FrameTable,
    MaskTable,
    Pass,
    Recipe,
    RecipeError,
    Rule,
    RulePass,
    Schedule,
    SlidingWindow,
    StepCache,
    TileAttention,
    TileMask,
    TokenReduction,
)
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.recipe.identity import Identity, digest
from fisopt.recipe.options import known_passes
from fisopt.rewrite.rewriter import Rewriter
from tests import plain_dit
from tests.artefact.fresh import process
from tests.artefact.models import plain
from tests.plain_dit import FORMS
from tests.zoo import zoo

SCHEDULE = Schedule(((1, 4), (2, 3)), ((0, 5), (1, 1)), ((3, 0.5),), ((5, 0.25),))
TABLE = MaskTable({"layers.0": 2, "layers.1": SlidingWindow(1), "layers.2": None})


@dataclass(frozen=True)
class Mine(Pass):
    """A user's own pass."""

    names: tuple[str, ...] = ("a",)
    mask: TileMask | None = None

    def run(self, rewriter: Rewriter) -> None:
        rewriter.note("nothing")


PASSES: dict[str, Pass] = {
    "frames": FrameInterleave(stride=3, steps="1:-1", fill="carry"),
    "tokens": TokenReduction(0.4, 0.25, (2, 1, 2), cache_steps=3, mode="mean", seed=7),
    "schedule": TokenReduction(schedule=SCHEDULE),
    "mask": TileAttention(SlidingWindow(2), blocks="1:"),
    "rows": TileAttention(FrameTable(((True, False), (True, True)))),
    "table": TileAttention(table=TABLE),
    "cache": StepCache(0.1, order=1, max_run=3, steps="2:"),
    "mine": Mine(names=("b", "c"), mask=TileMask(3)),
}


def model() -> plain_dit.PlainDiT:
    return plain_dit.build(FORMS["fused"])


def test_kernels_are_part_of_it(tmp_path: Path) -> None:
    inputs = plain_dit.inputs(FORMS["fused"], 5, 2, 3)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))
    given = {"example_inputs": inputs, "spec": spec, "backend": "eager"}
    fast = fisopt.optimize(
        model(), [FrameInterleave()], linear="fp8-simulated", attention="flash", **given
    )
    path = fast.save_recipe(tmp_path / "recipe.yaml")
    assert "fisopt_recipe: 2" in path.read_text()
    again = fisopt.optimize(model(), recipe=path, **given)
    assert again.recipe == fast.recipe
    with torch.no_grad():
        assert torch.equal(again(**inputs)["video"], fast(**inputs)["video"])
    plain = fisopt.optimize(model(), recipe=path, linear="model", attention="sdpa", **given)
    assert not [c for c in plain.report.variants[0].choices if c.what in ("linear", "attention")]


def test_a_function_is_no_part_of_it() -> None:
    kernels = KernelOptions(attention=torch.nn.functional.scaled_dot_product_attention)
    with pytest.raises(RecipeError, match="is a function"):
        Recipe.of(model(), [], kernels).plain()


@pytest.mark.parametrize("pass_", PASSES.values(), ids=PASSES)
def test_round_trip(pass_: Pass, tmp_path: Path) -> None:
    recipe = Recipe.of(model(), [pass_, FrameInterleave()])
    again = Recipe.load(recipe.save(tmp_path / "new" / "recipe.yaml"))
    assert again == recipe
    assert again.versions == recipe.versions
    inside = json.loads(json.dumps(recipe.plain()))
    assert Recipe.from_plain(inside, "here") == recipe
    assert "!!" not in (tmp_path / "new" / "recipe.yaml").read_text(), "plain YAML"


def test_a_recipe_is_one_file(tmp_path: Path) -> None:
    """Nothing can be mixed, and a file that is there under another name stays."""
    mine = tmp_path / "r.schedule.yaml"
    mine.write_text("mine")
    passes = [PASSES["schedule"], TokenReduction(schedule=SCHEDULE, seed=1), PASSES["table"]]
    for force in (False, True):
        Recipe.of(model(), passes).save(tmp_path / "r.yaml", force=force)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.schedule.yaml", "r.yaml"]
    assert mine.read_text() == "mine"
    assert Recipe.load(tmp_path / "r.yaml").passes == tuple(passes)


def test_a_large_mask_table_is_compressed(tmp_path: Path) -> None:
    """Tiles of single heads, as of a large model; what is wrong with them is told."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(24, 33, 33, generator=generator) < 0.3
    table = MaskTable({f"layers.{i}": FrameTable(kept.roll(i, 1)) for i in range(3)})
    recipe = Recipe.of(model(), [TileAttention(table=table)])
    path = recipe.save(tmp_path / "r.yaml")
    assert path.stat().st_size < 100_000
    assert Recipe.load(path) == recipe
    said = yaml.safe_load(path.read_text())
    held = said["passes"][0]["options"]["table"]["mask_table"]
    bomb = base64.b85encode(zlib.compress(b" " * (1 << 25))).decode()
    for packed, message in (
        (held["packed"][:-7], "not complete|cannot be unpacked"),
        (bomb, "more than 16,777,216 bytes"),
        (base64.b85encode(zlib.compress(b"[" * 100_000)).decode(), "cannot be unpacked"),
        ("no base85 \u00e9", "cannot be unpacked"),
        (3, "cannot be unpacked"),
    ):
        held["packed"] = packed
        path.write_text(yaml.safe_dump(said))
        with pytest.raises(RecipeError, match=message):
            Recipe.load(path)


def with_files(folder: Path) -> Path:
    """A recipe as earlier versions wrote it: a schedule of two files beside it, a mask table."""
    said = Recipe.of(model(), [PASSES["schedule"], PASSES["table"]]).plain()
    schedule = said["passes"][0]["options"]["schedule"]["schedule"]
    table = said["passes"][1]["options"]["table"]["mask_table"]
    schedule["file"], table["file"] = "r.schedule.yaml", "r.1.mask_table.json"
    del schedule["value"], table["value"]
    tiers = {"q": torch.tensor(SCHEDULE.query), "v": torch.tensor(SCHEDULE.value)}
    save_file(tiers, folder / "r.schedule.safetensors")
    limits = {"q": dict(SCHEDULE.query_thresholds), "v": dict(SCHEDULE.value_thresholds)}
    held = {**limits, "table": "r.schedule.safetensors", "measured": {}}
    (folder / "r.schedule.yaml").write_text(yaml.safe_dump(held))
    TABLE.save(folder / "r.1.mask_table.json")
    (folder / "r.yaml").write_text(yaml.safe_dump(said))
    return folder / "r.yaml"


def test_a_recipe_with_files_beside_it(tmp_path: Path) -> None:
    assert Recipe.load(with_files(tmp_path)).passes == (PASSES["schedule"], PASSES["table"])


def test_a_fresh_process_makes_the_same(tmp_path: Path) -> None:
    passes = [FrameInterleave(), TileAttention(table={f"layers.{i}": 2 for i in range(3)})]
    made, inputs = plain(passes, "fused")
    path = made.save_recipe(tmp_path / "recipe.yaml")
    torch.save(inputs, tmp_path / "inputs.pt")
    code = """
import sys, torch, fisopt
from fisopt import ModelSpec
from tests import plain_dit
model = plain_dit.build(plain_dit.FORMS["fused"])
inputs = torch.load(sys.argv[1] + "/inputs.pt")
spec = ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))
made = fisopt.optimize(
    model, example_inputs=inputs, spec=spec, backend="eager", recipe=sys.argv[1] + "/recipe.yaml"
)
torch.save(made(**inputs)["video"], sys.argv[1] + "/output.pt")
print(fisopt.format_graph(made.program(inputs)))
"""
    text = process(code, str(tmp_path), fisopt=True)
    assert text == fisopt.format_graph(made.program(inputs)) + "\n"
    assert torch.equal(torch.load(tmp_path / "output.pt"), made(**inputs)["video"])
    assert path.is_file()


def test_a_recipe_in_the_model_s_config(tmp_path: Path) -> None:
    original = zoo()["wan"].model
    recipe = Recipe.of(original, [FrameInterleave(stride=3), TokenReduction(schedule=SCHEDULE)])
    copy = WanTransformer3DModel.from_config(original.config).eval()
    copy.register_to_config(fisopt=recipe.plain())
    copy.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert fisopt.optimize(loaded, recipe="config").passes == recipe.passes
    with pytest.raises(RecipeError, match=r"WanTransformer3DModel has no entry 'fisopt'"):
        fisopt.optimize(original, recipe="config")


def test_either_passes_or_a_recipe() -> None:
    recipe = Recipe.of(zoo()["wan"].model, [])
    with pytest.raises(ValueError, match="either passes or a recipe"):
        fisopt.optimize(zoo()["wan"].model, [FrameInterleave()], recipe=recipe)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    wan, ltx = zoo()["wan"].model, zoo()["ltx"].model
    path = Recipe.of(wan, []).save(tmp_path / "r.yaml")
    with pytest.raises(RecipeError) as error:
        fisopt.optimize(ltx, recipe=path)
    assert "r.yaml is for a WanTransformer3DModel" in str(error.value)
    assert "this is a LTXVideoTransformer3DModel" in str(error.value)
    layers = wan.config.num_layers
    other = WanTransformer3DModel.from_config({**wan.config, "num_layers": layers + 1}).eval()
    with pytest.raises(RecipeError, match=f"num_layers={layers} there and {layers + 1} here"):
        fisopt.optimize(other, recipe=path)


def test_a_model_without_configuration_is_named_by_few_shapes(tmp_path: Path) -> None:
    def blocks(*widths: int) -> nn.Module:
        layers = (nn.Sequential(nn.Linear(4, w), nn.Linear(w, 4)) for w in widths)
        return nn.ModuleDict({"blocks": nn.ModuleList(layers), "head": nn.Linear(4, 2)})

    held = Identity.of(blocks(8, 8, 6)).config
    assert held["blocks.*.0.weight"] == "2 of 8x4, 1 of 6x4"
    assert held["head.bias"] == "1 of 2"
    assert len(held) == 6
    path = Recipe.of(blocks(8, 8, 6), []).save(tmp_path / "r.yaml")
    said = r"blocks.*.0.bias='2 of 8, 1 of 6' there and '1 of 8, 1 of 6, 1 of 8' here"
    with pytest.raises(RecipeError, match=re.escape(said)):
        Recipe.read(path, blocks(8, 6, 8))


def edited(change: Callable[[dict[str, Any]], Any], tmp_path: Path, *passes: Pass) -> Path:
    path = Recipe.of(model(), passes).save(tmp_path / "recipe.yaml")
    said = yaml.safe_load(path.read_text())
    change(said)
    path.write_text(yaml.safe_dump(said))
    return path


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda s: s.update(fisopt_recipe=7), "recipe of form 7, written by fisopt"),
    "no such form": (lambda s: s.update(fisopt_recipe=0), "recipe of form 0, written by fisopt"),
    "no form": (lambda s: s.pop("fisopt_recipe"), "is no recipe: got"),
    "kernels": (lambda s: s.update(kernels={"linear": "fp4"}), "linear must be one of"),
    "other kernels": (
        lambda s: s.update(kernels={"norm": "fp8"}),
        "wanted them by linear, attention",
    ),
    "more": (lambda s: s.update(code="import os"), "wanted {fisopt_recipe, model"),
    "passes": (lambda s: s.update(passes="fis-a"), "wanted {fisopt_recipe, model"),
    "versions": (lambda s: s.update(versions=3), "got versions=3"),
    "model": (lambda s: s.update(model="wan"), "got model='wan'"),
    "config": (lambda s: s["model"].update(config=3), "got config=3"),
    "keys": (lambda s: s["model"]["config"].update({1: 2}), "config is not of plain values"),
    "date": (
        lambda s: s["model"]["config"].update(x=date(2026, 1, 1)),
        "config is not of plain values",
    ),
    "hash": (lambda s: s["model"]["config"].update(x=1), "the file was edited"),
    "pass": (lambda s: s["passes"].append("x"), "got pass 'x'"),
    "unknown": (
        lambda s: s["passes"][0].update(name="FrameInterleaved"),
        "'FrameInterleaved' is not known here; did you mean FrameInterleave",
    ),
    "name": (lambda s: s["passes"][0].update(name=["a"]), "pass ['a'] is not known here"),
    "imported": (lambda s: s["passes"][0].update(name="os.system"), "a recipe imports nothing"),
    "options": (lambda s: s["passes"][0].update(options=[1]), "wanted them by name"),
    "option": (lambda s: s["passes"][0]["options"].update(strid=2), "rejects its options"),
    "value": (lambda s: s["passes"][0]["options"].update(stride=0), "rejects its options"),
    "mask": (lambda s: s["passes"][1]["options"].update(mask={"mask": "X"}), "is no mask"),
    "kind": (lambda s: s["passes"][1]["options"].update(table={"mask_table": 3}), "wanted {sha256"),
    "away": (
        lambda s: s["passes"][1]["options"]["table"]["mask_table"].update(file="../t.json"),
        "wanted the name of a file in the folder",
    ),
    "missing": (
        lambda s: s["passes"][1]["options"]["table"]["mask_table"].update(file="t.json"),
        "t.json, which cannot be read",
    ),
    "content": (
        lambda s: s["passes"][1]["options"]["table"]["mask_table"].update(sha256="0" * 64),
        "has other content than the recipe",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_malformed(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    path = edited(change, tmp_path, FrameInterleave(), PASSES["table"])
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    assert message in str(error.value)


def test_a_missing_schedule_file(tmp_path: Path) -> None:
    path = with_files(tmp_path)
    (tmp_path / "r.schedule.yaml").unlink()
    with pytest.raises(RecipeError, match=r"needs the schedule .*r.schedule.yaml"):
        Recipe.load(path)


@pytest.mark.parametrize("name", ["r.schedule.yaml", "r.schedule.safetensors"])
def test_a_broken_schedule_file(name: str, tmp_path: Path) -> None:
    path = with_files(tmp_path)
    (tmp_path / name).write_text("- 1")
    with pytest.raises(RecipeError, match=rf"r.yaml: .*{name} is no"):
        Recipe.load(path)


@pytest.mark.parametrize(
    "text",
    [
        *("!!python/object/apply:os.system ['touch ran']", "a: [", "- 1", "\x00", "[" * 5000),
        "{fisopt_recipe: 1, versions: {}, model: {class: M, config: {}, config_sha256: "
        f"{digest({})}}}, passes: [{{name: FrameInterleave, options: {{stride: &a [*a]}}}}]}}",
    ],
    ids=["object", "open", "list", "null", "deep", "endless"],
)
def test_nothing_is_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="is no recipe"):
        Recipe.load(path)
    assert not (tmp_path / "ran").exists()


def test_what_a_recipe_cannot_say() -> None:
    rule = Rule("r", pattern=lambda x: x, replacement=lambda x: x, where=lambda _: True)
    with pytest.raises(RecipeError, match="option rules of RulePass cannot be part of a recipe"):
        Recipe.of(model(), [RulePass((rule,))]).plain()


def test_a_path_that_exists(tmp_path: Path) -> None:
    recipe = Recipe.of(model(), [])
    path = recipe.save(tmp_path / "r.yaml")
    with pytest.raises(fisopt.ExportError, match="exists"):
        recipe.save(path)
    assert recipe.save(path, force=True) == path


def test_names_of_passes() -> None:
    known = known_passes()
    assert known["FrameInterleave"] is FrameInterleave
    assert known[f"{Mine.__module__}.Mine"] is Mine
    assert "Pass" not in known


def test_identity_ignores_what_is_not_the_model() -> None:
    config = dict(zoo()["wan"].model.config)
    one = Identity("M", {k: v for k, v in config.items() if not k.startswith("_")})
    assert Identity.of(zoo()["wan"].model).sha256 == Identity("W", dict(one.config)).sha256
