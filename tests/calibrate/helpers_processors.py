"""Small tokenizers and processors as transformers has them, and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _models import TEXT, VISION, quiet_transformers

WORDS = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER", "ASSISTANT", ":", "|", *"abcdefgh")
"""Each is one token, and its place is its number."""

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
"""A template of texts."""

PARTS = (
    "{% for m in messages %}{{ m['role'] | upper }} : "
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image> {% endfor %}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
"""A template of parts, which drops texts that are none, as those of LLaVA do."""


def ids(text: str) -> list[int]:
    """Return the numbers of words."""
    return [WORDS.index(word) for word in text.split()]


def word_tokenizer(template: str | None = CHAT) -> Any:
    """Return a tokenizer that puts `<s>` in front of a text."""
    import tokenizers as tk

    core = tk.Tokenizer(tk.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    core.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A | $B", special_tokens=[("<s>", 2), ("|", 8)]
    )
    tokenizer = quiet_transformers().PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def image_processor() -> Any:
    return quiet_transformers().CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )


def llava_processor(template: str | None = PARTS) -> Any:
    """Return a processor whose images have (16 / 8)² tokens."""
    return quiet_transformers().LlavaProcessor(
        image_processor(),
        word_tokenizer(template),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava() -> Any:
    """Return a model for `llava_processor`."""
    t = quiet_transformers()
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.LlamaConfig(**TEXT),
        image_token_index=ids("<image>")[0],
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return t.LlavaForConditionalGeneration(config).eval()


def clip_processor() -> Any:
    return quiet_transformers().CLIPProcessor(image_processor(), word_tokenizer(None))


def write_images(folder: Path, *names: str) -> list[Path]:
    """Write images of one colour each, and return their paths."""
    from PIL import Image

    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (40 * number, 7, 9)).save(path)
    return paths
