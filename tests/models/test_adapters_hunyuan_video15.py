"""The tensor form of HunyuanVideo 1.5 against the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fisopt.errors import InputError
from tests.zoo import zoo

FORMS = ("hunyuan_video15", "hunyuan_video15_i2v")


def prepared(form: str) -> tuple[nn.Module, nn.Module]:
    case = zoo()[form]
    assert case.spec.prepare is not None
    return case.model, case.spec.prepare(case.model)


def outputs(form: str, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    original, tensor_form = prepared(form)
    with torch.no_grad():
        return tensor_form(**inputs)[0], original(**inputs)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_equals_the_original(form: str, batch: int) -> None:
    torch.testing.assert_close(*outputs(form, zoo()[form].inputs(3, 2, 2, batch)), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_any_mask(form: str, seed: int) -> None:
    """Masks with holes, rows of different lengths, a stream with no valid token."""
    inputs = zoo()[form].inputs(2, 2, 3, batch=3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in ("encoder_attention_mask", "encoder_attention_mask_2"):
        mask = (torch.rand(inputs[name].shape, generator=generator) < 0.5).to(inputs[name].dtype)
        mask[:, 0] = 1
        inputs[name] = mask
    inputs["encoder_attention_mask_2"][1] = 0
    torch.testing.assert_close(*outputs(form, inputs), rtol=0, atol=0)


def test_one_row_without_image_is_not_no_image() -> None:
    """The original asks once for the whole batch whether there is an image."""
    inputs = zoo()["hunyuan_video15_i2v"].inputs(2, 2, 2, batch=2)
    inputs["image_embeds"][1] = 0
    torch.testing.assert_close(*outputs("hunyuan_video15_i2v", inputs), rtol=0, atol=0)


def test_one_export_serves_with_and_without_image() -> None:
    case = zoo()["hunyuan_video15_i2v"]
    original, tensor_form = prepared(case.name)
    inputs = case.inputs(2, 2, 2)
    with torch.no_grad():
        exported = torch.export.export(tensor_form, (), inputs, strict=False).module()
        for image in (inputs["image_embeds"], torch.zeros_like(inputs["image_embeds"])):
            inputs["image_embeds"] = image
            torch.testing.assert_close(exported(**inputs)[0], original(**inputs)[0])


def test_shares_parameters_and_paths() -> None:
    original, tensor_form = prepared("hunyuan_video15")
    ours, theirs = dict(tensor_form.named_parameters()), dict(original.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert tensor_form.get_submodule("transformer_blocks.1") is original.transformer_blocks[1]
    assert not tensor_form.training


def test_returns_what_is_asked_for() -> None:
    inputs = zoo()["hunyuan_video15"].inputs(1, 2, 2)
    _, tensor_form = prepared("hunyuan_video15")
    with torch.no_grad():
        by_name = tensor_form(**{**inputs, "return_dict": True}).sample
        torch.testing.assert_close(by_name, tensor_form(**inputs)[0])


@pytest.mark.parametrize("name", ["image_embeds", "encoder_hidden_states_2"])
def test_missing_condition(name: str) -> None:
    inputs = zoo()["hunyuan_video15"].inputs(1, 2, 2)
    del inputs[name]
    with pytest.raises(InputError, match=name):
        prepared("hunyuan_video15")[1](**inputs)
