"""A hook of MkDocs: formulas become MathML when the site is built, so that pages need no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.S)
_FUNCTION = re.compile(r"<mo>(\w{2,})</mo>")  # no operator: a bracket follows it closely


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Return the page with MathML in the place of the LaTeX that pymdownx.arithmatex has marked."""

    def mathml(formula: re.Match[str]) -> str:
        latex, tag = html.unescape(formula["latex"]).strip(), formula["tag"]
        where = f"{page.file.src_uri}, formula {latex}"
        try:
            text = convert(latex, display="block" if tag == "div" else "inline")
        except Exception as error:
            raise PluginError(f"{where}: {type(error).__name__} {error}") from error
        if "\\" in text or "<mi>&</mi>" in text:  # so latex2mathml renders what it does not know
            raise PluginError(f"{where}: latex2mathml does not know a command or an environment of it")
        text = _FUNCTION.sub(r'<mo lspace="0.17em" rspace="0">\1</mo>', text)
        return f'<{tag} class="formula">{text}</{tag}>'

    return _FORMULA.sub(mathml, content)
