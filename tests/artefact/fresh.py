"""Run artefacts in a process of their own that imports torch, or onnxruntime, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fisopt import OptimizedModule
from fisopt.artefact.loader import read_manifest

_TORCH = """
import json, sys, torch
{imports}
for line in sys.stdin:
    path = line.strip()
    try:
        held = torch.load(path + ".tensors")
        with torch.no_grad():
            got = {load}(**held["inputs"])[0]
        print(json.dumps(float((got - held["output"]).abs().max())), flush=True)
    except Exception as error:
        print(json.dumps(f"{{type(error).__name__}}: {{error}}"[:400]), flush=True)
assert ("fisopt" in sys.modules) == {fisopt}
"""
RUNS = {
    "pt2 portable": _TORCH.format(
        imports="", load="torch.export.load(path + '.pt2').module()", fisopt=False
    ),
    "pt2 native": _TORCH.format(
        imports="from fisopt import load",
        load="torch.export.load(path + '.pt2').module()",
        fisopt=True,
    ),
    "aoti": _TORCH.format(
        imports="from torch._inductor import aoti_load_package",
        load="aoti_load_package(path + '.pt2')",
        fisopt=False,
    ),
    "onnx": """
import json, sys, numpy, onnxruntime
for line in sys.stdin:
    path = line.strip()
    try:
        held = numpy.load(path + ".npz")
        session = onnxruntime.InferenceSession(path + ".onnx")
        got = session.run(None, {i.name: held[i.name] for i in session.get_inputs()})[0]
        print(json.dumps(float(abs(got - held["__output__"]).max())), flush=True)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"[:400]), flush=True)
assert "torch" not in sys.modules
""",
}
"""What each process runs: it reads paths without suffixes and prints a difference or an error."""


def keep_call(optimized: OptimizedModule, inputs: dict[str, Any], file: Path) -> None:
    """Write the tensors of a call, and what the optimised module returns, beside an artefact."""
    program = optimized.program(inputs)
    taken = read_manifest(file)[0].call.tensors
    named = dict(zip((t.name for t in taken), program.values(inputs), strict=True))
    output = torch.utils._pytree.tree_leaves(program(**inputs))[0]
    if file.suffix == ".onnx":
        arrays = {name: value.numpy() for name, value in named.items()}
        np.savez(file.with_suffix(".npz"), **arrays, __output__=output.numpy())
    else:
        torch.save({"inputs": named, "output": output}, file.with_suffix(".tensors"))


def process(
    code: str, *args: str, text: str = "", fisopt: bool = False, warnings: bool = False
) -> str:
    """Run code in a fresh process and return what it prints, with what it warns of if wanted."""
    root = {"PYTHONPATH": str(Path(__file__).parents[2])} if fisopt else {}
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**kept, "OMP_NUM_THREADS": "1", **root},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + (done.stderr if warnings else "")


def differences(kind: str, files: Sequence[Path]) -> list[float | str]:
    """The largest difference of every artefact from what was kept beside it, or its error."""
    text = "\n".join(str(file.with_suffix("")) for file in files)
    lines = process(RUNS[kind], text=text, fisopt=kind == "pt2 native").splitlines()
    assert len(lines) == len(files)
    return [json.loads(line) for line in lines]
