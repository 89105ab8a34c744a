"""Ten steps of training through a rewritten Program lower a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt

WIDTH, GRID = 16, (5, 2, 3)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def test_ten_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    video, wanted = torch.randn(2, 2, 30, WIDTH).unbind()
    passes = [fisopt.FrameInterleave(stride=2), fisopt.TileAttention(1)]
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=GRID)
    fast = fisopt.optimize(model, passes, {"video": video}, spec, backend="eager")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(fast.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = functional.mse_loss(fast(video=video), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert losses == sorted(losses, reverse=True)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    with torch.no_grad():
        assert functional.mse_loss(fast(video=video), wanted) < losses[-1]
