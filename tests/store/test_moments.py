"""Files of second moments: each distinct input once, read one at a time, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from _updates import normal
from submerge.algebra import BlockMoment, FactorMoment, Moment
from submerge.errors import RequestError, WorkError
from submerge.store import MomentFile, StoredMoments, write_moments

SHARED = BlockMoment.of(normal(0, 9, 4))
MOMENTS: dict[str, Moment] = {"q": SHARED, "k": SHARED, "o": BlockMoment.of(normal(1, 7, 6), block=2)}


def test_moments_come_back_by_module(tmp_path: Path) -> None:
    path = tmp_path / "new" / "law.safetensors"
    write_moments(path, MOMENTS, {"statistics": "full"})
    file = MomentFile.open(path)
    assert file.inputs == {"q": "q", "k": "q", "o": "o"}
    assert (file.widths, file.counts) == ({"q": 4, "o": 6}, {"q": 9, "o": 7})
    assert file.source == {"statistics": "full"}
    for module, moment in MOMENTS.items():
        found = file.of(module)
        assert (found.kind, found.count) == (moment.kind, moment.count)
        eye = torch.eye(moment.width)
        assert torch.equal(found.times(eye), moment.times(eye))
    assert list(path.parent.iterdir()) == [path]


def test_one_input_is_stored_once(tmp_path: Path) -> None:
    write_moments(tmp_path / "law.safetensors", MOMENTS, {})
    with safe_open(tmp_path / "law.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["o/count", "o/sum", "q/count", "q/sum"]


def test_the_same_moments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_moments(tmp_path / name, MOMENTS, {"b": 1, "a": [2]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_moments_of_a_module_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    for name, count in (("law", 3), ("chess", 5)):
        write_moments(tmp_path / name, {"q": FactorMoment.identity(4, count)}, {})
    stored = StoredMoments(tuple(MomentFile.open(tmp_path / name) for name in ("law", "chess")), "q")
    assert [moment.count for moment in stored] == [3, 5]
    assert [moment.count for moment in stored[1:]] == [5]
    (tmp_path / "chess").unlink()
    assert (len(stored), stored[0].count) == (2, 3)


def test_what_is_no_file_of_moments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such file of moments"):
        MomentFile.open(tmp_path / "law.safetensors")
    (tmp_path / "law.safetensors").write_bytes(bytes(40))
    with pytest.raises(RequestError, match="is no file of second moments"):
        MomentFile.open(tmp_path / "law.safetensors")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="writing the moments failed"):
        write_moments(tmp_path / "file" / "law.safetensors", MOMENTS, {})
