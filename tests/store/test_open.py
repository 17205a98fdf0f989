"""What a spec names: a model, an adapter, or both with a `+` between them."""

from pathlib import Path

import pytest

from store.helpers_adapter import by_hand
from store.helpers_store import write_single
from submerge.errors import RequestError
from submerge.store import Adapter, Checkpoint, open_config, open_model, split_spec


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("base", ("base", None)),
        ("base+lora", ("base", "lora")),
        ("org/base@main+org/lora@v1", ("org/base@main", "org/lora@v1")),
        ("a+b+c", ("a", "b+c")),
        ("c++", ("c++", None)),
    ],
)
def test_an_existing_path_is_what_it_seems(spec: str, parts: tuple[str, str | None], tmp_path: Path) -> None:
    (tmp_path / "c++").mkdir()
    assert split_spec(spec, tmp_path) == parts


def test_models_and_adapters_are_told_apart(tmp_path: Path) -> None:
    write_single(tmp_path / "model")
    by_hand(tmp_path / "lora")
    assert isinstance(open_model("model", root=tmp_path), Checkpoint)
    for spec in ("lora", "lora/adapter_model.safetensors"):
        found = open_model(spec, root=tmp_path)
        assert isinstance(found, Adapter)
        assert found.label == spec


def test_where_an_adapter_must_be(tmp_path: Path) -> None:
    write_single(tmp_path / "model")
    with pytest.raises(RequestError, match="holds no adapter"):
        open_model("model", root=tmp_path, adapter=True)


def test_a_configuration_is_read_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert open_config("model", root=tmp_path) is None
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    (folder / "model.safetensors").touch()
    for spec in ("model", "model/model.safetensors", str(folder)):
        assert open_config(spec, root=tmp_path) == {"model_type": "phi3"}
    (folder / "config.json").write_text("{")
    with pytest.raises(RequestError, match=r"config\.json"):
        open_config("model", root=tmp_path)
    with pytest.raises(RequestError, match="nowhere"):
        open_config("./nowhere", root=tmp_path)
