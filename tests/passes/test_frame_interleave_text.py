"""The text of a Program before and after FrameInterleave."""

from __future__ import annotations

from expecttest import assert_expected_inline

from fisopt import FrameInterleave, format_graph
from tests.conftest import plain_captured
from tests.plain_dit import Form

FORM = Form(text="behind", post_norm=True)


def text(step: FrameInterleave | None, *, blocks: bool = False) -> str:
    _, program = plain_captured(FORM)
    if step is not None:
        program = step(program).program
    return format_graph(program, blocks=blocks)


def test_dense() -> None:
    assert_expected_inline(
        text(None),
        """\
program 5x2x3 tokens
  %video: [2, f5*6, 6]
  %text: [2, 5, 32]
  %time: [2]
  %0: [2, f5*6, 32] = aten::linear(%video, @embed.weight, @embed.bias)
  %1: [2, 1] = aten::unsqueeze(%time, 1)
  %2: [2, 1, 1] = aten::unsqueeze(%1, 2)
  %3: [2, 1, 32] = aten::linear(%2, @time.weight, @time.bias)
  %4: [2, f5*6+5, 32] = aten::cat([%0, %text], 1)
  %5: [f5*6] = aten::arange(30, device=cpu, pin_memory=False)
  %6: [f5*6, 1] = aten::unsqueeze(%5, 1)
  %7: [f5*6, 8] = aten::mul.Tensor(%6, @frequencies)
  %8: [2, f5*6+5, 32] = block_a(%3, %4, %7, +18 parameters)
  %9: [2, f5*6+5, 32] = block_a(%3, %8, %7, +18 parameters)
  %10: [2, f5*6+5, 32] = block_a(%3, %9, %7, +18 parameters)
  %11: [2, f5*6, 32] = aten::slice.Tensor(%10, 1, None, -5)
  %12: [2, f5*6, 6] = aten::linear(%11, @unembed.weight, @unembed.bias)
  return %12""",
    )


def test_gathers_once_a_residue_and_fills_after_every_block() -> None:
    assert_expected_inline(
        text(FrameInterleave(stride=3, blocks=":")),
        """\
program 5x2x3 tokens
  %video: [2, f5*6, 6]
  %text: [2, 5, 32]
  %time: [2]
  %0: [2, f5*6, 32] = aten::linear(%video, @embed.weight, @embed.bias)
  %1: [2, 1] = aten::unsqueeze(%time, 1)
  %2: [2, 1, 1] = aten::unsqueeze(%1, 2)
  %3: [2, 1, 32] = aten::linear(%2, @time.weight, @time.bias)
  %4: [2, f5*6+5, 32] = aten::cat([%0, %text], 1)
  %5: [f5*6] = aten::arange(30, device=cpu, pin_memory=False)
  %6: [f5*6, 1] = aten::unsqueeze(%5, 1)
  %7: [f5*6, 8] = aten::mul.Tensor(%6, @frequencies)
  %8: [2, f3*6+5, 32] = fisopt::gather_frames(%4, 1, @fisopt_anchors_s3_a3_k3, 1, 6, 0, 5)
  %9: [f3*6, 8] = fisopt::gather_frames(%7, 0, @fisopt_anchors_s3_a3_k3, 1, 6, 0, 0)
  %10: [2, f3*6+5, 32] = block_a_k3(%3, %8, %9, +18 parameters)
  %11: [2, f5*6+5, 32] = fisopt::fill_frames(%4, %10, 1, @fisopt_anchors_s3_a3_k3, @fisopt_left_s3_a3_k3, @fisopt_right_s3_a3_k3, @fisopt_weight_s3_a3_k3, 1, 6, 0, 5, residual)
  %12: [2, f3*6+5, 32] = fisopt::gather_frames(%11, 1, @fisopt_anchors_s3_a1_k3, 1, 6, 0, 5)
  %13: [f3*6, 8] = fisopt::gather_frames(%7, 0, @fisopt_anchors_s3_a1_k3, 1, 6, 0, 0)
  %14: [2, f3*6+5, 32] = block_a_k3(%3, %12, %13, +18 parameters)
  %15: [2, f5*6+5, 32] = fisopt::fill_frames(%11, %14, 1, @fisopt_anchors_s3_a1_k3, @fisopt_left_s3_a1_k3, @fisopt_right_s3_a1_k3, @fisopt_weight_s3_a1_k3, 1, 6, 0, 5, residual)
  %16: [2, f3*6+5, 32] = fisopt::gather_frames(%15, 1, @fisopt_anchors_s3_a2_k3, 1, 6, 0, 5)
  %17: [f3*6, 8] = fisopt::gather_frames(%7, 0, @fisopt_anchors_s3_a2_k3, 1, 6, 0, 0)
  %18: [2, f3*6+5, 32] = block_a_k3(%3, %16, %17, +18 parameters)
  %19: [2, f5*6+5, 32] = fisopt::fill_frames(%15, %18, 1, @fisopt_anchors_s3_a2_k3, @fisopt_left_s3_a2_k3, @fisopt_right_s3_a2_k3, @fisopt_weight_s3_a2_k3, 1, 6, 0, 5, residual)
  %20: [2, f5*6, 32] = aten::slice.Tensor(%19, 1, None, -5)
  %21: [2, f5*6, 6] = aten::linear(%20, @unembed.weight, @unembed.bias)
  return %21""",
    )


