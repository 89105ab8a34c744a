"""Two ranks that send each other results of forward calls."""

from __future__ import annotations

from torch import Tensor, distributed

from fisopt.passes.sharding.group import process_group


class Pair:
    """Two ranks of torch.distributed.

    Args:
        group: the name of their process group.

    Attributes:
        rank: the number of this one: 0 or 1.
    """

    def __init__(self, group: str) -> None:
        self._group = process_group(group)
        self.rank = distributed.get_rank(self._group)

    def send(self, x: Tensor, owner: int) -> None:
        """Fill a tensor with what one of them has of it.

        Args:
            x: the tensor, contiguous; of the owner it is read.
            owner: 0 or 1.
        """
        distributed.broadcast(x, group=self._group, group_src=owner)
