"""A student's folder: weights that diffusers loads, the recipe, a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisopt.distill import lora
from fisopt.errors import InputError
from fisopt.files import written

if TYPE_CHECKING:
    from fisopt.distill.student import Student

FACTS, RECIPE, CARD = "distilled.json", "recipe.yaml", "README.md"

_TEXT = """\
---
library_name: diffusers
tags: [video, diffusion, distilled]
---

# A distilled {model}

Made by `fisopt.distill`. Run it with `num_inference_steps={num_inference_steps}` and
`guidance_scale={guidance_scale:g}`; the noise levels of its steps are {levels}.

{runs}

Trained for {steps} steps in {minutes:.1f} minutes; loss at the end {loss:.5f}.
"""
_SPARSE = """\
It has learnt to run under passes, which `recipe.yaml` holds, and runs dense too:

```python
model = {model}.from_pretrained(folder)
pipe.transformer = fisopt.optimize(model, recipe=folder / "recipe.yaml")
```"""
_LORA = "Its adapter: `pipe.load_lora_weights(folder)`."
_DENSE = "It is dense: `pipe.transformer = {model}.from_pretrained(folder)`."


def save(student: Student, folder: Path, *, force: bool) -> Path:
    """Write a student; see `Student.save`."""
    model: Any = student.model
    if not student.adapter and not hasattr(model, "save_pretrained"):
        raise InputError(
            f"distill: {type(model).__name__} has no save_pretrained, as models of diffusers have; "
            "save student.weights yourself"
        )
    return _saved(student, folder, force=force)


def _saved(student: Student, folder: Path, *, force: bool) -> Path:
    model: Any = student.model
    with written(folder, force=force, foreign=_foreign) as beside:
        if student.adapter:
            lora.write(model, student.adapter, beside)
        else:
            model.save_pretrained(beside)
        if student.passes:
            student.recipe.save(beside / RECIPE)
        (beside / FACTS).write_text(json.dumps(student.card(), indent=1) + "\n", encoding="utf-8")
        (beside / CARD).write_text(_card(student), encoding="utf-8")
    return folder


def _card(student: Student) -> str:
    facts = student.card()
    trained = facts.pop("trained") or {"step": 0, "seconds": 0.0, "loss": float("nan")}
    runs = _SPARSE if student.passes else _DENSE
    if student.adapter:
        runs = _LORA + ("\n\nIt runs under the passes of `recipe.yaml`." if student.passes else "")
    return _TEXT.format(
        **facts,
        levels=", ".join(f"{sigma:.3f}" for sigma in student.sigmas),
        runs=runs.format(**facts),
        steps=trained["step"],
        minutes=trained["seconds"] / 60,
        loss=trained["loss"],
    )


def _foreign(folder: Path) -> str | None:
    """What a folder holds that is not a student's."""
    if not (folder / FACTS).is_file():
        return f"no {FACTS}"
    ours = {FACTS, RECIPE, CARD, "config.json", lora.WEIGHTS}
    others = (
        item.name
        for item in sorted(folder.iterdir())
        if item.name not in ours and not item.name.startswith("diffusion_pytorch_model")
    )
    return next(others, None)
