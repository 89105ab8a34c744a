"""Write an optimised transformer as a package of AOTInductor, with the inputs of one call.

    python examples/export_cpp/export.py --out build

The package runs from C++ without Python: see main.cpp.  The model is a tiny Wan with random
weights; put the transformer of your pipeline in its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import fisopt
from fisopt.testing import zoo


class Saved(nn.Module):
    """Named tensors that C++ reads with torch::jit::load."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("build"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    case = zoo()["wan"]
    inputs = case.inputs(5, 3, 4)
    fast = fisopt.optimize(case.model, [fisopt.FrameInterleave()], inputs, backend="eager")
    with torch.no_grad():
        wanted = fast(**inputs)[0]
    print(fisopt.export(fast, out / "model.pt2", "aoti", example_inputs=inputs, force=True))
    tensors = {f"input_{i}": x for i, x in enumerate(inputs.values()) if isinstance(x, Tensor)}
    held = torch.jit.script(Saved({**tensors, "wanted": wanted}))
    held.save(str(out / "call.pt"))


if __name__ == "__main__":
    main()
