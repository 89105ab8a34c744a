"""An untrained testbed of two layers, one for all tests of comparisons."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import fisopt
from fisopt.models import testbed

PROMPTS = ["red circle moving left fast over waves", "blue square moving up slow over plain"]
STRIDE = fisopt.FrameInterleave(stride=2, blocks="1:")


@cache
def transformer() -> torch.nn.Module:
    torch.manual_seed(0)
    return testbed.build_transformer(num_layers=2)


def pipeline() -> Any:
    made = testbed.build_pipeline(transformer())
    made.set_progress_bar_config(disable=True)
    return made
