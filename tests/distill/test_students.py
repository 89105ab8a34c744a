"""Students: they come nearer to their teacher, and what comes out runs dense too."""

from __future__ import annotations

import copy
import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fisopt import (
    ExportError,
    FileError,
    FrameInterleave,
    InputError,
    OptionError,
    Recipe,
    RecipeError,
)
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.distill import Student, Supplied, Training, consistency, prepare, prepared, sparse
from fisopt.distill.conditions import record
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.path import sampled, walk, walked
from fisopt.distill.prepared import FILE
from fisopt.models.testbed import TestbedPipeline, build_pipeline, build_transformer
from tests.distill.conftest import PROMPTS, SIZE, tiny
from tests.standins import wan22

TRAINING = Training(steps=12, batch=2, rate=2e-3, warmup=2, average=0.5)
SUPPLIED = Supplied(reuse=2, kept=2)
SHORT = {"training": TRAINING, "supplied": SUPPLIED, "arguments": SIZE}
ONE = {**SHORT, "training": replace(TRAINING, steps=1)}
PASSES = [FrameInterleave(2, blocks=":", steps=":1")]


def clips(pipe: TestbedPipeline, model: Any, steps: int, guidance: float) -> Tensor:
    noise = torch.randn(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(9))
    other = build_pipeline(model)
    other.set_progress_bar_config(disable=True)
    made = other(
        PROMPTS,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
        **SIZE,
    )
    return made.frames


@pytest.fixture(scope="module")
def few(pipe: TestbedPipeline) -> Student:
    return consistency(pipe, PROMPTS, steps=2, teacher_steps=8, **SHORT)


def test_few_steps_without_guidance_come_nearer(pipe: TestbedPipeline, few: Student) -> None:
    teacher = pipe.transformer
    assert (few.steps, few.guidance, few.passes) == (2, 1.0, ())
    want = clips(pipe, teacher, 8, 2.0)
    before = (clips(pipe, teacher, 2, 1.0) - want).norm()
    after = (clips(pipe, few.model, 2, 1.0) - want).norm()
    assert after < 0.9 * before
    losses = [point["loss"] for point in few.curve]
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_the_teacher_is_as_it_was(pipe: TestbedPipeline, few: Student) -> None:
    assert few.model is not pipe.transformer
    assert not any(p.requires_grad for p in pipe.transformer.parameters())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(few.model.parameters(), pipe.transformer.parameters(), strict=True)
    )


def test_a_sparse_student_comes_nearer(pipe: TestbedPipeline, tmp_path: Path) -> None:
    teacher = pipe.transformer
    training = replace(TRAINING, steps=30)
    thin = sparse(pipe, PROMPTS, PASSES, steps=2, **{**SHORT, "training": training})
    assert (thin.guidance, thin.passes) == (2.0, tuple(PASSES))
    thin.save(tmp_path / "thin")
    assert Recipe.load(tmp_path / "thin" / "recipe.yaml").passes == thin.passes
    assert "optimize(model, recipe=" in (tmp_path / "thin" / "README.md").read_text()
    found, levels = record(pipe, teacher, PROMPTS, 2, SIZE)
    noise, rows = (
        torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(9)),
        torch.arange(2),
    )
    want = sampled(Denoiser(teacher, levels, 2.0), noise, found, rows)

    def distance() -> float:
        return float((sampled(Denoiser(thin.runs, levels, 2.0), noise, found, rows) - want).norm())

    after = distance()
    thin.model.load_state_dict(teacher.state_dict())
    assert after < 0.9 * distance()
    path = walked(Denoiser(teacher, levels, 2.0), noise, found, rows, 1)
    own = torch.zeros(2, dtype=torch.bool)
    first, rest = walk(Denoiser(thin.runs, levels, 2.0), path, found, own)
    assert float(rest) < 1e-5 < 1e-3 < float(first)  # the passes end with the first step