def moves(step: FrameInterleave) -> str:
    """The lines of the sparse block in which frames come, go and meet."""
    block = text(step, blocks=True).split("\nblock_a_k2\n")[1].split("\n\n")[0]
    words = ("linear", "gather_frames", "fill_frames", "attention")
    lines = block.splitlines()
    inputs = [line for line in lines if " = " not in line]
    calls = [line for line in lines if " = " in line and any(w in line for w in words)]
    return "\n".join(inputs[:-1] + calls + inputs[-1:])


def test_keys_of_every_frame() -> None:
    """The gather has moved to where the demand drops: into the block, before the queries."""
    assert_expected_inline(
        moves(FrameInterleave(stride=4, kv="all", blocks=":1")),
        """\
  %linear_1: [2, 1, 32]
  %cat: [2, f5*6+5, 32]
  %mul: [f5*6, 8]
  %frames_anchors: [2]
  %0: [2, 1, 64] = aten::linear(%linear_1, %modulation_weight, %modulation_bias)
  %4: [2, f2*6+5, 32] = fisopt::gather_frames(%cat, 1, %frames_anchors, 1, 6, 0, 5)
  %5: [2, f2*6+5, 32] = aten::linear(%4, %attend_q_weight, %attend_q_bias)
  %8: [2, f5*6+5, 32] = aten::linear(%cat, %attend_k_weight, %attend_k_bias)
  %11: [2, f5*6+5, 32] = aten::linear(%cat, %attend_v_weight, %attend_v_bias)
  %19: [f2*6+5, 8] = fisopt::gather_frames(%15, 0, %frames_anchors, 1, 6, 0, 5)
  %41: [2, 2, f2*6+5, 16] = aten::scaled_dot_product_attention(%28, %40, %13)
  %45: [2, f2*6+5, 32] = aten::linear(%44, %attend_out_weight, %attend_out_bias)
  %51: [2, f2*6+5, 64] = aten::linear(%50, %mlp_0_weight, %mlp_0_bias)
  %53: [2, f2*6+5, 32] = aten::linear(%52, %mlp_2_weight, %mlp_2_bias)
  return %55""",
    )


def test_attention_alone() -> None:
    step = FrameInterleave(stride=4, scope="attention", fill="carry", blocks="-1:")
    assert_expected_inline(
        moves(step),
        """\
  %linear_1: [2, 1, 32]
  %cat: [2, f5*6+5, 32]
  %mul: [f2*6, 8]
  %frames_anchors: [2]
  %frames_left: [5]
  %frames_right: [5]
  %frames_weight: [5]
  %0: [2, 1, 64] = aten::linear(%linear_1, %modulation_weight, %modulation_bias)
  %4: [2, f2*6+5, 32] = fisopt::gather_frames(%cat, 1, %frames_anchors, 1, 6, 0, 5)
  %5: [2, f2*6+5, 32] = aten::linear(%4, %attend_q_weight, %attend_q_bias)
  %8: [2, f2*6+5, 32] = aten::linear(%4, %attend_k_weight, %attend_k_bias)
  %11: [2, f2*6+5, 32] = aten::linear(%4, %attend_v_weight, %attend_v_bias)
  %40: [2, 2, f2*6+5, 16] = aten::scaled_dot_product_attention(%27, %39, %13)
  %41: [2, 2, f5*6+5, 16] = fisopt::fill_frames(None, %40, 2, %frames_anchors, %frames_left, %frames_right, %frames_weight, 1, 6, 0, 5, carry)
  %45: [2, f5*6+5, 32] = aten::linear(%44, %attend_out_weight, %attend_out_bias)
  %51: [2, f5*6+5, 64] = aten::linear(%50, %mlp_0_weight, %mlp_0_bias)
  %53: [2, f5*6+5, 32] = aten::linear(%52, %mlp_2_weight, %mlp_2_bias)
  return %55""",
    )
