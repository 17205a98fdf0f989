"""MASS, written again for the tests: dense SVDs in float64, a copy of the model for each sample, two passes.

Nothing here is shared with the library. Updates, merges and residuals are formed as the paper writes them, as
matrices of full size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

State = dict[str, torch.Tensor]


def polar(x: torch.Tensor) -> torch.Tensor:
    """Return the polar factor by an SVD, on the numerical range of x."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    held = s > 1e-6 * s[0]
    return u[:, held] @ vh[held]


@dataclass
class Reference:
    """A base's parameters, those of T fine-tunes under the same names, and what each has besides.

    `tables` names those whose rows are looked up, or are logits: a set of tasks gets their updates' mean.
    """

    base: State
    tuned: Sequence[State]
    heads: Sequence[State] = ()
    rank: int | None = None
    tables: frozenset[str] = frozenset()
    triplets: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    _known: dict[tuple[int, ...], State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.base.items():
            if values.is_floating_point() and values.ndim == 2:
                side = min(values.shape)
                r = self.rank or int(side / len(self.tuned))
                if r >= 1 and side >= 2:
                    self.triplets[name] = [self._cut(t[name] - values, r) for t in self.tuned]

    @staticmethod
    def _cut(delta: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        r = min(r, int((s > 1e-6 * s[0]).sum())) if s[0] > 0 else 0
        return u[:, :r], s[:r], vh[:r]

    def merged(self, tasks: Sequence[int]) -> State:
        """Return θ_0 + Δ_S."""
        if tuple(tasks) in self._known:
            return self._known[tuple(tasks)]
        found: State = {}
        for name, values in self.base.items():
            if not values.is_floating_point():
                found[name] = values
            elif name in self.triplets:
                parts = [self.triplets[name][t] for t in tasks]
                u = torch.cat([p[0] for p in parts], dim=1)
                s = torch.cat([p[1] for p in parts])
                v = torch.cat([p[2] for p in parts])
                if name in self.tables:
                    found[name] = (values.double() + u @ torch.diag(s) @ v / len(tasks)).to(values.dtype)
                    continue
                delta = polar(u) @ torch.diag(s) @ polar(v.T).T if len(s) else 0.0
                found[name] = (values.double() + delta).to(values.dtype)
            else:
                mean = sum(self.tuned[t][name].double() - values.double() for t in tasks) / len(tasks)
                found[name] = (values.double() + mean).to(values.dtype)
        self._known[tuple(tasks)] = found
        return found

    def plain(self) -> State:
        """Return the plain checkpoint: the merge of all tasks, where nothing of the tables is cut."""
        found = dict(self.merged(range(len(self.tuned))))
        for name in self.tables & found.keys():
            mean = sum(t[name].double() for t in self.tuned) / len(self.tuned)
            found[name] = mean.to(self.base[name].dtype)
        return found

    def residuals(self, name: str, z: torch.Tensor) -> torch.Tensor:
        """Return ‖z − V_tᵀ V_t z‖ for z [n] and every task."""
        z = z.double()
        return torch.stack([(z - v.T @ (v @ z)).norm() for _, _, v in self.triplets[name]])


def zscore(r: torch.Tensor) -> torch.Tensor:
    return (r.mean() - r) / (r.std() + 1e-6)


def site_inputs(model: Any, modules: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what each module takes in while the model runs."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, args[0])
        )
        for name in modules
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def routed(
    reference: Reference,
    model: Any,
    sites: Sequence[Sequence[str]],
    inputs: Mapping[str, torch.Tensor],
    *,
    pool: str = "mean",
    first: State | None = None,
) -> torch.Tensor:
    """Return the score of every task [T] for one sample: z-scores, averaged over a site's maps, then sites.

    `model` is any model of the architecture; `first` are the parameters of the first pass (default: all
    tasks merged).
    """
    router = copy.deepcopy(model)
    router.load_state_dict(first or reference.plain(), strict=False)
    names = [name for site in sites for name in site]
    seen = site_inputs(router, names, inputs)
    mask = inputs.get("attention_mask")
    scores = []
    for site in sites:
        found = []
        for name in site:
            x = seen[name][0]
            if pool == "cls":
                r = reference.residuals(f"{name}.weight", x[0])
            elif pool == "tokens":
                squares = [reference.residuals(f"{name}.weight", token).square() for token in x]
                r = torch.stack(squares).mean(0).sqrt()
            else:
                tokens = x if mask is None else x[mask[0].bool()]
                r = reference.residuals(f"{name}.weight", tokens.mean(0))
            found.append(zscore(r))
        scores.append(torch.stack(found).mean(0))
    return torch.stack(scores).mean(0)


def with_heads(
    scores: torch.Tensor, reference: Reference, model: Any, inputs: Mapping[str, torch.Tensor], first: State
) -> torch.Tensor:
    """Return 24 Var(S) S + log Σ exp of each head's outputs on the first pass.

    One output says nothing, and counts as half a deviation above the mean of the others.
    """
    said = []
    for head in reference.heads:
        whole = copy.deepcopy(model)
        whole.load_state_dict(first, strict=False)
        for name, values in head.items():
            path, _, local = name.rpartition(".")
            setattr(whole.get_submodule(path), local, torch.nn.Parameter(values.clone()))
        with torch.no_grad():
            logits = whole(**inputs).logits[0].double()
        said.append(logits.exp().sum().log() if len(logits) > 1 else None)
    told = torch.stack([one for one in said if one is not None])
    level = told.mean() + 0.5 * (told - told.mean()).square().mean().sqrt()
    return 24 * scores.var() * scores + torch.stack([level if one is None else one for one in said])


def selected(scores: torch.Tensor, threshold: float = 0.2, most: int = 3) -> tuple[int, ...]:
    """Return the tasks whose share of softmax(scores) is above the threshold, at most K; else the best."""
    shares = scores.softmax(0)
    order = sorted(range(len(scores)), key=lambda t: (-float(shares[t]), t))
    chosen = [t for t in order if shares[t] > threshold][:most]
    return tuple(sorted(chosen or order[:1]))


def answer(
    reference: Reference, model: Any, tasks: Sequence[int], head: int, inputs: Mapping[str, torch.Tensor]
) -> Any:
    """Return the output of a copy of the model with θ_S and one task's head."""
    whole = copy.deepcopy(model)
    whole.load_state_dict(reference.merged(tasks), strict=False)
    for name, values in (reference.heads[head] if reference.heads else {}).items():
        path, _, local = name.rpartition(".")
        setattr(whole.get_submodule(path), local, torch.nn.Parameter(values.clone()))
    with torch.no_grad():
        return whole(**inputs)
