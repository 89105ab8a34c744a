"""LoRA by peft: an adapter is trained in the place of the weights; diffusers loads its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fisopt.errors import InputError

NAME = "distilled"
WEIGHTS = "pytorch_lora_weights.safetensors"


def adapted(
    model: nn.Module, rank: int, blocks: tuple[str, ...], seed: int
) -> dict[str, nn.Parameter]:
    """Give the linear layers in a model's blocks adapters, of float32 whatever the weights are.

    Args:
        model: of diffusers.
        rank: of each adapter; its strength is 1.
        blocks: where the blocks are, as `fisopt.ModelSpec` says it.
        seed: of their first values; torch's own generators stay as they are.

    Returns:
        The parameters of the adapters, by name.

    Raises:
        InputError: peft is not installed, or the model takes no adapters, or it has weights of
            float16, through which small gradients do not reach the adapters.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("distill: lora needs peft: pip install peft") from error
    if not hasattr(model, "add_adapter"):
        raise InputError(
            f"distill: {type(model).__name__} takes no adapters, as models of diffusers do; leave "
            "out lora"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.float16:
            raise InputError(
                f"distill: got {name} of torch.float16, in which small gradients become zero "
                "before they reach the adapters, as training scales no loss; call "
                ".to(torch.bfloat16) or .float() on the transformer"
            )
    starts = tuple(pattern.removesuffix("*") for pattern in blocks)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(starts)
    ]
    taking: Any = model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        taking.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), NAME)
    model.eval()
    learnt = {n: p for n, p in model.named_parameters() if f".{NAME}." in n}
    for parameter in learnt.values():
        parameter.data = parameter.data.float()
    return learnt


def write(model: nn.Module, component: str, folder: Path) -> None:
    """Write the adapter, as ``pipe.load_lora_weights(folder)`` reads it."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    held = get_peft_model_state_dict(model, adapter_name=NAME)
    weights = {f"{component}.{n}": p.detach().cpu().contiguous() for n, p in held.items()}
    holder: Any = model
    config = holder.peft_config[NAME].to_dict()
    plain = {n: list(v) if isinstance(v, set) else v for n, v in config.items()}
    facts = {f"{component}.{n}": v for n, v in plain.items()}
    folder.mkdir(exist_ok=True)
    told = json.dumps(facts, default=str, sort_keys=True)
    save_file(weights, folder / WEIGHTS, {"format": "pt", "lora_adapter_metadata": told})