def test_resumed_equals_uninterrupted(pipe: TestbedPipeline, few: Student, tmp_path: Path) -> None:
    """Also where the state was left between two batches of paths."""

    class KilledError(Exception):
        pass

    def kill(trainer: Any) -> None:
        if trainer.step == 5:
            raise KilledError

    run = {**SHORT, "steps": 2, "teacher_steps": 8, "folder": tmp_path, "save_every": 3}
    with pytest.raises(KilledError):
        consistency(pipe, PROMPTS, **run, seen=kill)
    again = consistency(pipe, PROMPTS, **run)
    for (name, got), want in zip(again.weights.items(), few.weights.values(), strict=True):
        assert torch.equal(got, want), name
    assert [p["loss"] for p in again.curve] == [p["loss"] for p in few.curve]


def test_an_interrupt_while_the_weights_change(
    pipe: TestbedPipeline, few: Student, tmp_path: Path, monkeypatch: Any
) -> None:
    """What is half done is not saved: the run goes on from the last whole state."""
    run = {**SHORT, "steps": 2, "teacher_steps": 8, "folder": tmp_path, "save_every": 3}
    real, calls = torch.optim.AdamW.step, iter(range(100))

    def interrupted(self: Any) -> None:
        real(self)
        if next(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            consistency(pipe, PROMPTS, **run)
    assert torch.load(tmp_path / "state.pt")["step"] == 3
    again = consistency(pipe, PROMPTS, **run)
    for (name, got), want in zip(again.weights.items(), few.weights.values(), strict=True):
        assert torch.equal(got, want), name


@pytest.fixture(scope="module")
def left(pipe: TestbedPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the state of a run."""
    folder = tmp_path_factory.mktemp("left")
    consistency(pipe, PROMPTS, steps=2, teacher_steps=4, folder=folder, **ONE)
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_steps": 8}, "hops: there 2, here 4"),
        ({"guidance": 3.0}, "teacher_guidance: there 2, here 3"),
        ({"passes": PASSES}, r"passes: there \[\], here \[FrameInterleave"),
        ({"supplied": Supplied(through=True)}, "supplied: there .*through=False.*through=True"),
        (
            {"arguments": {**SIZE, "negative_prompt": PROMPTS[1]}},
            "arguments: there .*negative_prompt",
        ),
        ({"lora": 2}, "lora: there None, here 2"),
        ({"latents": torch.zeros(2, 3, 5, 32, 32)}, "latents: there None, here float32"),
    ],
)
def test_a_folder_of_another_run(
    pipe: TestbedPipeline, left: Path, changed: dict[str, Any], message: str
) -> None:
    """The student of another run would come back as if it were this one's."""
    run = {**ONE, "steps": 2, "teacher_steps": 4, "folder": left, **changed}
    with pytest.raises(InputError, match=rf"state\.pt is the state of another run: .*{message}"):
        consistency(pipe, PROMPTS, **run)


def test_a_folder_of_other_prompts_levels_weights_or_task(
    pipe: TestbedPipeline, left: Path
) -> None:
    run = {**ONE, "steps": 2, "folder": left}
    with pytest.raises(InputError, match=r"prompts: there 2, .*, here 1, "):
        consistency(pipe, PROMPTS[:1], teacher_steps=4, **run)
    with pytest.raises(InputError, match=r"hops: .*passes: there \[\], here \[FrameInterleave"):
        sparse(pipe, PROMPTS, PASSES, **run)
    other = tiny()
    other.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    other.transformer.proj_out.bias.data.add_(1)
    with pytest.raises(InputError, match=r"run: levels: there .*; teacher: there \S+, here \S+; c"):
        consistency(other, PROMPTS, teacher_steps=4, **run)
    assert len(consistency(pipe, PROMPTS, teacher_steps=4, **run).curve) == 1


def test_what_is_saved_is_what_diffusers_loads(few: Student, tmp_path: Path) -> None:
    folder = few.save(tmp_path / "few")
    loaded = type(few.model).from_pretrained(folder)
    for name, got in loaded.named_parameters():
        assert torch.equal(got, few.weights[name]), name
    facts = json.loads((folder / "distilled.json").read_text())
    assert (facts["num_inference_steps"], facts["guidance_scale"]) == (2, 1.0)
    assert facts["trained"]["step"] == 12
    with pytest.raises(ExportError, match="exists"):
        few.save(folder)
    few.save(folder, force=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds other things, mine.txt"):
        few.save(folder, force=True)


def test_an_adapter_is_what_diffusers_loads(pipe: TestbedPipeline, tmp_path: Path) -> None:
    run = {**SHORT, "training": replace(TRAINING, rate=2e-2)}
    made = consistency(pipe, PROMPTS, steps=2, teacher_steps=4, lora=4, **run)
    losses = [point["loss"] for point in made.curve]
    assert sum(losses[-3:]) < sum(losses[:3])
    folder = made.save(tmp_path / "lora")
    assert (folder / "pytorch_lora_weights.safetensors").stat().st_size < 2**17
    plain = copy.deepcopy(pipe.transformer)
    plain.load_lora_adapter(folder, use_safetensors=True)
    want = clips(pipe, made.model, 2, 1.0)
    torch.testing.assert_close(clips(pipe, plain, 2, 1.0), want, rtol=1e-4, atol=1e-5)
    plain.disable_adapters()
    torch.testing.assert_close(clips(pipe, plain, 2, 1.0), clips(pipe, pipe.transformer, 2, 1.0))
    assert not torch.allclose(clips(pipe, plain, 2, 1.0), want)


def test_an_adapter_begins_at_the_seed(pipe: TestbedPipeline) -> None:
    """Whatever torch's own generator holds."""
    run = {**ONE, "steps": 2, "teacher_steps": 4, "lora": 2}
    torch.manual_seed(1)
    one = consistency(pipe, PROMPTS, **run).weights
    torch.manual_seed(2)
    two = consistency(pipe, PROMPTS, **run).weights
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    run["training"] = replace(ONE["training"], seed=1)
    other = consistency(pipe, PROMPTS, **run).weights
    starts = [name for name in one if "lora_A" in name]
    assert starts
    assert not any(torch.allclose(one[name], other[name], atol=1e-3) for name in starts)


def test_weights_of_few_bits_train_by_adapters(tmp_path: Path) -> None:
    half = tiny()
    half.to(torch.bfloat16)
    run = {**SHORT, "training": replace(TRAINING, rate=2e-2), "steps": 2, "guidance": 1.0}
    with pytest.raises(InputError, match=r"of torch\.bfloat16, wanted float32: .* or train adap"):
        sparse(half, PROMPTS, PASSES, **run)
    half.to(torch.float16)
    with pytest.raises(InputError, match=r"of torch\.float16, .* call \.to\(torch\.bfloat16\)"):
        sparse(half, PROMPTS, PASSES, lora=4, **run)
    half.to(torch.bfloat16)
    made = sparse(half, PROMPTS, PASSES, lora=4, **run)
    learnt = {n: v for n, v in made.weights.items() if "lora" in n}
    assert {v.dtype for v in learnt.values()} == {torch.float32}
    assert any("lora_B" in n and float(v.abs().max()) > 1e-3 for n, v in learnt.items())
    assert (made.save(tmp_path / "lora") / "pytorch_lora_weights.safetensors").is_file()
    half.transformer.float()
    run["training"] = replace(TRAINING, steps=2, precision=torch.bfloat16)
    full = sparse(half, PROMPTS, PASSES, **run)
    assert {v.dtype for v in full.weights.values()} == {torch.float32}


def test_checkpoints_change_nothing(pipe: TestbedPipeline, few: Student) -> None:
    training = replace(TRAINING, checkpoints=True)
    run = {**SHORT, "training": training, "steps": 2, "teacher_steps": 8}
    made = consistency(pipe, PROMPTS, **run)
    assert not made.model.is_gradient_checkpointing
    for (name, got), want in zip(made.weights.items(), few.weights.values(), strict=True):
        torch.testing.assert_close(got, want, msg=name)


def test_what_was_prepared_needs_no_prompts(
    pipe: TestbedPipeline, few: Student, tmp_path: Path
) -> None:
    arguments = {**SIZE, "guidance_scale": 2.0}
    folder = prepare(pipe, PROMPTS, tmp_path / "data", steps=2, arguments=arguments)
    run = {**SHORT, "arguments": {}, "teacher_steps": 8}
    made = consistency(pipe, folder, steps=2, **run)
    for (name, got), want in zip(made.weights.items(), few.weights.values(), strict=True):
        assert torch.equal(got, want), name
    with pytest.raises(InputError, match="was prepared for 2 steps, got steps=4"):
        consistency(pipe, folder, steps=4, **run)
    other = build_pipeline(build_transformer(num_layers=1))
    message = r"for WanTransformer3DModel with latents \[3, 5, 32, 32\], .* differ in .*num_layers"
    with pytest.raises(InputError, match=message):
        consistency(other, folder, steps=2, **run)
    (folder / "conditions.safetensors").write_bytes(b"foreign")
    with pytest.raises(InputError, match=r"is not what fisopt\.distill\.prepare writes"):
        consistency(pipe, folder, steps=2, **run)


def test_what_was_prepared_otherwise(pipe: TestbedPipeline, tmp_path: Path) -> None:
    folder = prepare(pipe, PROMPTS, tmp_path / "data", steps=2, arguments=SIZE)
    run = {**ONE, "steps": 2, "teacher_steps": 4}
    assert len(consistency(pipe, folder, **run).curve) == 1
    with pytest.raises(InputError, match="prepared otherwise: num_frames: there 5, here 9; prep"):
        consistency(pipe, folder, **{**run, "arguments": {"num_frames": 9}})
    with pytest.raises(InputError, match="prepared otherwise: guidance_scale: there 2, here 3"):
        consistency(pipe, folder, guidance=3.0, **run)
    with pytest.raises(InputError, match="prepared otherwise: fps: there none, here 8"):
        consistency(pipe, folder, **{**run, "arguments": {"fps": 8}})
    other = tiny()
    other.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    with pytest.raises(InputError, match=r"prepared otherwise: .*shift: there \S+, here 9"):
        consistency(other, folder, **run)


def test_transformers_that_take_turns(tmp_path: Path) -> None:
    """Each would be trained on noise levels that it never sees."""
    two = wan22()
    run: dict[str, Any] = {"training": ONE["training"], "guidance": 1.0, "steps": 2}
    message = r"of Wan runs on one side of boundary_ratio=0\.8 only, .* wanted a pipeline of one"
    for component in ("transformer", "transformer_2"):
        with pytest.raises(InputError, match=f"distill: {component} {message}"):
            consistency(two, ["a"], component=component, teacher_steps=2, **run)
    with pytest.raises(InputError, match=message):
        prepare(two, ["a"], tmp_path, steps=2, component="transformer")


def test_a_full_disk(pipe: TestbedPipeline, tmp_path: Path, monkeypatch: Any) -> None:
    """While the state is saved: the error says so, and the state that was there stays."""
    run = {**SHORT, "steps": 2, "teacher_steps": 4, "folder": tmp_path, "save_every": 2}
    real = torch.save

    def full(state: dict[str, Any], path: Path) -> None:
        if state["step"] > 4:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match=r"state\.pt could not be written: No space left"):
        consistency(pipe, PROMPTS, **run)
    assert torch.load(tmp_path / "state.pt")["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_full_disk_under_what_is_made(
    pipe: TestbedPipeline, few: Student, tmp_path: Path, monkeypatch: Any
) -> None:
    """Under a student, and under what is prepared: what was there before is there still."""
    folder, data = few.save(tmp_path / "few"), tmp_path / "data"
    prepare(pipe, PROMPTS, data, steps=2, arguments=SIZE)
    before = [path.read_bytes() for path in (folder / "README.md", data / FILE)]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(few.model), "save_pretrained", full)
    monkeypatch.setattr(prepared, "save_file", full)
    with pytest.raises(ExportError, match="few could not be written: No space left"):
        few.save(folder, force=True)
    with pytest.raises(FileError, match=r"conditions\.safetensors could not be written: No space"):
        prepare(pipe, PROMPTS, data, steps=2, arguments=SIZE)
    assert [path.read_bytes() for path in (folder / "README.md", data / FILE)] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "few"]


