"""What files of moments and prototypes say of the data that they were made of."""

from __future__ import annotations

from pathlib import Path

from submerge.engine._described_data import described_data


def test_a_folder_is_told_from_one_that_has_changed(tmp_path: Path) -> None:
    """Else a run that goes on would take what was made of other images."""
    (tmp_path / "a.png").write_bytes(b"1")
    before = described_data(str(tmp_path))
    assert described_data(str(tmp_path)) == before
    (tmp_path / "a.png").write_bytes(b"12")
    changed = described_data(str(tmp_path))
    (tmp_path / "b.png").touch()
    assert before != changed != described_data(str(tmp_path))


def test_a_file_is_known_by_its_bytes_wherever_it_is(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("w7")
    one, other = (described_data({"path": str(tmp_path / name), "limit": 2}) for name in ("a.txt", "b.txt"))
    assert one == other
    assert one["limit"] == 2
