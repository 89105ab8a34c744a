"""The attention backend that diffusers was told, as an option of lowering."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fisopt.codegen.choose import Choice
from fisopt.codegen.kernel_options import Attention, KernelOptions
from fisopt.rewrite.tools.diffusers_attention import NATIVE, dispatched, told

_OF_TORCH: dict[str, Attention] = {
    "_native_cudnn": "cudnn",
    "_native_flash": "flash",
    "_native_efficient": "efficient",
}
_WRITTEN_OUT = "flex"


def with_told(options: KernelOptions, model: nn.Module) -> tuple[KernelOptions, list[Choice]]:
    """The options, and where they leave attention open what diffusers was told of a model.

    Returns:
        The options, and what of it a graph does not follow, for the report.
    """
    names = told(model) if options.attention is None else ()
    if names in ((), (NATIVE,)):  # native is torch's choice, which is open
        return options, []
    if len(names) > 1:
        why = (
            f"diffusers sets different attentions for different layers, {' and '.join(names)}; "
            "give attention="
        )
        return options, [Choice("attention", "torch's choice", why)]
    if names[0] == _WRITTEN_OUT:
        why = f"diffusers sets {names[0]}, which needs masks that dense attention does not have"
        return options, [Choice("attention", "torch's choice", why)]
    wanted = _OF_TORCH.get(names[0]) or dispatched(names[0])
    return replace(options, attention=wanted), []
