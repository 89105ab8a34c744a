"""What ``fisopt doctor`` looks at: what is here, what is missing, and what that is for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from fisopt.codegen.attention_packages import PACKAGES
from fisopt.codegen.compile import has_compiler
from fisopt.codegen.emit.cache import VARIABLE
from fisopt.codegen.emit.cache import folder as kernels
from fisopt.codegen.fp8 import NEEDED as FP8
from fisopt.counted import counted
from fisopt.models.testbed.pipeline import WEIGHTS
from fisopt.reading import MIB
from fisopt.runtime.disk.folder import captures
from fisopt.versions import FISOPT

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
OPTIONAL = {
    "triton": "kernels on a GPU: pip install 'fisopt[triton]'",
    "peft": "LoRA: pip install peft",
    "jinja2": "pages of compare, tune and demo: pip install 'fisopt[compare]'",
    "vl-convert-python": "pages of compare, tune and demo: pip install 'fisopt[compare]'",
    "flip-evaluator": "FLIP in compare: pip install 'fisopt[compare]'",
    "torchvision": "LPIPS in compare: pip install 'fisopt[eval]'",
    "onnx": "export to ONNX: pip install 'fisopt[onnx]'",
    "onnxruntime": "running ONNX: pip install 'fisopt[onnx]'",
    "onnxscript": "export to ONNX: pip install 'fisopt[onnx]'",
    "py-minisign": "signatures: pip install 'fisopt[sign]'",
    "torchao": "weights quantised by torchao: pip install torchao",
    "optimum-quanto": "weights quantised by quanto: pip install optimum-quanto",
    "gguf": "weights of GGUF files: pip install gguf",
    "bitsandbytes": "weights of four bits: pip install bitsandbytes",
}
"""Packages that are imported where they are used, and what for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        found: what is there.
        missing: what cannot be done without it and how to get it, empty if nothing is missing.
    """

    name: str
    found: str
    missing: str = ""


def examine() -> list[Finding]:
    """Look at this machine."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found = [Finding("fisopt", FISOPT), Finding("Python", python)]
    found += [Finding(name, _version(name) or "not installed") for name in NEEDED]
    found += _devices()
    compiler = "found" if has_compiler() else "not found"
    lacks = "" if has_compiler() else "compiled models on a CPU: install g++ and python3-dev"
    found.append(Finding("C++ compiler", compiler, lacks))
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR", gettempdir())
    found += [_captures(), _cache("cache of kernels", kernels())]
    found.append(_cache("cache of Inductor", Path(inductor)))
    weights = WEIGHTS.is_dir()
    found.append(Finding("testbed", str(WEIGHTS) if weights else "no weights", ""))
    for name, use in OPTIONAL.items():
        has = _version(name)
        found.append(Finding(name, has or "not installed", "" if has else use))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[Finding]:
    """GPUs, and the attentions that run on them."""
    if not torch.cuda.is_available():
        threads = counted(torch.get_num_threads(), "thread")
        return [Finding("device", f"CPU, {threads}", "speed: torch finds no GPU")]
    found = []
    for index in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(index)
        size = f"{held.total_memory / 2**30:.0f} GiB"
        found.append(Finding(f"cuda:{index}", f"{held.name}, sm_{held.major}{held.minor}, {size}"))
    if torch.cuda.get_device_capability() < FP8:
        found[-1] = Finding(found[-1].name, found[-1].found, "linears in FP8: needs a newer GPU")
    probe = torch.empty(1, 1, 16, 64, dtype=torch.bfloat16, device="cuda")
    for name, package in PACKAGES.items():
        why = package.refuses(probe, probe, probe)
        found.append(Finding(f"attention {name}", "not here" if why else "runs", why or ""))
    return found


def _captures() -> Finding:
    """Where captures are, and how much of them."""
    if (held := captures()) is None:
        return Finding("cache of captures", f"off ({VARIABLE})", "each start captures anew")
    files = held.files()
    size = sum(size for _, size, _ in files) / MIB
    where = _cache("cache of captures", held.path)
    of = f"{counted(len(files), 'file')}, {size:.1f} of {held.limit // MIB} MiB"
    return Finding(where.name, f"{where.found}: {of}", where.missing)


def _cache(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Finding(
        name, str(folder), "" if os.access(there, os.W_OK) else "fisopt cannot write there"
    )


def findings_table(found: list[Finding]) -> Table:
    """Lay the findings out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", style="cyan")
    table.add_column("found", overflow="fold")
    table.add_column("missing for")
    for each in found:
        table.add_row(each.name, Text(each.found), Text(each.missing, style="yellow"))
    return table
