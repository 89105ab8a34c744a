"""Artefacts of models that ranks run together: collectives in a file, groups bound when loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._local_tensor import LocalTensorMode
from torch.utils._pytree import tree_leaves, tree_map

import fisopt
from fisopt import ExportError, FrameInterleave, GuidanceParallel, RankError, SequenceParallel
from fisopt.artefact import pt2
from fisopt.artefact.manifest import Manifest
from fisopt.artefact.pt2 import manifest_of
from tests.artefact.models import plain
from tests.ranks import everywhere, simulated

BOTH = [FrameInterleave(), GuidanceParallel(), SequenceParallel(degree=2)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranks: halves of a batch of two, tokens between two; written without any ranks."""
    made, _ = plain(BOTH)
    return fisopt.export(made, tmp_path_factory.mktemp("ranks") / "four.pt2")


def test_every_rank_returns_what_one_does(exported: Path) -> None:
    one, inputs = plain(BOTH[:1])
    want = tree_leaves(one(**inputs))
    with simulated(4):
        loaded = fisopt.load(exported)
        with LocalTensorMode(4) as mode:
            returned: Any = tree_leaves(loaded(**tree_map(lambda x: everywhere(mode, x), inputs)))
    for got, whole in zip(returned, want, strict=True):
        for rank in range(4):
            part = got._local_tensors[rank]
            torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)


def test_the_manifest_says_the_ranks(exported: Path) -> None:
    manifest = Manifest.read(manifest_of(exported) or b"", "it")
    said = [(share.of, share.count, share.group) for share in manifest.mesh]
    assert said == [("items", 2, "fisopt_items"), ("tokens", 2, "fisopt_tokens")]
    assert manifest.open_sizes == ()
    assert set(manifest.fixed_sizes.values()) == {"what ranks divide has one size"}


def test_another_number_of_ranks(exported: Path) -> None:
    with pytest.raises(RankError, match=r"among ranks: 2 \(items\) x 2 \(tokens\); start"):
        fisopt.load(exported)
    with simulated(2), pytest.raises(RankError, match="here are 2: start as many"):
        fisopt.load(exported)
    with simulated(4), pytest.raises(fisopt.OptionError, match="of several groups"):
        fisopt.load(exported, group="0")


def test_a_group_by_its_name(tmp_path: Path) -> None:
    made, _ = plain([SequenceParallel(degree=2)])
    path = fisopt.export(made, tmp_path / "two", portable=False)
    with simulated(2):
        name = torch.distributed.group.WORLD.group_name  # type: ignore[union-attr]
        by_name, by_group = (
            fisopt.load(path, group=group) for group in (name, torch.distributed.group.WORLD)
        )
        for loaded in (by_name, by_group):
            calls = [n for n in loaded.variant_0.graph.nodes if "all_to_all" in str(n.target)]
            assert {n.args[-1] for n in calls} == {name}
    plain_one = fisopt.export(plain([])[0], tmp_path / "one.pt2")
    with pytest.raises(fisopt.OptionError, match="the artefact is of one rank"):
        fisopt.load(plain_one, group=name)


def test_groups_that_the_manifest_does_not_say(exported: Path) -> None:
    manifest = json.loads(manifest_of(exported) or b"")
    manifest["mesh"] = manifest["mesh"][1:]
    fewer = Manifest.read(json.dumps(manifest), "it", checked=False)
    with pytest.raises(ExportError, match="in the group 'fisopt_items', and the manifest says"):
        pt2.check(exported, fewer, 0)
    manifest["mesh"][0]["count"] = 1
    with pytest.raises(ExportError, match="malformed: wanted that mesh has two ranks or more"):
        Manifest.read(json.dumps(manifest), "it", checked=False)


def test_as_text(tmp_path: Path) -> None:
    made, _ = plain(BOTH)
    text = fisopt.export(made, tmp_path / "graph.txt", format="text").read_text()
    assert "# ranks: 2 share items, 2 share tokens" in text
    assert re.search(r"all_gather_into_tensor\(.*fisopt_items", text)


def test_refused(tmp_path: Path) -> None:
    made, _ = plain([SequenceParallel(degree=2)])
    with pytest.raises(ExportError, match="leaves as format 'pt2', or as 'text'; 'aoti' has no"):
        fisopt.export(made, tmp_path / "package", format="aoti")