def test_clips_to_learn_from(pipe: TestbedPipeline) -> None:
    latents = torch.randn(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) / 4
    made = consistency(pipe, PROMPTS, steps=2, teacher_steps=4, latents=latents, **SHORT)
    losses = [point["loss"] for point in made.curve]
    assert losses[-1] < losses[0]
    quick = replace(TRAINING, steps=40, rate=1e-3)
    run = {**SHORT, "training": quick, "latents": latents, "teacher_steps": 8}
    jumps = [point["loss"] for point in consistency(pipe, PROMPTS, steps=2, lead=1, **run).curve]
    assert sum(jumps[-10:]) < 0.95 * sum(jumps[:10])
    message = r"got latents \[2, 3, 4, 32, 32\], wanted \[2, 3, 5, 32, 32\]: .* WanTransformer3D"
    with pytest.raises(InputError, match=message):
        consistency(pipe, PROMPTS, steps=2, teacher_steps=4, latents=latents[:, :, 1:], **SHORT)


def test_segments_that_do_not_divide(pipe: TestbedPipeline) -> None:
    with pytest.raises(OptionError, match=r"4 segments do not divide .* 50 steps; .*=48"):
        consistency(pipe, PROMPTS, steps=4, teacher_steps=50)


def test_a_lead_without_clips(pipe: TestbedPipeline) -> None:
    with pytest.raises(OptionError, match="lead needs latents"):
        consistency(pipe, PROMPTS, lead=1)


