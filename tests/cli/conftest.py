"""What tests of the commands share."""

from pathlib import Path

import pytest

from _models import Family, family


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path / "models", tokens={"a": 0, "b": 1})


@pytest.fixture
def recipe(made: Family) -> Path:
    return made.write_recipe(
        "ties",
        {
            "density": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}],
            "normalize": True,
        },
    )
