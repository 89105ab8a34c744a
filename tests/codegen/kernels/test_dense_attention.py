"""Every dense attention of a device: results, and the log-sum-exp that merging needs."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from fisopt.codegen.kernels import dense_attention
from fisopt.codegen.kernels.dense_attention import HIDDEN, attend, backends


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [24, 64, 128])
@pytest.mark.parametrize("shared", [1, 2])
def test_every_backend_of_the_device(
    shared: int, width: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of keys that overlap, one key more than blocks have; the first is hidden."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    query = torch.randn(3, 129, 4, width, dtype=dtype).transpose(1, 2)
    memory = torch.randn(2, 400, 4 // shared, width, dtype=dtype)
    key, value = (x.unfold(0, 161, 100).permute(0, 1, 3, 2) for x in memory)
    bias = torch.zeros(3, 1, 1, 176, dtype=dtype)[..., :161].fill_(0.5) if masked else None
    if bias is not None:
        bias[0] = HIDDEN
    k, v = (x.float().repeat_interleave(shared, 1) for x in (key, value))
    scores = query.float() @ k.transpose(-1, -2) * 0.2 + (0 if bias is None else bias)
    tried = backends(query, bias)
    assert tried
    for backend in tried:
        monkeypatch.setattr(dense_attention, "backends", lambda *_, b=backend: [b])
        out, lse = attend(query, key, value, bias, 0.2)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        rows = slice(1, None) if masked else slice(None)
        torch.testing.assert_close(
            out[rows].float(), (scores.softmax(-1) @ v)[rows], rtol=0, atol=tolerance
        )
        torch.testing.assert_close(lse[rows], scores.logsumexp(-1)[rows], rtol=0, atol=tolerance)
        assert out.isfinite().all()
        assert not masked or bool((lse[0] < HIDDEN / 2).all())


H100, A100 = 90, 80


@pytest.mark.parametrize(
    ("architecture", "masked", "width", "cudnn", "wanted"),
    [
        (H100, False, 128, 91900, ["cuDNN", "FlashAttention", "memory-efficient attention"]),
        (A100, False, 128, 91900, ["FlashAttention", "cuDNN", "memory-efficient attention"]),
        (H100, True, 128, 91900, ["cuDNN", "memory-efficient attention"]),
        (H100, False, 256, 91900, ["FlashAttention", "memory-efficient attention"]),
        (H100, False, 128, 91002, ["FlashAttention", "memory-efficient attention"]),
    ],
)
def test_backends_of_a_gpu(
    architecture: int,
    masked: bool,
    width: int,
    cudnn: int,
    wanted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense_attention, "architecture_of", lambda _: architecture)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    query = torch.empty(1, 2, 8, width, device="meta")
    bias = query[..., :8] if masked else None
    assert [backend.name for backend in backends(query, bias)] == wanted
    with sdpa_kernel([SDPBackend.MATH]):
        assert backends(query, bias) == []


def test_each_operator_of_a_gpu_takes_its_arguments() -> None:
    """On fake tensors: layouts, and a log-sum-exp of each query at least."""
    with FakeTensorMode(), torch.device("cuda"):
        query, bias = torch.empty(3, 37, 4, 64).half().transpose(1, 2), torch.empty(3, 1, 1, 37)
        for backend in (dense_attention._CUDNN, dense_attention._FLASH, dense_attention._EFFICIENT):
            for added in (None, bias.half())[: 1 if backend is dense_attention._FLASH else 2]:
                out, lse = backend.run(query, query, query, added, 0.1)
                assert out.shape == query.shape
                assert out.transpose(1, 2).is_contiguous()
                assert lse.dtype == torch.float32
                assert lse.shape[:2] == (3, 4)
                assert lse.shape[2] >= 37
