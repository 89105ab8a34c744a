"""Measure a model on its own denoising and choose the options of its passes."""
