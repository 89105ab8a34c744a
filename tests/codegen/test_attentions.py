"""Attention of the user's choice: equal to torch's, or left to torch with a reason."""

from __future__ import annotations

import copy
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

import fisopt
from fisopt import FisoptError, LoweringError, ModelSpec, OptimizedModule
from fisopt.codegen.attention_packages import PACKAGES

WIDTH = 16
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "masked": {"masked": True},
    "grouped": {"enable_gqa": True},
}


class Layer(nn.Module):
    """One attention, in a form; four heads."""

    def __init__(self, masked: bool = False, ranks: int = 4, **options: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.masked, self.ranks, self.options = masked, ranks, options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        if self.options.get("enable_gqa"):
            k, v = k[:, ::2], v[:, ::2]
        if self.ranks == 3:
            q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        mask = (x[..., 0] > -1)[:, None, None] if self.masked else None
        out = scaled_dot_product_attention(q, k, v, mask, **self.options)
        out = out.unflatten(0, (-1, 4)) if self.ranks == 3 else out
        return x + out.transpose(1, 2).flatten(2)


class Model(nn.Module):
    """Tokens [B, 2 F, 16] in and out."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(**options) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def built(attention: Any, **form: Any) -> tuple[Model, OptimizedModule]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(**form).eval().requires_grad_(False)
    return model, fisopt.optimize(model, spec=SPEC, backend="eager", attention=attention)


def video() -> Tensor:
    return torch.randn(2, 10, WIDTH, generator=torch.Generator().manual_seed(0))


def equal(model: Model, fast: OptimizedModule) -> str:
    """What the report says of attention, where results are the model's."""
    torch.testing.assert_close(fast(video=video()), model(video()), rtol=1e-5, atol=1e-5)
    return next(str(c) for c in fast.report.variants[-1].choices if c.what == "attention")


def written_out(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None
) -> Tensor:
    """An attention of one's own."""
    heads = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(heads, 1).transpose(-1, -2) * scale
    scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
    return scores.softmax(-1) @ value.repeat_interleave(heads, 1)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_function_runs_every_form(form: dict[str, Any]) -> None:
    calls: list[Any] = []

    def noting(*operands: Any, **options: Any) -> Tensor:
        calls.append(options)
        return written_out(*operands, **options)

    assert "noting" in (said := equal(*built(noting, **form)))
    assert "in 2 of 2 calls (as asked for)" in said
    assert len(calls) == 2
    assert {round(c["scale"], 3) for c in calls} == {form.get("scale", 0.5)}
    assert all((c["mask"] is not None) == ("masked" in form) for c in calls)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_torchs_flash_attention(form: dict[str, Any]) -> None:
    assert "flash in 2 of 2 calls" in equal(*built("flash", **form))


@pytest.mark.parametrize("name", ["cudnn", "efficient", "fa3", "sage"])
def test_what_is_not_there_is_left_to_torch_with_a_reason(name: str) -> None:
    said = equal(*built(name))
    assert f"{name} in 0 of 2 calls (2 by torch's choice: " in said
    assert ("cannot be imported" if name in PACKAGES else "no cpu device has it") in said


@pytest.mark.parametrize("name", [None, "sdpa"])
def test_torchs_choice_changes_nothing(name: str | None) -> None:
    model, fast = built(name)
    assert torch.equal(fast(video=video()), model(video()))
    assert not fast.report.variants[-1].choices


@pytest.mark.parametrize(
    ("form", "reason"),
    [({"is_causal": True}, "causal"), ({"ranks": 3}, "no four dimensions")],
)
def test_forms_that_no_function_is_given(form: dict[str, Any], reason: str) -> None:
    assert reason in equal(*built(written_out, **form))


def test_a_function_that_fails_is_not_used_again() -> None:
    calls = []

    def failing(*operands: Any, **options: Any) -> Tensor:
        calls.append(options)
        raise ValueError("no such head dimension")

    model, fast = built(failing)
    with pytest.warns(RuntimeWarning, match="failing is not used: it fails with ValueError"):
        equal(model, fast)
    equal(model, fast)
    assert len(calls) == 1
    said = "failing is not used: it fails with ValueError: no such head dimension"
    assert said in str(fast.report)
    assert any(said in line for line in fisopt.summary(fast).transformers[0].fallbacks)


def test_a_wrong_result_is_an_error() -> None:
    _, fast = built(lambda query, key, value, scale, mask: value[..., :1])
    with pytest.raises(LoweringError, match=r"returns \(2, 4, 10, 1\).*wanted \(2, 4, 10, 4\)"):
        fast(video=video())


def test_results_in_any_layout_and_no_views_of_operands() -> None:
    model, fast = built(lambda query, key, value, scale, mask: value)
    model.layers[0].qkv.weight.data.zero_()
    want = video() + model.layers[0].qkv.bias[2 * WIDTH :]
    want = want + model.layers[1].qkv(want)[..., 2 * WIDTH :]
    torch.testing.assert_close(fast(video=video()), want)


def test_compiled_it_stays_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model, _ = built(None)
    fast = fisopt.optimize(model, spec=SPEC, attention=written_out)
    assert "written_out in 2 of 2" in equal(model, fast)


def test_a_copy_has_the_same_attention() -> None:
    model, fast = built(written_out)
    assert "written_out" in equal(model, copy.deepcopy(fast))


def test_other_words_are_an_error() -> None:
    with pytest.raises(FisoptError, match=r"attention must be one of.*did you mean flash"):
        built("flsh")


def test_packages_are_called_in_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens_first(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Any:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        out = written_out(*heads_first, scale=softmax_scale, mask=None)
        return out.transpose(1, 2), None

    def sage(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        assert options["tensor_layout"] == "HND"
        assert not options["is_causal"]
        return written_out(q, k, v, scale=options["sm_scale"], mask=None)

    fa3 = SimpleNamespace(flash_attn_func=tokens_first)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fa3)
    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sage))
    for package in PACKAGES.values():
        assert "in 2 of 2" in equal(*built(package.attend, scale=0.3))


def test_what_packages_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    refuses = PACKAGES["fa3"].refuses
    with FakeTensorMode():
        x = torch.empty(1, 2, 3, 64, device="cuda", dtype=torch.bfloat16)
        assert refuses(x, x, x) is None
        assert "takes no mask" in str(refuses(x, x, x, x))
        assert "not torch.float32" in str(refuses(x.float(), x, x))
        assert "256 features" in str(refuses(torch.cat([x] * 5, -1), x, x))
        assert "NVIDIA GPU, not cpu" in str(refuses(torch.empty(1, 2, 3, 64), x, x))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert "not for sm_80" in str(refuses(x, x, x))
