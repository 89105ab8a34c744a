"""Every dense attention of a device: results, and the log-sum-exp that merging needs."""

from __future__ import annotations

import pytest
import torch

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
