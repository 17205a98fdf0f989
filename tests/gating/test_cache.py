"""The cache of merged cores is bounded by its bytes."""

import torch

from submerge.gating import Recent


def test_the_oldest_go_first() -> None:
    cache = Recent(100)
    cache["a"], cache["b"] = torch.zeros(10), torch.zeros(10)  # 40 bytes each
    assert cache["a"].numel() == 10
    cache["c"] = torch.zeros(10)
    assert set(cache) == {"a", "c"}
    cache["huge"] = torch.zeros(1000)
    assert "huge" not in cache
    assert cache.held == 80
