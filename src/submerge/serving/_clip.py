"""A CLIP whose heads are texts: logits are scaled cosines of projected images and the classes' texts.

    logits = exp(logit_scale) · f / ‖f‖ · (w_c / ‖w_c‖),    f: the class token, projected; w_c: class c's text

so that a task's head is one linear map of f / ‖f‖. It is the head of the paper's experiments, which
transformers has for one set of texts at a time, in `CLIPModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

__all__ = ["HEAD", "as_linear", "is_linear", "is_texts", "text_classifier"]

TEXTS, SCALE, HEAD = "class_texts", "logit_scale", "text_head"


def is_texts(head: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a task's head is made of class texts."""
    return TEXTS in head


def is_linear(head: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a task's head is what `as_linear` makes of class texts."""
    return f"{HEAD}.weight" in head


def as_linear(head: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the linear map [C, d] of unit features that class texts and their scale are."""
    scale = head[SCALE].double().exp().reshape(())
    return {f"{HEAD}.weight": (scale * normalize(head[TEXTS].double(), dim=-1)).float()}


def text_classifier() -> type:
    """Return the class of transformers that projects images, with a head of class texts."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.modeling_outputs import ImageClassifierOutput

    class TextClassifier(CLIPVisionModelWithProjection):  # type: ignore[no-untyped-call]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.text_head = nn.Linear(config.projection_dim, config.num_labels, bias=False)
            self.post_init()  # type: ignore[no-untyped-call]

        def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
            """Return the logits of images [B, 3, h, w]."""
            outputs = super().forward(pixel_values, **kwargs)
            logits = self.text_head(normalize(outputs.image_embeds, dim=-1))
            return ImageClassifierOutput(
                logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            )

    # transformers finds by a class's name what the tensors of older files are called in it
    TextClassifier.__name__ = CLIPVisionModelWithProjection.__name__
    return TextClassifier
