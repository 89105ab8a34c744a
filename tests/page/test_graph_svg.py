from __future__ import annotations

from xml.etree import ElementTree

import fisopt
from fisopt import Program
from fisopt.page.graph_svg import _boxes, block_svg
from fisopt.rewrite.cost import contraction_flops


def texts(svg: str) -> list[str]:
    return [
        node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_every_operator_is_in_one_box_and_edges_lead_down(wan: Program) -> None:
    block = wan.blocks[0]
    boxes = _boxes(block)
    drawn = [node for box in boxes for node in box.nodes]
    assert len(drawn) == len(set(drawn))
    assert {n for n in block.body.graph.nodes if n.op == "call_function"} <= set(drawn)
    assert all(source.row < box.row for box in boxes for source in box.sources)
    for box in boxes:
        assert len(box.nodes) == 1 or not any(map(contraction_flops, box.nodes))


def test_block_that_runs_on_fewer_frames_says_so(wan: Program) -> None:
    frames = wan.layout.frames
    fast = fisopt.PassManager([fisopt.FrameInterleave(stride=2)]).run(wan)
    before = texts(block_svg(wan.blocks[1], frames))
    after = texts(block_svg(fast.blocks[1], frames))
    assert f"{frames} of {frames} frames" in " ".join(before)
    assert f"3 of {frames} frames" in " ".join(after)
    assert "attention" in before
