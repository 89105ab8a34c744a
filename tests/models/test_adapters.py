"""Adapters: published models, example inputs, the finding of families, and the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from fisopt import models
from fisopt.errors import InputError
from fisopt.models import registry
from fisopt.models.family import numbered_size
from fisopt.models.mochi import MaskedAttention
from tests.zoo import Case, cases, forms, zoo

# name: (parameters in billions, token grid at the published size)
PUBLISHED: dict[str, tuple[float, tuple[int, int, int]]] = {
    "allegro": (2.77, (22, 45, 80)),
    "anyflow-1.3b": (1.42, (21, 30, 52)),
    "anyflow-14b": (14.32, (21, 30, 52)),
    "chronoedit-14b": (16.39, (8, 45, 80)),
    "cogvideox-2b": (1.69, (13, 30, 45)),
    "cogvideox-5b": (5.57, (13, 30, 45)),
    "cosmos-1.0-7b": (7.24, (16, 44, 80)),
    "cosmos-predict2-14b": (14.27, (24, 44, 80)),
    "cosmos-predict2-2b": (1.96, (24, 44, 80)),
    "cosmos-predict2.5-2b": (2.06, (24, 44, 80)),
    "easyanimate-5.1-12b": (11.80, (13, 32, 32)),
    "framepack-i2v": (12.87, (9, 40, 40)),
    "helios": (14.31, (9, 24, 40)),
    "hunyuanvideo": (12.82, (33, 45, 80)),
    "hunyuanvideo-1.5": (8.33, (31, 45, 80)),
    "hunyuanvideo-1.5-480p": (8.33, (31, 30, 53)),
    "hunyuanvideo-1.5-i2v": (8.33, (31, 45, 80)),
    "hunyuanvideo-1.5-i2v-480p": (8.33, (31, 30, 53)),
    "kandinsky-5-lite": (2.01, (31, 32, 48)),
    "kandinsky-5-pro": (19.31, (31, 32, 48)),
    "kandinsky-6": (48.19, (31, 30, 54)),
    "latte-1": (1.06, (16, 32, 32)),
    "ltx-2": (18.88, (16, 16, 24)),
    "ltx-video": (1.92, (21, 16, 22)),
    "minimax-h3": (33.12, (37, 22, 40)),
    "mochi-1": (10.03, (15, 30, 53)),
    "motif-video": (12.51, (31, 46, 80)),
    "sana-video-2b-480p": (2.06, (21, 30, 52)),
    "skyreels-v2-14b-540p": (14.29, (25, 34, 60)),
    "skyreels-v2-14b-720p": (14.29, (31, 45, 80)),
    "skyreels-v2-df-1.3b-540p": (1.44, (25, 34, 60)),
    "wan2.1-1.3b": (1.42, (21, 30, 52)),
    "wan2.1-14b": (14.29, (21, 45, 80)),
    "wan2.1-flf2v-14b": (16.40, (21, 45, 80)),
    "wan2.1-i2v-14b-480p": (16.39, (21, 30, 52)),
    "wan2.1-i2v-14b-720p": (16.39, (21, 45, 80)),
    "wan2.1-vace-1.3b": (2.15, (21, 30, 52)),
    "wan2.1-vace-14b": (17.34, (21, 45, 80)),
    "wan2.2-a14b": (14.29, (21, 45, 80)),
    "wan2.2-animate-14b": (17.27, (21, 45, 80)),
    "wan2.2-i2v-a14b": (14.29, (21, 45, 80)),
    "wan2.2-ti2v-5b": (5.00, (31, 22, 40)),
}
BLOCKS = {
    "cogvideox-5b": 42,
    "hunyuanvideo": 60,
    "hunyuanvideo-1.5": 54,
    "latte-1": 56,
    "mochi-1": 48,
    "wan2.2-a14b": 40,
}


REORDERED = {"framepack", "minimax_h3", "mochi"}
"""Forms whose tensor form sums in another order, such as padded keys as zeros."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blocks_of(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    return [
        name
        for name in names
        for pattern in patterns
        if name.count(".") == pattern.count(".") and name.startswith(pattern.removesuffix("*"))
    ]


