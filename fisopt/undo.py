"""The undoing of `optimize`: a pipeline gets back the transformers that it had."""

from __future__ import annotations

from typing import Any

from torch import nn

from fisopt.artefact.loaded import LoadedModule
from fisopt.checked import checked
from fisopt.codegen.quantised_weights import forget
from fisopt.errors import InputError
from fisopt.pipelines import transformers_of
from fisopt.rewrite.tracing.readiness import uncompiled
from fisopt.runtime.optimized import OptimizedModule


@checked
def restore(model_or_pipeline: Any) -> Any:
    """Put the original transformers back; a transformer that was never optimised stays as it is.

    Changes made to the model meanwhile stay, such as a loaded LoRA or a move to another device: an
    optimised module and its original share their parameters.

    Args:
        model_or_pipeline: a pipeline, whose transformers are replaced in place, or one optimised
            module.

    Returns:
        The pipeline, or the original of the module.

    Raises:
        InputError: there is no transformer, or one comes from an artefact, which has no original.
    """
    if isinstance(model_or_pipeline, nn.Module):
        return _original("the module", model_or_pipeline)
    modules = transformers_of(model_or_pipeline)
    originals = {name: _original(name, module) for name, module in modules.items()}
    for name, original in originals.items():
        if original is not modules[name]:
            setattr(model_or_pipeline, name, original)
    return model_or_pipeline


def _original(name: str, module: nn.Module) -> nn.Module:
    inner = uncompiled(module)
    if isinstance(inner, LoadedModule):
        raise InputError(
            f"restore: {name} was loaded from an artefact, which holds no original; put the model "
            "that you loaded with `from_pretrained` in its place"
        )
    if not isinstance(inner, OptimizedModule):
        return module
    forget(inner.original)
    return inner.original
