"""Every name that `fisopt` exports."""

from fisopt import distill, models, operators
from fisopt.api import capture, optimize
from fisopt.artefact.export import export
from fisopt.artefact.loaded import LoadedModule
from fisopt.artefact.loader import load
from fisopt.artefact.sign import sign
from fisopt.comparison.compare import compare
from fisopt.comparison.fetched import clip_scorer, lpips
from fisopt.comparison.result import Comparison
from fisopt.errors import (
    CaptureError,
    ExportError,
    FileError,
    FisoptError,
    InputError,
    LoweringError,
    OptionError,
    OptionTypeError,
    PassError,
    PostconditionError,
    PreconditionError,
    RankError,
    RecipeError,
    ScheduleError,
    VerifyError,
)
from fisopt.overview.summary import Summary, summary
from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.guidance_parallel import GuidanceParallel
from fisopt.passes.presets import PRESETS
from fisopt.passes.reduction.published_reductions import PUBLISHED_REDUCTIONS, published_reduction
from fisopt.passes.reduction.schedule import Schedule
from fisopt.passes.sequence_parallel import SequenceParallel
from fisopt.passes.step_cache import StepCache
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.tiling.mask_table import MaskTable
from fisopt.passes.tiling.masks import FrameMask, FrameTable, RadialDecay, SlidingWindow, TileMask
from fisopt.passes.token_reduction import TokenReduction
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.axes import FrameAxis, TokenLayout, axes_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.cost import Cost, predicted_ratio, program_cost
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.frames import Frames
from fisopt.rewrite.edit.local import Match
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.edit.tokens import Tokens
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.operator import Operator
from fisopt.rewrite.pass_base import Pass, PassResult, Step
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.rule import Rule, RulePass
from fisopt.rewrite.text import format_graph
from fisopt.rewrite.verify import verify
from fisopt.runtime.optimized import OptimizedModule
from fisopt.spec import ModelSpec
from fisopt.tuning.calibrate import calibrate
from fisopt.tuning.mask_search import search_masks
from fisopt.tuning.rehearsal import Rehearsal
from fisopt.tuning.tune import rehearse, tune
from fisopt.tuning.tuned import Tuned
from fisopt.undo import restore

__all__ = [
    "PRESETS",
    "PUBLISHED_REDUCTIONS",
    "Block",
    "BlockEdit",
    "BlockPass",
    "CaptureError",
    "Comparison",
    "Cost",
    "ExportError",
    "FileError",
    "FisoptError",
    "FrameAxis",
    "FrameInterleave",
    "FrameMask",
    "FrameTable",
    "Frames",
    "GuidanceParallel",
    "InputError",
    "LoadedModule",
    "LoweringError",
    "Match",
    "MaskTable",
    "ModelSpec",
    "Operator",
    "OptimizedModule",
    "OptionError",
    "OptionTypeError",
    "Pass",
    "PassError",
    "PassManager",
    "PassResult",
    "PostconditionError",
    "PreconditionError",
    "Program",
    "RadialDecay",
    "RankError",
    "Recipe",
    "RecipeError",
    "Rehearsal",
    "Rewriter",
    "Rule",
    "RulePass",
    "Schedule",
    "ScheduleError",
    "SequenceParallel",
    "SlidingWindow",
    "Step",
    "StepCache",
    "Subset",
    "Summary",
    "TileAttention",
    "TileMask",
    "TokenLayout",
    "TokenReduction",
    "Tokens",
    "Tuned",
    "VerifyError",
    "axes_of",
    "calibrate",
    "capture",
    "distill",
    "clip_scorer",
    "compare",
    "export",
    "format_graph",
    "load",
    "lpips",
    "models",
    "operator",
    "operators",
    "optimize",
    "predicted_ratio",
    "program_cost",
    "published_reduction",
    "rehearse",
    "restore",
    "search_masks",
    "sign",
    "summary",
    "tune",
    "verify",
]
