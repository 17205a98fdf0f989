"""Runs in one process share torch's settings."""

import torch

from submerge.engine.work._threads import _SingleThreaded


def test_the_last_of_the_active_runs_restores_torchs_threads() -> None:
    before = torch.get_num_threads()
    single = _SingleThreaded()
    try:
        torch.set_num_threads(2)
        single.enter()
        single.enter()
        assert torch.get_num_threads() == 1
        single.leave()
        assert torch.get_num_threads() == 1, "the other run still needs it"
        single.leave()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
