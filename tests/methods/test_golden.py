"""Every streamed method gives the bytes that were committed: on every processor, compiled or by numpy.

Another digest is another result of merges, which belongs into the changelog. The digests are written anew by
`PYTHONPATH=tests python tests/methods/test_golden.py`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from _support import CASES, Case, State

GOLDEN = Path(__file__).with_name("golden.json")
SHAPES = {"matrix": (200, 64), "conv": (5, 3, 3, 3), "norm": (64,), "one": (1,)}
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
PATHS = {"numpy": 1 << 62, "compiled": 0}
"""The elements from which on a merge is compiled."""


def values(stream: int, shape: tuple[int, ...], scale: int) -> torch.Tensor:
    """Return multiples of 2^-scale, whose 10 bits are those of a product: near a bell, with many ties."""
    places = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(stream * 1_000_003)
    hashed = (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hashed = (hashed ^ (hashed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    parts = [(hashed >> np.uint64(k)).astype(np.int64) & 255 for k in (8, 20, 32, 44)]
    return torch.from_numpy(((sum(parts) - 510) * 2.0**-scale).astype(np.float32)).view(shape)


def models(case: Case, dtype: torch.dtype) -> tuple[State, list[State]]:
    """Return a base and models of it; some entries of updates are zero."""
    base = {name: values(k, shape, 12) for k, (name, shape) in enumerate(SHAPES.items())}
    tuned = [
        {
            name: base[name] + values(50 * t + k + 7, shape, 16) * (values(50 * t + k + 31, shape, 0) > -150)
            for k, (name, shape) in enumerate(SHAPES.items())
        }
        for t in range(case.models)
    ]
    return (
        {name: value.to(dtype) for name, value in base.items()},
        [{name: value.to(dtype) for name, value in model.items()} for model in tuned],
    )


def digests(case: Case, path: str) -> dict[str, str]:
    """Return the digests of the merged bytes by dtype; thresholds are searched as in large tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("submerge.kernels._kernel.WORTHWHILE", PATHS[path])
        patch.setattr("submerge.algebra._select.COLLECT_ALL", 1000)
        patch.setattr("submerge.algebra._select.COLLECT_MOST", 1500)
        patch.setattr("submerge.engine.work._chunk_reader.SAMPLE_RUNS", 4)
        patch.setattr("submerge.engine.work._chunk_reader.SAMPLE_LENGTH", 100)
        return {code: digest(case, dtype) for code, dtype in DTYPES.items()}


def digest(case: Case, dtype: torch.dtype) -> str:
    """Return the digest of the merged bytes."""
    base, tuned = models(case, dtype)
    hasher = hashlib.blake2b(digest_size=8)
    for name, merged in case.merge(base, tuned, seed=5).items():
        hasher.update(name.encode() + merged.contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_are_those_that_were_committed(case: Case, path: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert case.name in golden, f"{case} has no digests yet: run the command above"
    assert digests(case, path) == golden[case.name]


def test_the_inputs_are_those_that_were_committed() -> None:
    assert values(3, (4,), 12).tolist() == [-0.027587890625, -0.062744140625, -0.013916015625, 0.052001953125]


if __name__ == "__main__":
    golden = {case.name: digests(case, "numpy") for case in CASES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
