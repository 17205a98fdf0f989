"""The names of a bank of projectors, its tasks' groups, and the settings of its gate."""

from __future__ import annotations

import pytest

from submerge.errors import RequestError
from submerge.store import (
    ProjectorKey,
    ProjectorSettings,
    module_key,
    projector_groups,
    prototype_key,
    question_key,
    read_projector_key,
)

NAME = "multi_modal_projector.linear_1.weight"


def test_names_are_read_as_they_are_written():
    assert module_key(1, NAME) == f"modules.1.{NAME}"
    assert read_projector_key(module_key(1, NAME), 2) == ProjectorKey("modules", 1, NAME)
    assert read_projector_key(module_key(1, NAME), 2).is_module
    assert not read_projector_key(prototype_key(0), 2).is_module
    assert read_projector_key(question_key(0), 2) == ProjectorKey("questions", 0)


@pytest.mark.parametrize(
    "key", ["modules.2.a", "modules.0", "prototypes.0.a", "prototypes", "tasks.0.a", "a"]
)
def test_other_names_are_refused(key):
    with pytest.raises(RequestError, match="no tensor of a bank"):
        read_projector_key(key, 2)


def test_groups_are_numbered_by_their_first_task():
    tasks = [{"name": "a", "group": 0}, {"name": "b", "group": 1}, {"name": "c", "group": 0}]
    assert projector_groups(tasks) == (("a", "c"), ("b",))
    for groups in ([1, 0], [0, 2], [None, None]):
        with pytest.raises(RequestError, match="groups"):
            projector_groups([{"name": f"t{g}", "group": g} for g in groups])


def test_settings_come_back():
    settings = ProjectorSettings("projector", temperature=0, pooling="position", top=2, key="both")
    assert ProjectorSettings.from_mapping(settings.to_mapping()) == settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": True},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"pooling": "max"},
        {"centred": 1},
        {"top": 0},
        {"top": True},
        {"top": 1.5},
        {"key": "sound"},
        {"module": ""},
        {"tau": 1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        ProjectorSettings.from_mapping({"module": "projector", **wrong})
