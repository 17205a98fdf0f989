"""Views agree with torch: what is done to a placeholder is what torch does to the tensor itself."""

from collections.abc import Callable

import pytest
import torch

from submerge.names._assembly import assembled
from submerge.names._placeholder import Placeholder
from submerge.names._view import View
from submerge.store import MemorySource
from submerge.store.format import _view_source as reading
from submerge.store.format._view_source import ViewSource

TENSORS = {f"t{i}": torch.arange(24.0).reshape(4, 6) + 100 * i for i in range(3)}
Operation = Callable[[list[torch.Tensor]], torch.Tensor]


def interleaved(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0].reshape(2, 2, 6).transpose(0, 1).reshape(4, 6).contiguous()


OPERATIONS: dict[str, Operation] = {
    "as it is": lambda t: t[0],
    "joined rows": lambda t: torch.cat(t, 0),
    "joined columns": lambda t: torch.cat(t, dim=-1),
    "stacked": lambda t: torch.stack(t),
    "stacked last": lambda t: torch.stack(t, dim=-1),
    "experts": lambda t: torch.cat([torch.stack([t[0], t[1]]), torch.stack([t[2], t[0]])], dim=1),
    "chunk": lambda t: torch.chunk(t[1], 2, dim=0)[1],
    "uneven chunk": lambda t: t[1].chunk(4, dim=1)[2],
    "split": lambda t: torch.split(t[2], [1, 3], dim=0)[1],
    "transposed": lambda t: t[0].t().contiguous(),
    "transposed experts": lambda t: torch.transpose(torch.stack(t), 1, 2).contiguous(),
    "part of experts": lambda t: torch.stack(t).transpose(1, 2).chunk(2, dim=1)[1].unbind(0)[2],
    "interleaved": interleaved,
    "interleaved chunk": lambda t: interleaved(t).chunk(2, dim=0)[1],
    "heads": lambda t: t[0].view(2, 2, 6).transpose(1, 0).reshape(4, 6),
    "squeezed": lambda t: t[0].unsqueeze(1).permute(2, 1, 0).squeeze(1),
    "flattened": lambda t: t[1].reshape(-1),
    "widened": lambda t: t[1].reshape(2, 2, 3, -1),
}


def values(view: View, step: int = 7, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what a view holds, read in ranges."""
    held = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    source = ViewSource(view, dtype.itemsize, {n: MemorySource(held[n]) for n in view.sources})
    out = torch.empty(view.numel, dtype=dtype)
    raw = out.view(torch.uint8).numpy().data
    for start in range(0, view.numel, step):
        count = min(step, view.numel - start)
        source.read(start, count, raw[start * dtype.itemsize : (start + count) * dtype.itemsize])
    return out.reshape(view.shape)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("waste", [0, 4])
def test_placeholders_agree_with_torch(name: str, waste: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WASTE", waste)
    wanted = OPERATIONS[name](list(TENSORS.values()))
    made = OPERATIONS[name]([Placeholder(View.of(n, tuple(t.shape))) for n, t in TENSORS.items()])
    assert isinstance(made, Placeholder)
    assert made.elements.shape == tuple(wanted.shape)
    for step in (1, 5, 7, 1000):
        assert torch.equal(values(made.elements, step), wanted)
    assert torch.equal(values(made.elements, 11, torch.bfloat16), wanted.to(torch.bfloat16))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_way_back(name: str) -> None:
    """A tensor that others were made of is found again in what they became."""
    made = OPERATIONS[name]([Placeholder(View.of(n, tuple(t.shape))) for n, t in TENSORS.items()])
    whole = OPERATIONS[name](list(TENSORS.values())).contiguous()
    for source, tensor in TENSORS.items():
        if {b.source for b in made.elements.blocks} == {source}:
            blocks = [b for b in made.elements.blocks if b.source == source]
            parameter = View.of("parameter", tuple(whole.shape))
            back = assembled(tuple(tensor.shape), [(block, parameter) for block in blocks])
            if whole.numel() < tensor.numel():
                assert back is None  # a part alone is not enough
                continue
            assert back is not None
            read = ViewSource(back, 4, {"parameter": MemorySource(whole)})
            out = torch.empty(tensor.numel())
            read.read(0, out.numel(), out.view(torch.uint8).numpy().data)
            assert torch.equal(out.reshape(tensor.shape), tensor)


def test_experts_are_found_in_a_packed_tensor() -> None:
    made = torch.cat(
        [torch.stack([Placeholder(View.of(n, (4, 6))) for n in pair]) for pair in (("a", "b"), ("c", "d"))],
        dim=1,
    )
    packed = torch.randn(2, 8, 6)
    parameter = View.of("packed", (2, 8, 6))
    for name, part in {
        "a": packed[0, :4],
        "b": packed[1, :4],
        "c": packed[0, 4:],
        "d": packed[1, 4:],
    }.items():
        blocks = [b for b in made.elements.blocks if b.source == name]
        back = assembled((4, 6), [(block, parameter) for block in blocks])
        assert back is not None
        assert len(back.blocks) == 1
        assert back.alias is None  # it is a part, though it may begin where the packed one does
        read = ViewSource(back, 4, {"packed": MemorySource(packed)})
        out = torch.empty(24)
        read.read(0, 24, out.view(torch.uint8).numpy().data)
        assert torch.equal(out.reshape(4, 6), part)


def test_an_alias_is_the_same_tensor() -> None:
    view = View.of("t", (2, 3))
    assert view.alias == "t"
    assert view.unsqueeze(0).squeeze(0).alias == "t"
    assert View.joined([view.narrow(0, 0, 1), view.narrow(0, 1, 1)], 0).alias is None
    assert view.narrow(0, 0, 1).alias is None
    assert view.permute([1, 0]).alias is None
    assert View.of("scalar", ()).alias == "scalar"


def test_what_computes_is_refused() -> None:
    held = Placeholder(View.of("t", (2, 3)))
    for wrong in (
        lambda: held + 1,
        lambda: held[0],
        lambda: held.float(),
        lambda: torch.cat([held, held.t()]),
    ):
        with pytest.raises(NotImplementedError):
            wrong()
