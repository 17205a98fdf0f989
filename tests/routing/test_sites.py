"""The sites of a model: found by the tensors that maps take in, and chosen by the settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from submerge.errors import RequestError
from submerge.methods import METHODS
from submerge.methods.mass import RoutingSettings
from submerge.routing import Site, choose_sites, discover_sites


def looked_at(layers: str, sites: str, **more: str) -> RoutingSettings:
    """Return a router's settings with these layers and inputs of them, and defaults otherwise."""
    defaults = {option.name: option.default for option in METHODS["mass"].options}
    given = {"routing_layers": layers, "routing_sites": sites, **more}
    return RoutingSettings.from_mapping({**defaults, **given})


@pytest.mark.parametrize(
    ("stack", "count", "layer", "position"),
    [
        ("vision_model.encoder.layers", 12, 9, 2),
        ("vision_model.encoder.layers", 24, 20, 2),
        ("vision_model.encoder.layers", 32, 24, 2),
        ("bert.encoder.layer", 6, 4, 2),
        ("encoder.block", 12, 10, 1),
        ("encoder.block", 6, 5, 1),
        ("model.layers", 1, 0, 2),
    ],
)
def test_the_papers_layer(stack: str, count: int, layer: int, position: int) -> None:
    """Layers at the end that no task changes have no sites, and count."""
    changed = max(layer + 1, count - 2)
    sites = [Site(stack, i, p, [f"{stack}.{i}.map{p}"]) for i in range(changed) for p in range(4)]
    (found,) = choose_sites(sites, looked_at("paper", "paper"), {stack: count})
    assert (found.layer, found.position) == (layer, position)
    all_of_it = choose_sites(sites, looked_at("paper", "all"), {stack: count})
    assert [site.layer for site in all_of_it] == [layer] * 4
    (half,) = choose_sites(sites, looked_at("depth:0.5", "mlp"), {stack: count})
    assert half.layer == count // 2


class Block(nn.Module):
    """A block whose first two maps take in one tensor, and whose third takes their product."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.query(x) * self.key(x))
        return y


def test_sites_are_told_apart_by_their_tensors() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(2))})
    maps = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}

    def run() -> None:
        x = torch.ones(1, 4)
        for block in model["layers"]:
            x = block(x)

    sites = discover_sites(maps, run)
    assert [(site.stack, site.layer, site.position, site.maps) for site in sites] == [
        ("layers", i, p, [f"layers.{i}.{name}" for name in names])
        for i in range(2)
        for p, names in enumerate((["query", "key"], ["out"]))
    ]
    assert not any(m._forward_pre_hooks for m in maps.values()), "nothing is looked at any more"
    with pytest.raises(RequestError, match=r"a layer has \[2\] sites, not 4"):
        choose_sites(sites, looked_at("all", "mlp"), {"layers": 2})
    with pytest.raises(RequestError, match="no input of the model is named by routing_layers 'nowhere'"):
        choose_sites(sites, looked_at("nowhere", "all"), {"layers": 2})
    first = choose_sites(sites, looked_at("auto", "all", passes="one"), {"layers": 2})
    assert [site.layer for site in first] == [0, 0], "a third of the layers where they run once"
