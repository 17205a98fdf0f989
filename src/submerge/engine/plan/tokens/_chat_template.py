"""The chat template that a recipe asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.errors import few
from submerge.recipe import CHAT_TEMPLATES, Recipe
from submerge.store import Tokenizer, read_chat_template

__all__ = ["choose_chat_template", "lacking_tokens", "template_owner", "without_template"]

_TOKEN = re.compile(r"<\|[^\s|<>]+\|>")
"""What looks like a token of its own: `<|im_start|>`."""


def choose_chat_template(recipe: Recipe, inputs: Inputs) -> tuple[str | None, str]:
    """Return the template's text, and what is said of it; None where the tokenizer's own stays.

    With `auto` it is the most frequent one among the models, of equally frequent ones the earliest, as they
    stand in the recipe behind the base. Templates that differ in the space around them are one.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return None, ""
    if wanted != "auto":
        named = f"{wanted}" if wanted in CHAT_TEMPLATES else "the recipe's own"
        return CHAT_TEMPLATES.get(wanted, wanted), named
    read = (read_chat_template(model.tokenizer.folder) for model in inputs.involved.values())
    templates = [text.strip() for text in read if text is not None]
    if not templates:
        return None, "auto: no model has one"
    text, count = Counter(templates).most_common(1)[0]
    return text, f"auto: that of {count} of {len(templates)} models that have one"


def template_owner(text: str, inputs: Inputs) -> TokenizerSource | None:
    """Return the first model that has a template, unless the base has it: its turns end as it says."""
    models = (inputs.reference_model, *inputs.involved.values())
    owners = (m for m in models if (read_chat_template(m.tokenizer.folder) or "").strip() == text.strip())
    owner = next(owners, None)
    return None if owner in (None, inputs.reference_model) else TokenizerSource(owner.label, owner)


def without_template(tokenizer: Tokenizer, recipe: Recipe, inputs: Inputs) -> str:
    """Return a warning where models have a chat template, and the output will have none; else ''."""
    if recipe.composed or not tokenizer.complete or read_chat_template(tokenizer.folder) is not None:
        return ""
    models = {inputs.models[position].label: inputs.models[position] for position in inputs.participants}
    owners = [label for label, model in models.items() if read_chat_template(model.tokenizer.folder)]
    if not owners:
        return ""
    what = f"{few(owners)}: the output has no chat template, for its tokenizer's model has none"
    return f"{what}; chat_template: auto takes one of these, and tokenizer_source: MODEL the tokenizer, too"


def lacking_tokens(template: str, known: Container[str], *, transplanted: bool = False) -> str:
    """Return a warning where a template writes tokens that the tokenizer lacks; else an empty text.

    One that is `transplanted` gets no tokens besides.
    """
    lacking = [token for token in dict.fromkeys(_TOKEN.findall(template)) if token not in known]
    if not lacking:
        return ""
    hint = "add them under 'tokens' in the section 'tokenizer'"
    if transplanted:
        hint = "choose another template, or a donor that has them"
    return f"chat_template: the tokenizer lacks {few(map(repr, lacking))}: {hint}"
