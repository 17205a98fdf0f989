"""torch and numpy, each imported at its first use; and packages that need not be there.

A recipe is read and refused by what the methods are called and by their options, without any arithmetic, and
tensors that are merged by ranges need numpy alone. So the floors up to the engine write
`from submerge.deferred import torch`, and mean by it what `import torch` means, but a command that computes
nothing with it does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from submerge.errors import Problem, RequestError

__all__ = ["np", "npt", "quietly", "required", "torch"]

_PIP = {
    "PIL": "pillow",
    "transformers": '"submerge[models]"',
}
"""What to tell pip, where that is not the package's own name."""


class _Deferred(ModuleType):
    """Stands for the module of its name; what is looked up in it is looked up there."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)  # the next look costs what it costs in any module: loops look often
        return value

    def __dir__(self) -> list[str]:
        return dir(import_module(self.__name__))


if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
else:
    np = _Deferred("numpy")
    npt = _Deferred("numpy.typing")
    torch = _Deferred("torch")


def required(module: str, who: str) -> ModuleType:
    """Return a module of a package that Submerge does not depend on, for `who` ("`--plot` needs").

    Raises:
        RequestError: the package is not installed, or cannot be imported; with the line for pip.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        what = f"{who} the package {package}"
        if error.name == package:
            raise RequestError(Problem(what, "", f"pip install {_PIP.get(package, package)}")) from None
        what += f", and that which is installed cannot be used ({error})"
        raise RequestError(Problem(what, "", f"pip install --upgrade {package}")) from error


@contextmanager
def quietly(logging: Any) -> Iterator[None]:
    """Keep `transformers.logging` to errors inside, without progress bars, and leave it as it was."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
