"""What files of moments and prototypes say of the data that they were made of."""

from __future__ import annotations

import os
from pathlib import Path

from submerge.engine._described_data import described_data
from submerge.engine.output._fingerprint import _data_files
from submerge.recipe import load_recipe


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


def test_images_that_a_file_names_are_part_of_it(tmp_path: Path) -> None:
    """A picture may change, and the file that names it not: `--resume` would take what the old one gave."""
    picture, path = tmp_path / "a.png", tmp_path / "inputs.jsonl"
    picture.write_bytes(b"1")
    path.write_text('{"image": "a.png", "text": "a"}\n{"image": "b.png", "text": "b"}\n')
    source = {"path": str(path), "limit": 1}
    before = described_data(source)
    assert described_data(source) == before
    assert list(before["images"]) == ["a.png"]
    picture.write_bytes(b"12")
    assert described_data(source) != before
    recipe = {"merge_method": "nsc", "base_model": "base", "models": [{"model": "a", "data": source}]}
    assert _data_files(load_recipe(recipe)) == {path, picture}
    (tmp_path / "b.png").touch()  # what is read of the file is read again when it changes
    path.write_text('{"image": "b.png", "text": "b"}\n')
    os.utime(path, ns=(0, 0))
    assert _data_files(load_recipe(recipe)) == {path, tmp_path / "b.png"}
