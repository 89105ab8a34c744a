"""The graph of a variant as text, without weights."""

from __future__ import annotations

from torch import fx

from fisopt.artefact.manifest import Manifest
from fisopt.rewrite.text import format_block


def text_of(module: fx.GraphModule, manifest: Manifest, index: int) -> str:
    """One line an operator, after what the manifest says of the artefact in comments.

    Args:
        module: its flat graph.
        manifest: of its artefact.
        index: its position among the variants.
    """
    variant = manifest.variants[index]
    grid = "x".join(map(str, manifest.grid))
    steps = [i for i, j in enumerate(manifest.schedule) if j == index]
    said = [
        f"{manifest.model['class']}, {grid} tokens, {manifest.model['dtype']}",
        f"passes: {', '.join(variant.passes) or 'none'}",
        f"steps: {', '.join(map(str, steps))} of {manifest.steps}" if manifest.steps else "",
        f"ranks: {', '.join(f'{s.count} share {s.of}' for s in manifest.mesh)}"
        if manifest.mesh
        else "",
        variant.linears,
        f"versions: {', '.join(f'{k} {v}' for k, v in manifest.versions.items())}",
        f"config_sha256: {manifest.model['config_sha256']}",
    ]
    return "\n".join([*(f"# {line}" for line in said if line), format_block(module), ""])
