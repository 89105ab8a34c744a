"""Distillation: train a student of few steps, or a model that runs under passes."""

from fisopt.distill.consistency import consistency
from fisopt.distill.lessons import Supplied
from fisopt.distill.prepare import prepare
from fisopt.distill.sparse import sparse
from fisopt.distill.student import Student
from fisopt.distill.trainer import Trainer, Training
from fisopt.distill.watching import clips, scalars

__all__ = [
    "Student",
    "Supplied",
    "Trainer",
    "Training",
    "clips",
    "consistency",
    "prepare",
    "scalars",
    "sparse",
]