def test_no_pass(pipe: TestbedPipeline) -> None:
    with pytest.raises(OptionError, match="sparse wants passes, got none"):
        sparse(pipe, PROMPTS, [])


def test_a_pass_without_gradient(pipe: TestbedPipeline) -> None:
    class Rounding(FrameInterleave):
        differentiable = False

    with pytest.raises(InputError, match="Rounding has no gradient"):
        sparse(pipe, PROMPTS, [Rounding(2)], steps=2, **SHORT)


def test_a_recipe_is_of_this_model_and_is_kept_whole(pipe: TestbedPipeline) -> None:
    """Its attention, and what it was tuned for, are the student's too."""
    teacher = pipe.transformer
    tuned = {"target": "2x", "steps": 2, "speed_up": 2.0, "psnr": 30.0}
    recipe = Recipe.of(teacher, PASSES, KernelOptions(attention="efficient"), tuned)
    short = {**SHORT, "training": replace(TRAINING, steps=1)}
    thin = sparse(pipe, PROMPTS, recipe, steps=2, **short)
    assert thin.recipe == recipe
    assert thin.runs.recipe.kernels == recipe.kernels
    other = Recipe.of(build_transformer(num_layers=3, ffn_dim=64), PASSES)
    with pytest.raises(RecipeError, match="num_layers=3 there and 2 here"):
        sparse(pipe, PROMPTS, other, steps=2, **short)
    with pytest.raises(RecipeError, match="num_layers=3 there and 2 here"):
        consistency(pipe, PROMPTS, passes=other, **short)


def test_a_recipe_without_gradient(pipe: TestbedPipeline) -> None:
    recipe = Recipe.of(pipe.transformer, PASSES, KernelOptions(linear="fp8-simulated"))
    with pytest.raises(InputError, match=r"linear='fp8-simulated' has no gradient"):
        sparse(pipe, PROMPTS, recipe, steps=2, **SHORT)


def test_guidance_out_of_range(pipe: TestbedPipeline) -> None:
    with pytest.raises(OptionError, match=r"guidance: got 0.5, wanted a number of 1 or more"):
        consistency(pipe, PROMPTS, guidance=0.5)
