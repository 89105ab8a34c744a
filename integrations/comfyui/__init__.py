"""fisopt in ComfyUI: load a recipe, apply passes, tune, and see what ran.

Link or copy this folder into ``ComfyUI/custom_nodes`` and install fisopt into the environment that
ComfyUI runs in; see docs/comfyui.md.
"""

from .nodes import Apply, LoadRecipe, Summary, Tune

NODE_CLASS_MAPPINGS = {
    "FisoptLoadRecipe": LoadRecipe,
    "FisoptApply": Apply,
    "FisoptTune": Tune,
    "FisoptSummary": Summary,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FisoptLoadRecipe": "fisopt: load recipe",
    "FisoptApply": "fisopt: apply passes",
    "FisoptTune": "fisopt: tune",
    "FisoptSummary": "fisopt: summary",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
