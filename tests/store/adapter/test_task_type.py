"""PEFT's types of tasks, as classes of transformers have them."""

import peft
import pytest
import transformers

from submerge.store.adapter import AUTO_CLASSES, task_type_of


def test_types_are_those_of_peft_and_have_classes() -> None:
    assert set(AUTO_CLASSES) == {kind.value for kind in peft.TaskType}
    assert all(hasattr(transformers, name) for name in AUTO_CLASSES.values())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("LlavaForConditionalGeneration", None),
        ("BertForSequenceClassification", None),
        ("ViTModel", None),
    ],
)
def test_the_type_of_a_class(kind: str, expected: str | None) -> None:
    config = getattr(transformers, kind).config_class()
    assert task_type_of(kind, config.to_dict()) == expected
