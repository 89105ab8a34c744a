"""Distillation: few steps, and a sparse student that has learnt to be sparse."""

from fisopt.distill.consistency import consistency
from fisopt.distill.following import Supplied
from fisopt.distill.sparse import sparse
from fisopt.distill.student import Student
from fisopt.distill.trainer import Trainer, Training

__all__ = ["Student", "Supplied", "Trainer", "Training", "consistency", "sparse"]
