"""Artefacts: optimised models as files that run elsewhere, and the modules that load them."""
