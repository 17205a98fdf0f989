"""Several jobs at once, each in a process of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

__all__ = ["quiet", "run_all"]


def run_all(work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], at_once: int) -> None:
    """Do all jobs, several at once in processes of their own; the first failure is raised."""
    if at_once == 1:
        for job in jobs:
            work(*job)
        return
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(work, *job) for job in jobs]:
            future.result()


def quiet(threads: int | None = None) -> None:
    """Silence the libraries, and give torch so many threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # met by PEFT
    if threads:
        torch.set_num_threads(threads)
