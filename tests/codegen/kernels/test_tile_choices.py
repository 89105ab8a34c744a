"""The tile choice without a measurement is always one that is compiled and tested."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from fisopt.codegen.kernels.tile_choices import CONFIGS, Masked, default_config


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("masked", get_args(Masked))
def test_every_default_is_among_the_configs(architecture: int, masked: Masked) -> None:
    known = [config.all_kwargs() for config in CONFIGS]
    for width, descriptors in product(range(16, 257, 16), (False, True)):
        chosen = default_config(width, architecture, descriptors, masked).all_kwargs()
        assert chosen in known
        assert descriptors or not chosen["DESCRIPTORS"]