def run(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs)[0]
    return output


def test_every_published_model_is_checked_here() -> None:
    assert set(models.published()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model_on_meta(name: str) -> None:
    parameters, grid = PUBLISHED[name]
    model = models.build(name)
    inputs = models.example_inputs(name)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters * 1e9, rel=0.005)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    tensors = [*model.parameters(), *tree_leaves(inputs)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert models.spec_of(model).grid_of(inputs) == grid
    assert models.find_family(name) is models.find_family(model)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_count(name: str) -> None:
    model = models.build(name)
    assert len(blocks_of(model, models.spec_of(model).blocks)) == BLOCKS[name]


@pytest.mark.parametrize(
    "name", ["wan2.2-ti2v-5b", "hunyuanvideo-1.5-i2v", "cogvideox-5b", "mochi-1"]
)
def test_forward_at_the_published_size_on_meta(name: str) -> None:
    """The arguments fit the model, text lengths included; only prologues that ask data cannot."""
    model = models.build(name, dtype=torch.bfloat16, num_layers=1)
    prepare = models.spec_of(model).prepare
    inputs = models.example_inputs(model)
    output = run(prepare(model) if prepare else model, inputs)
    assert output.shape[-2:] == inputs["hidden_states"].shape[-2:]
    assert output.dtype == torch.bfloat16


def test_ti2v_has_a_timestep_per_token() -> None:
    inputs = models.example_inputs("wan2.2-ti2v-5b", device="cpu", num_frames=5)
    timestep = inputs["timestep"]
    assert timestep.shape == (1, 2 * 22 * 40)
    assert not timestep[:, : 22 * 40].any()
    assert timestep[:, 22 * 40 :].unique().numel() == 1


@pytest.mark.parametrize("name", forms())
def test_tiny_model_runs(name: str) -> None:
    case = forms()[name]
    for frames, batch in ((case.least, 1), (2, 2), (5, 1), (33, 2)):
        model, inputs = case.model_for(frames), case.inputs(frames, 2, 3, batch)
        output = run(model, inputs)
        assert case.spec.grid_of(inputs) == (frames, 2, 3)
        assert output.isfinite().all()
        assert output.std() > 0.1


@pytest.mark.parametrize("name", forms())
def test_every_block_matters(name: str) -> None:
    """A test that compares outputs of tiny models can see an error in any block."""
    case = forms()[name]
    model, inputs = case.model, case.inputs(5, 2, 3)
    dense = run(model, inputs)
    for path in blocks_of(model, case.spec.blocks):
        block = model.get_submodule(path)
        with _noise_before(block):
            assert (run(model, inputs) - dense).abs().max() > 1e-3, path


class _noise_before:  # noqa: N801
    """Add noise to every tensor that enters a block with the shape of its hidden states."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __enter__(self) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            generator = torch.Generator().manual_seed(0)
            video = args[0] if args else kwargs["hidden_states"]

            def noisy(x: Any) -> Any:
                if x.shape != video.shape:
                    return x
                return x + 0.1 * torch.randn(x.shape, generator=generator)

            return tree_map_only(torch.Tensor, noisy, (args, kwargs))

        self.handle = self.block.register_forward_pre_hook(hook, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_mochi_without_text() -> None:
    """An empty prompt is masked entirely."""
    case = zoo()["mochi"]
    inputs = case.inputs(3, 2, 2, batch=2)
    inputs["encoder_attention_mask"][1] = False
    torch.testing.assert_close(
        run(prepared(case, case.model), inputs), run(case.model, inputs), rtol=0, atol=1e-6
    )


def prepared(case: Case, model: nn.Module) -> nn.Module:
    prepare = case.spec.prepare
    result: nn.Module = prepare(model) if prepare else model
    return result


@pytest.mark.parametrize("name", [name for name, case in forms().items() if case.spec.prepare])
@pytest.mark.parametrize("frames", [1, 2, 5, 33])
def test_prepared_equals_the_original(name: str, frames: int) -> None:
    case = forms()[name]
    frames = max(frames, case.least)
    model, inputs = case.model_for(frames), case.inputs(frames, 3, 2, batch=2)
    atol = 1e-6 if name in REORDERED else 0
    torch.testing.assert_close(
        run(prepared(case, model), inputs), run(model, inputs), rtol=0, atol=atol
    )


@pytest.mark.parametrize("name", [name for name, case in forms().items() if case.spec.prepare])
def test_prepared_shares_parameters(name: str) -> None:
    case = forms()[name]
    before = dict(case.model.named_modules())
    model = prepared(case, case.model)
    theirs = dict(case.model.named_parameters())
    assert dict(case.model.named_modules()) == before
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] for key in ours)
    assert blocks_of(model, case.spec.blocks) == blocks_of(case.model, case.spec.blocks)
    for module in case.model.modules():
        assert not isinstance(getattr(module, "processor", None), MaskedAttention)


@cases("wan")
def test_exports_with_a_symbolic_frame_count(case: Case) -> None:
    """By torch alone, which capture does not need: `test_equals_the_model` captures every model."""
    inputs, longer = case.inputs(5, 2, 3), case.inputs(6, 2, 3)
    symbol = torch.export.Dim("frames", min=2, max=1024)

    def dims(value: Any, other: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        steps = [more - less for less, more in zip(value.shape, other.shape, strict=True)]
        return {i: symbol if step == 1 else step * symbol for i, step in enumerate(steps) if step}

    model = prepared(case, case.model_for(5))
    shapes = tree_map(dims, inputs, longer)
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    program = exported.module(check_guards=False)
    for frames in (5, 3):
        inputs = case.inputs(frames, 2, 3)
        expected = run(case.model_for(frames), inputs)
        if "num_frames" in inputs:  # export takes whole numbers for constants; not read
            inputs["num_frames"] = 5
        torch.testing.assert_close(run(program, inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", forms())
def test_same_seed_same_values(name: str) -> None:
    case = forms()[name]
    first, second, other = (tree_leaves(case.inputs(2, 2, 2, seed=seed)) for seed in (0, 0, 1))
    tensors = [i for i, leaf in enumerate(first) if isinstance(leaf, torch.Tensor)]
    assert all(torch.equal(first[i], second[i]) for i in tensors)
    assert not all(torch.equal(first[i], other[i]) for i in tensors)


@pytest.mark.parametrize("name", forms())
def test_meta_inputs_have_the_shapes_of_real_ones(name: str) -> None:
    case = forms()[name]
    family = case.family
    config = family.config(case.config)
    frames, height, width = family.pixel_size(config, (5, 2, 3))
    size: dict[str, Any] = {"height": height, "width": width, "num_frames": frames, "batch": 2}
    real = family.example_inputs(config, **size)
    meta = family.example_inputs(config, **size, device="meta")

    def shape(tensor: torch.Tensor) -> tuple[Any, ...]:
        return (tuple(tensor.shape), tensor.dtype)

    assert tree_map_only(torch.Tensor, shape, real) == tree_map_only(torch.Tensor, shape, meta)


@pytest.mark.parametrize("name", forms())
def test_inputs_of_a_model_follow_its_config(name: str) -> None:
    case = forms()[name]
    frames, height, width = case.family.pixel_size(case.family.config(case.config), (5, 2, 3))
    model = case.model
    inputs = models.example_inputs(model, height, width, frames, dtype=torch.float64)
    assert models.spec_of(model).grid_of(inputs) == (5, 2, 3)
    assert inputs["hidden_states"].dtype == torch.float64
    assert inputs["hidden_states"].device.type == "cpu"


def test_padding_is_real() -> None:
    mask = models.example_inputs("hunyuanvideo", batch=2, device="cpu", num_frames=1)[
        "encoder_attention_mask"
    ]
    lengths = mask.sum(dim=1).tolist()
    assert lengths[0] != lengths[1]
    assert all(0 < length < mask.shape[1] for length in lengths)
    assert mask[0, : int(lengths[0])].all()


def test_context_lengths_can_be_chosen() -> None:
    inputs = models.example_inputs("hunyuanvideo-1.5", context={"text": 20, "image": 9})
    assert inputs["encoder_hidden_states"].shape[1] == 20
    assert inputs["image_embeds"].shape[1] == 9
    assert inputs["encoder_hidden_states_2"].shape[1] == 256


def test_build_takes_config_and_type() -> None:
    model = models.build("wan", dtype=torch.bfloat16, num_layers=2)
    assert len(blocks_of(model, ("blocks.*",))) == 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_published_shape_of_a_model_is_its_own() -> None:
    grids = {
        name: models.spec_of(model).grid_of(models.example_inputs(model))
        for name in ("wan2.2-ti2v-5b", "wan2.1-1.3b", "cogvideox-2b")
        for model in [models.build(name)]
    }
    assert grids == {name: PUBLISHED[name][1] for name in grids}


def test_family_names_and_classes() -> None:
    for name, family in models.families().items():
        assert models.find_family(name) is family
        assert models.find_family(family.transformer) is family
    assert models.find_family("Wan2.2-A14B").name == "wan"


def test_an_adapter_is_one_file() -> None:
    """Each adapter is found without being listed, and is short."""
    folder = Path(registry.__file__).parent
    for name in models.families():
        assert len((folder / f"{name}.py").read_text().splitlines()) < 260


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("wan2.2-a41b", "wan2.2-a14b"), ("hunyuan", "hunyuanvideo"), ("moch", "mochi")],
)
def test_unknown_name(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"unknown model '{name}'.*{nearest}"):
        models.find_family(name)


def test_unknown_class() -> None:
    with pytest.raises(InputError, match=r"no adapter for Linear.*WanTransformer3DModel.*spec="):
        models.find_family(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no adapter for Linear"):
        models.spec_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("wan", {"height": 712}, "height: got 712, wanted a multiple of 16: try 704 or 720"),
        ("wan2.2-ti2v-5b", {"height": 720}, "height: got 720, wanted a multiple of 32"),
        ("wan", {"width": 7}, "width: got 7, wanted a multiple of 16: try 16"),
        ("wan", {"num_frames": 80}, "a multiple of 4 plus 1: try 77 or 81"),
        ("allegro", {"num_frames": 89}, "num_frames: got 89, wanted a multiple of 4: try 88 or 92"),
        ("latte", {"num_frames": 8}, "num_frames: got 8, wanted 16"),
        ("wan", {"height": -16}, "height: got -16, wanted 1 or more"),
        ("wan", {"num_frames": 0}, "frames: got 0, wanted 1 or more"),
        ("wan", {"batch": 0}, "batch: got 0"),
    ],
)
def test_impossible_size(name: str, size: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.example_inputs(name, **size)


def by_rank() -> list[str]:
    """The forms whose grid is read from the sizes of the latents."""
    return [
        name
        for name, case in forms().items()
        if case.family.latent is not numbered_size and case.family.tokens is None
    ]


@pytest.mark.parametrize("name", by_rank())
def test_wrong_rank(name: str) -> None:
    case: Case = forms()[name]
    inputs = case.inputs(5, 2, 2)
    inputs["hidden_states"] = inputs["hidden_states"][0]
    with pytest.raises(InputError, match=r"hidden_states: got shape .* rank 5, \[B, "):
        case.spec.grid_of(inputs)


def test_missing_video() -> None:
    with pytest.raises(InputError, match="hidden_states: got None"):
        zoo()["wan"].spec.grid_of({})
    inputs = zoo()["ltx"].inputs(2, 2, 2)
    del inputs["num_frames"]
    with pytest.raises(InputError, match="num_frames, height, width"):
        zoo()["ltx"].spec.grid_of(inputs)
