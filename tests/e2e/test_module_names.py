"""Models whose files have older names than their modules: adapters are laid on them all the same."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, quiet_transformers, read
from submerge.names import module_names

TARGETS = ["q_proj", "v_proj", "fc1"]


def vit() -> Any:
    transformers = quiet_transformers()
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def adapted(model: Any, seed: int) -> Any:
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return wrapped


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT as transformers saves it, an adapter of it, and both in one."""
    root = tmp_path_factory.mktemp("vit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vit().save_pretrained(root / "base")
        wrapped = adapted(vit(), 1)
        wrapped.save_pretrained(str(root / "adapter"))
        wrapped.merge_and_unload().save_pretrained(root / "full")
    names = read(root / "base").keys()
    if not any("attention.attention.query" in name for name in names):
        pytest.skip("this transformers saves the names of its modules")
    return root


def merge(made: Path, out: Path, model: str, **more: Any) -> Path:
    recipe = {
        "merge_method": "cat",
        "base_model": str(made / "base"),
        "models": [{"model": str(made / model)}],
        **more,
    }
    return submerge.merge(recipe, out, settings=ROOM).out


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    transformers = quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        model = transformers.ViTForImageClassification.from_pretrained(folder)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, str(adapter))
        pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model.eval()(pixel_values=pixels).logits  # type: ignore[no-any-return]


def test_an_adapter_folds_into_a_model_of_older_names(made: Path, tmp_path: Path) -> None:
    out, full = read(merge(made, tmp_path / "out", "adapter")), read(made / "full")
    assert out.keys() == full.keys()
    for name, tensor in full.items():
        torch.testing.assert_close(out[name], tensor, rtol=0, atol=1e-6)


def test_an_adapter_that_comes_out_has_the_names_of_modules(made: Path, tmp_path: Path) -> None:
    want = logits(made / "full")
    assert (want - logits(made / "base")).abs().max() > 0.01
    kept = merge(made, tmp_path / "kept", "adapter", output={"as": "adapter"})
    drawn = merge(made, tmp_path / "drawn", "full", output={"as": "adapter", "rank": 3})
    for folder in (kept, drawn):
        torch.testing.assert_close(logits(made / "base", folder), want, rtol=0, atol=1e-4)


def test_an_adapter_of_another_model_is_still_refused(made: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = quiet_transformers()
        other = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=20,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
            )
        )
        import peft

        wrapped = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["query"]))
        wrapped.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(submerge.RequestError, match="not there"):
        merge(made, tmp_path / "out", str(tmp_path / "other"))


@pytest.mark.parametrize(
    "config",
    [None, {}, {"architectures": ["NoSuchModel"]}, {"architectures": ["ViTModel"], "hidden_size": "x"}],
)
def test_what_transformers_cannot_tell_stays_as_it_is(config: Any) -> None:
    assert module_names(config, ["encoder.layer.0.attention.attention.query.weight"]) == {}
