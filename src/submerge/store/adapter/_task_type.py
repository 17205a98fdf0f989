"""PEFT's types of tasks: which a model's class says, and which class of transformers each is loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AUTO_CLASSES", "task_type_of"]

AUTO_CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""What PEFT's types of tasks mean to transformers."""


def task_type_of(architecture: str, config: Mapping[str, Any] | None) -> str | None:
    """Return PEFT's type for adapters of a language model, by its class of transformers and configuration.

    None is for others: PEFT takes adapters without a type for any model, and with the type of a classifier it
    would look for a head among their tensors. Multimodal models are `ForConditionalGeneration`, too, but have
    no encoder of text, to which alone `SEQ_2_SEQ_LM` gives inputs.
    """
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    encodes = bool((config or {}).get("is_encoder_decoder"))
    return "SEQ_2_SEQ_LM" if encodes and architecture.endswith("ForConditionalGeneration") else None
