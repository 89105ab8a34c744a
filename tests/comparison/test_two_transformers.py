from __future__ import annotations

import pytest

import fisopt
from tests.standins import wan22
from tests.zoo import zoo


@pytest.mark.xdist_group("wan")
@pytest.mark.usefixtures("captured_once")
def test_each_transformer_has_its_own_passes() -> None:
    model = zoo()["wan"].model
    pipe = wan22(model, model)
    every = {"transformer": ["fis-faithful"], "transformer_2": [fisopt.FrameInterleave(stride=2)]}
    found = fisopt.compare(
        pipe,
        ["a cat", "a dog runs"],
        {"late": {"transformer_2": ["fis-faithful"]}, "both": every},
        steps=4,
        backend="eager",
        floors=1,
        arguments={"height": 48, "width": 64, "num_frames": 17},
    )
    names = [row.name for row in found.rows]
    assert names == ["dense", "late", "both", "dense, another kernel", "dense, in a batch"]
    assert all(value > 80 for name in names[3:] for value in found.row(name).values("psnr"))
    late, both = found.mean("late", "psnr"), found.mean("both", "psnr")
    assert late is not None
    assert both is not None
    assert late.mean > both.mean
    assert found.row("both").predicted > found.row("late").predicted > 1  # type: ignore[operator]
    assert "'transformer_2': [FrameInterleave(" in found.row("both").settings
    for name in ("dense", "late"):
        assert [stage.name for stage in found.stages if stage.configuration == name] == [
            "step 0, transformer",
            "step 1, transformer",
            "step 2, transformer_2",
            "step 3, transformer_2",
            "text, VAE and the rest",
        ]
    changed = {
        choice.transformer
        for choice in found.choices
        if choice.configuration == "late" and choice.choice != "dense"
    }
    assert changed == {"transformer_2"}
    assert pipe.transformer is pipe.transformer_2 is model
