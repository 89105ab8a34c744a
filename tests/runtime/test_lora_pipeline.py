"""LoRA through real pipelines of diffusers: what a plain pipeline makes of every change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fisopt import FrameInterleave, InputError
from tests.runtime.pipes import Both, Change, clip, load, looped, strengths, transformer, weights

TWO: tuple[Change, ...] = (load(0, "a"), load(1, "b"), strengths(0.5, 2.0))


def test_every_change_is_the_plain_pipeline_s_and_captured_at_most_once(captured: Any) -> None:
    def enable(pipe: Any) -> None:
        pipe.enable_lora()

    both = Both()
    seen = {"none": both.check()}
    changes: list[tuple[str, int, tuple[Change, ...]]] = [
        ("two", 1, TWO),
        ("other strengths", 0, (strengths(0.25, 1.0),)),
        ("one", 1, (strengths(0.75),)),
        ("two again", 0, (strengths(0.25, 1.0),)),
        ("disabled", 1, (lambda pipe: pipe.disable_lora(),)),
        ("enabled", 0, (enable,)),
        ("fused", 1, (lambda pipe: pipe.fuse_lora(lora_scale=0.5),)),
        ("fused and disabled", 0, (lambda pipe: pipe.disable_lora(),)),
        ("unfused", 0, (lambda pipe: pipe.unfuse_lora(), enable, strengths(0.25, 1.0))),
        ("deleted", 1, (lambda pipe: pipe.delete_adapters("b"),)),
        ("unloaded", 0, (lambda pipe: pipe.unload_lora_weights(),)),
    ]
    for name, times, change in changes:
        before = len(captured)
        both.do(*change)
        seen[name] = both.check()
        assert len(captured) - before == times, name
    equal = [("other strengths", "two again"), ("two again", "enabled"), ("none", "disabled")]
    equal.append(("none", "fused and disabled"))
    for one, other in [*equal, ("enabled", "unfused"), ("none", "unloaded")]:
        torch.testing.assert_close(seen[one], seen[other], rtol=0, atol=1e-5)
    kinds = ("none", "two", "other strengths", "one", "fused", "deleted")
    assert all(not torch.allclose(seen[a], seen[b]) for a in kinds for b in kinds if a != b)


def test_strengths_of_whole_calls_and_of_adapters_compile_nothing(
    captured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded before; the strength of a call as a number or a tensor, also through a compiler."""
    compiled: list[Any] = []

    def compile(graph: Any, **_: Any) -> Any:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compile)
    both = Both(*TWO, backend="inductor")
    made, clips = [], []
    for scale in (0.5, torch.tensor(0.25), 1, 0.75):
        both.do(strengths(1.0, float(scale)))
        clips.append(both.check(attention_kwargs={"scale": scale}))
        made.append((len(captured), len(compiled)))
    assert len(set(made)) == 1
    assert not torch.allclose(clips[0], clips[1], atol=1e-4)
    with pytest.raises(InputError, match=r"attention_kwargs=\{'scale': \.\.\.\}.*one number for"):
        clip(both.fast, attention_kwargs={"scale": torch.ones(2)})


def test_a_hot_swap_compiles_nothing(captured: Any) -> None:
    both = Both(lambda pipe: pipe.enable_lora_hotswap(target_rank=4), load(0, "a"))
    clips = [both.check()]
    for seed, rank in ((1, 4), (2, 1)):
        both.do(load(seed, "a", rank, hotswap=True), strengths(0.5))
        clips.append(both.check())
    assert len(captured) == 1
    assert not any(torch.allclose(clips[i], clips[i - 1], atol=1e-4) for i in range(3))


def test_two_transformers_have_adapters_of_their_own(captured: Any) -> None:
    """As those of Wan 2.2 A14B: two distilled LoRAs of different strength."""
    both = Both(models=[transformer(), transformer(seed=1)])
    first, second = load(0, "high"), load(1, "low", load_into_transformer_2=True)

    def strength(high: float, low: float) -> Change:
        def change(pipe: Any) -> None:
            for part, name, value in (
                (pipe.transformer, "high", high),
                (pipe.transformer_2, "low", low),
            ):
                part.set_adapters([name], [value])

        return change

    both.do(first, second, strength(3.0, 1.5))
    one = both.check()
    both.do(strength(1.0, 1.5))
    other = both.check()
    both.do(strength(1.0, 0.5))
    assert len({id(x) for x in (one, other, both.check())}) == 3
    both.do(lambda pipe: pipe.set_adapters(["high", "low"], [2.0, 0.5]))  # activates both in each
    assert not torch.allclose(both.check(), one, atol=1e-4)
    assert not torch.allclose(one, other, atol=1e-4)
    assert [
        captured.count(part.original) for part in (both.fast.transformer, both.fast.transformer_2)
    ] == [1, 1]


@pytest.mark.parametrize("when", ["disabled", "swapped", "stronger"])
def test_adapters_that_change_in_the_middle_of_a_clip_are_refused(when: str, captured: Any) -> None:
    both = Both(lambda pipe: pipe.enable_lora_hotswap(target_rank=4), load(0, "a"))
    changes: dict[str, Change] = {
        "disabled": lambda pipe: pipe.disable_lora(),
        "swapped": load(3, "a", hotswap=True),
        "stronger": strengths(2.0),
    }

    def between(pipe: Any, step: int, time: Any, held: Any) -> Any:
        if step == 0:
            changes[when](pipe)
        return held

    if when == "stronger":
        assert not torch.allclose(both.check(), both.check(callback_on_step_end=between), atol=1e-4)
    else:
        said = {"disabled": r"had \['a'\], has \[\]", "swapped": "another was loaded"}[when]
        with pytest.raises(InputError, match=rf"middle of a generation: .*{said}"):
            clip(both.fast, callback_on_step_end=between)
        changes[when](both.plain)
        both.check()
    assert len(captured) <= 2


def test_an_adapter_for_other_layers_is_refused_and_changes_nothing(captured: Any) -> None:
    both = Both(load(0, "a"))
    before = both.check()
    other = {name.replace("blocks.0", "layers.0"): x for name, x in weights(1).items()}
    for pipe in (both.plain, both.fast):
        with pytest.raises(ValueError, match="not found in the base model"):
            pipe.load_lora_weights(dict(other), adapter_name="b")
    assert torch.equal(both.check(), before)
    assert len(captured) == 1
    for pipe in (both.plain, both.fast):  # diffusers then drops the adapter that was there
        with pytest.raises(RuntimeError, match="unexpected keys"):
            pipe.load_lora_weights(dict(other), adapter_name="a", hotswap=True)
    assert not torch.allclose(both.check(), before, atol=1e-4)


def test_sparse_blocks_with_adapters_share_a_graph_and_equal_the_loop() -> None:
    """Strengths differ from layer to layer, and change without a new graph."""
    both = Both(
        load(0, "a", depth=3),
        models=[transformer(3)],
        passes=[FrameInterleave(stride=2, blocks=":")],
    )
    first = looped(both.plain, 2, 5)
    for strength in (1.0, 0.25):
        for pipe in (both.plain, both.fast):
            for i, block in enumerate(pipe.transformer.blocks):
                block.to_q.set_scale("a", strength + i)
        want = looped(both.plain, 2, 5)
        torch.testing.assert_close(clip(both.fast, 5), want, rtol=0, atol=1e-5)
        assert not torch.allclose(want, first, atol=1e-4)
    report = both.fast.transformer.report
    assert len(report.variants) == 1
    assert not report.changes
    assert len({graph for _, graph in report.variants[0].blocks}) == 2, "two choices of frames"
