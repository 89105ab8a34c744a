"""A small trained video transformer, its scenes, prompts and checker: quality measured at home."""

from fisopt.models.testbed.checker import Check, Reading, check_clip, read_clip
from fisopt.models.testbed.model import build_transformer, encode_prompts, null_embeddings
from fisopt.models.testbed.pipeline import (
    TestbedPipeline,
    TestbedPipelineOutput,
    build_pipeline,
    load_testbed,
    to_frames,
)
from fisopt.models.testbed.prompts import Prompt, all_prompts, parse_prompt, sample_prompts
from fisopt.models.testbed.scenes import draw_clip, draw_clips

__all__ = [
    "Check",
    "Prompt",
    "Reading",
    "TestbedPipeline",
    "TestbedPipelineOutput",
    "all_prompts",
    "build_pipeline",
    "build_transformer",
    "check_clip",
    "draw_clip",
    "draw_clips",
    "encode_prompts",
    "load_testbed",
    "null_embeddings",
    "parse_prompt",
    "read_clip",
    "sample_prompts",
    "to_frames",
]
