"""A tiny pipeline to distil."""

from __future__ import annotations

import pytest
import torch

from fisopt.models.testbed import TestbedPipeline, build_pipeline, build_transformer

PROMPTS = ["red circle moving left fast over waves", "blue square moving up slow over checks"]
SIZE = {"num_frames": 5}
GUIDANCE = 2.0


def tiny() -> TestbedPipeline:
    """A testbed of two narrow blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_transformer(num_layers=2, attention_head_dim=16, ffn_dim=32, freq_dim=16)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    pipe = build_pipeline(model.requires_grad_(False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipe() -> TestbedPipeline:
    """What no test changes."""
    return tiny()
