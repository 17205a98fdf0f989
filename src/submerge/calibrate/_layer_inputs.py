"""What a layer's parameters multiply: x̃ of y = Θ x̃, made of the layer's input (`algebra.merge_layer`)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from submerge.algebra import BlockMoment, LayerKind, Moment
from submerge.calibrate._reducers import MomentReducer, SecondMoment
from submerge.errors import Problem, RequestError
from submerge.gating import is_transposed

__all__ = ["LayerInput", "LayerMoment", "layer_input"]


@dataclass(frozen=True)
class LayerInput:
    """How a layer's input becomes the rows x̃ that its weight multiplies.

    Attributes:
        kind: of the layer.
        width: n, the numbers in a row; of embeddings, the rows of the table.
        rows: makes x̃ [..., n] of the input x; token ids [..., 1] of embeddings. None: x is x̃, and layers
            with one input have one moment.
    """

    kind: LayerKind
    width: int
    rows: Callable[[torch.Tensor], torch.Tensor] | None = None


def layer_input(module: nn.Module) -> LayerInput | None:
    """Return what a module's weight multiplies; None where it is no layer of the kinds of `merge_layer`.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import layer_input
        >>> norm = layer_input(torch.nn.LayerNorm(2))
        >>> norm.kind, norm.rows(torch.tensor([[1.0, 3.0]])).round(decimals=2)
        ('norm', tensor([[-1.,  1.]]))
        >>> layer_input(torch.nn.ReLU()) is None
        True
    """
    if isinstance(module, nn.Linear):
        return LayerInput("linear", module.in_features)
    if is_transposed(module):
        return LayerInput("transposed", module.get_parameter("weight").shape[0])
    if isinstance(module, nn.Embedding):
        plain = _takes_its_input_alone(module) and module.max_norm is None
        return LayerInput("embedding", module.num_embeddings, _token_ids) if plain else None
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _convolution(module)
    return _norm(module)


def _takes_its_input_alone(module: nn.Module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2  # with self


def _token_ids(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(-1)


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> LayerInput | None:
    """Return the patches that a convolution's kernels multiply."""
    if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if set(module.dilation) != {1}:
        return None
    padding = [size for size in reversed(module.padding) for _ in range(2)]
    sizes = list(zip(module.kernel_size, module.stride, strict=True))

    def patches(x: torch.Tensor) -> torch.Tensor:
        d = len(sizes)
        x = F.pad(x if x.ndim > d + 1 else x.unsqueeze(0), padding)  # [B, c, …]
        for axis, (size, step) in enumerate(sizes, 2):
            x = x.unfold(axis, size, step)  # positions in the place of the axis, and its window at the end
        return x.movedim(1, 1 + d).flatten(1 + d).flatten(1, d)  # [B, positions, c · window]

    return LayerInput("linear", module.weight[0].numel(), patches)


def _norm(module: nn.Module) -> LayerInput | None:
    """Return the normalised input x̂ of a module that computes g ⊙ x̂ + b, or (1 + g) ⊙ x̂, in any way.

    x̂ is what the module itself gives for g = 1 less what it gives for g = 0, which is true of both forms.
    """
    own = dict(module.named_parameters())
    weight = own.get("weight")
    if weight is None or weight.ndim != 1 or len(weight) < 2 or own.keys() - {"weight", "bias"}:
        return None
    if not _takes_its_input_alone(module):  # with more, it may normalise more than its input
        return None
    unit, zero = (_with_gain(module, value) for value in (1.0, 0.0))

    def normalised(x: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = unit(x.float()) - zero(x.float())
        return normal

    return LayerInput("norm", len(weight), normalised) if _is_norm(module, normalised) else None


def _with_gain(module: nn.Module, value: float) -> nn.Module:
    """Return a copy of a module, in float32, with a constant for its gain and none for its bias."""
    other = copy.deepcopy(module).float().requires_grad_(False)
    other.get_parameter("weight").fill_(value)
    if "bias" in dict(other.named_parameters()):
        other.get_parameter("bias").zero_()
    return other


def _is_norm(module: nn.Module, normalised: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Return whether the output for made-up inputs is what the gain makes of the normalised input."""
    other, zero = _with_gain(module, 0.0), _with_gain(module, 0.0)
    gain = other.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, len(gain), generator=generator).to(gain.device)
    gain.copy_(torch.randn(len(gain), generator=generator))
    try:
        with torch.no_grad():
            wanted, found = gain * normalised(x), other(x) - zero(x)
    except Exception:  # a module that takes other inputs than rows
        return False
    return found.shape == x.shape and bool(torch.allclose(found, wanted, atol=1e-4))


def _check_ids(ids: torch.Tensor, rows: int) -> None:
    """Raise `RequestError` for ids that the table, which has not looked them up yet, has no rows for."""
    beyond = ids[(ids < 0) | (ids >= rows)]
    if len(beyond):
        what = f"there is a token {int(beyond.flatten()[0])}, and a table of {rows} rows"
        hint = "look whether the tokenizer is the model's own, with no more tokens"
        raise RequestError(Problem(what, "data", hint))


class LayerMoment(MomentReducer):
    """The second moment of x̃ of one layer, or of several with one input.

    Args:
        layer: what x̃ is.
        kind: `full`, `block` or `diag`, of a linear map. That of embeddings and norms is diagonal.
        joint: whether x̃ has a constant 1, for the layer's bias: at the end of a linear map's, which has a
            `full` moment then, and beside each channel of a norm.
        dtype: of a linear map's sums; others are of float64.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import LayerMoment, layer_input
        >>> layer = layer_input(torch.nn.Linear(1, 2))
        >>> reducer = LayerMoment(layer, "full", joint=True)
        >>> reducer.update(torch.tensor([[2.0], [3.0]]))
        >>> reducer.moment.times(torch.eye(2))
        tensor([[13.,  5.],
                [ 5.,  2.]], dtype=torch.float64)
    """

    def __init__(
        self, layer: LayerInput, kind: str, *, joint: bool = False, dtype: torch.dtype = torch.float64
    ) -> None:
        self._layer, self._joint = layer, joint
        self._counts = torch.zeros(0, dtype=torch.float64)
        self._moment = SecondMoment(1)
        if layer.kind == "embedding":
            self._counts = torch.zeros(layer.width, dtype=torch.float64)
        elif layer.kind == "norm":
            self._moment = SecondMoment((1 + joint) * layer.width, "block", block=1 + joint)
        else:
            self._moment = SecondMoment(layer.width + joint, kind, dtype=dtype)

    @property
    def moment(self) -> Moment:
        if self._layer.kind == "embedding":
            return BlockMoment(self._counts.clone().view(-1, 1, 1), int(self._counts.sum()))
        return self._moment.moment

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._layer.rows is None else self._layer.rows(x)

    @torch.no_grad()
    def update(self, rows: torch.Tensor) -> None:
        if self._layer.kind == "embedding":
            _check_ids(rows, len(self._counts))
            self._counts += torch.bincount(rows.flatten().long().cpu(), minlength=len(self._counts))
            return
        if self._joint and self._layer.kind == "norm":
            rows = torch.stack([rows, torch.ones_like(rows)], dim=-1).flatten(1)
        elif self._joint:
            rows = F.pad(rows, (0, 1), value=1.0)
        self._moment.update(rows)
