"""The methods again, from their formulas, on whole tensors in float64: what the engine must agree with.

A reference takes θ or Δ as a tensor [T, *shape], and the options with one value a model where they are
the models' own. It is written for reading, with sorts and full-size temporaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from _matrices import FORMULAS as MATRICES
from _matrices import SAME
from _support import Case, State, random_mask
from submerge.algebra import stream_key
from submerge.methods import METHODS

Options = Mapping[str, Any]
Streams = Sequence[int]


def expected(case: Case, base: State | None, models: Sequence[State], seed: int = 0) -> State:
    """Return the merge that the formula of the case's method gives, float64.

    Updates are rounded to float32 as the engine rounds them (float64 models: not at all), so that the
    two agree on which of two almost equal magnitudes is the larger.
    """
    method, o = METHODS[case.method], case.values
    base = base if case.base else None
    result = {}
    for key, first in models[0].items():
        stack = [m[key] for m in models]
        compute = torch.promote_types(torch.float32, first.dtype)
        if base is not None and method.base_is_model:
            stack.insert(0, base[key])
        relative = base is not None and method.origin != "zero"
        origin = base[key].to(compute) if relative else torch.zeros_like(first, dtype=compute)
        updates = torch.stack([m.to(compute) - origin for m in stack]).double()
        if not first.numel():
            result[key] = first.double()
            continue
        streams = [stream_key(seed, key, t) for t in range(len(stack))]
        result[key] = origin.double() + merged(case.method, updates, o, streams)
    return result


def merged(method: str, updates: torch.Tensor, o: Options, streams: Streams) -> torch.Tensor:
    """Return what the method's formula gives for one tensor's updates [T, *shape]."""
    if method not in MATRICES:
        return FORMULAS[method](updates, o, streams)
    if updates.ndim == 3 and min(updates[0].shape) >= 2:
        return MATRICES[method](updates, o)
    weights, scale = o.get("weight", [1.0] * len(updates)), o["scale"]
    if method in ("many", "regmean"):
        return scale * weighted(updates, weights) / sum(weights)
    if method not in ("cat", "nsc"):  # the mean, or for SSAM what `scale` says
        scale = 1 / len(updates) if method == "mass" or scale == "auto" else scale
        scale = scale / len(updates) if method not in ("mass", "ssam") else scale
    return scale * weighted(updates, weights)


def linear(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    mean = weighted(x, o["weight"])
    return mean / sum(o["weight"]) if o["normalize"] else mean


def passthrough(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    return o["scale"][0] * x[0]


def weighted(x: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    return sum(w * row for w, row in zip(weights, x, strict=True))


def arc(a: torch.Tensor, b: torch.Tensor, t: float, straight_above: float) -> torch.Tensor:
    """Return the slerp of two vectors that keep their lengths."""
    lengths = a.norm() * b.norm()
    cos = (a.flatten() @ b.flatten() / lengths).clamp(-1, 1).item() if lengths > 0 else 0.0
    if abs(cos) > straight_above:
        return (1 - t) * a + t * b
    omega = math.acos(cos)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


def slerp(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    return arc(x[0], x[1], o["t"], 0.9995)


def nuslerp(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    first, second = o["weight"]
    t = second / (first + second)
    limit = 1 - 1e-7
    if o["nuslerp_flatten"] or x[0].ndim == 0:
        return arc(x[0], x[1], t, limit)
    dim = 0 if o["nuslerp_row_wise"] else -1
    a, b = (v.movedim(dim, -1) for v in x)
    vectors = [
        arc(p, q, t, limit)
        for p, q in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), strict=True)
    ]
    return torch.stack(vectors).view(a.shape).movedim(-1, dim)


def karcher(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    vectors = x.reshape(len(x), -1)
    norms = vectors.norm(dim=1)
    units = vectors / norms.unsqueeze(1)
    u = units.mean(0) / units.mean(0).norm()
    for _step in range(o["max_iter"]):
        tangents = []
        for unit in units:
            angle = math.acos(float((u @ unit).clamp(-1, 1)))
            factor = angle / math.sin(angle) if angle > 1e-9 else 1.0
            tangents.append(factor * (unit - (u @ unit) * u))
        step = torch.stack(tangents).mean(0)
        if step.norm() <= max(o["tol"], 1e-15):
            break
        u = torch.cos(step.norm()) * u + torch.sin(step.norm()) * step / step.norm()
        u = u / u.norm()
    return (norms.mean() * u).view(x[0].shape)


def multislerp(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    vectors = x.reshape(len(x), -1)
    weights = torch.tensor(o["weight"], dtype=torch.float64).unsqueeze(1)
    weights = weights / weights.sum() if o["normalize_weights"] else weights
    norms = vectors.norm(dim=1, keepdim=True)
    units = vectors / (norms + o["eps"])
    mean = (weights * units).sum(0)
    if mean.norm() < 1e-6:
        return weighted(x, weights.flatten().tolist())
    mean = mean / mean.norm()
    tangent = (weights * (units - (units @ mean).unsqueeze(1) * mean)).sum(0)
    angle = tangent.norm() + o["eps"]
    u = torch.cos(angle) * mean + torch.sin(angle) / angle * tangent
    return ((weights * norms).sum() * u).view(x[0].shape)


def nearswap(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    return x[0] * (o["t"] / x[0].abs().clamp(min=1e-6)).clamp(0, 1)


def arcee_fusion(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    q, p = (values.softmax(-1) + 1e-8 for values in x)
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = (x[1] - x[0]).abs() * (divergence if x[0].ndim else 0.0)
    ordered = importance.flatten().sort().values
    low, median, high = (ordered[k * (len(ordered) - 1) // 4] for k in (1, 2, 3))
    return torch.where(importance >= SAME * (median + 1.5 * (high - low)), x[1], x[0])


def ram(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    changed = x.abs() > o["epsilon"]
    count = changed.sum(0)
    unique = changed & (count == 1)
    factors = torch.ones(len(x), dtype=torch.float64)
    if "r" in o:
        alone = unique.reshape(len(x), -1).sum(1)
        shared = changed.reshape(len(x), -1).sum(1) - alone
        factors = 1 + o["r"] * (shared.double() / alone.clamp(min=1)).clamp(max=o["alpha"])
    rescaled = x * unique * factors.view(-1, *[1] * x[0].ndim)
    return (rescaled + x * (changed & ~unique) / count.clamp(min=1)).sum(0)


def model_stock(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    count = len(x)
    floor = 1e-6 if o["variant"] == "mergekit" else 0.0
    whole = not o["filter_wise"] or x[0].ndim == 0
    rows = x.reshape(count, 1, -1) if whole else x.reshape(count, -1, x.shape[-1])
    cosines = []
    for s in range(count):
        for t in range(s):
            lengths = rows[s].norm(dim=1) * rows[t].norm(dim=1)
            cosines.append((rows[s] * rows[t]).sum(1) / lengths.clamp(min=floor))
    c = torch.stack(cosines).mean(0)
    ratio = count * c / (1 + (count - 1) * c)
    return (ratio.unsqueeze(1) * rows.mean(0)).view(x[0].shape)


def sce(x: torch.Tensor, o: Options, _: Streams) -> torch.Tensor:
    variance = x.var(0, unbiased=False)
    keep = int(variance.count_nonzero() * o["select_topk"])
    if o["select_topk"] < 1:
        if keep == 0:
            return torch.zeros_like(x[0])
        x = x * (variance >= SAME * variance.flatten().sort(descending=True).values[keep - 1])
    energy = x.square().reshape(len(x), -1).mean(1)
    if energy.sum() < (1e-6 if o["variant"] == "mergekit" else 1e-30):
        energy = torch.ones_like(energy)
    weights = (energy / energy.sum()).view(-1, *[1] * x[0].ndim)
    agrees = x.sign() == torch.where(x.sum(0) >= 0, 1, -1)
    divisor = (weights * agrees).sum(0)
    return (weights * x * agrees).sum(0) / divisor.clamp(min=1e-6)


def largest(x: torch.Tensor, t: int, o: Options) -> torch.Tensor:
    """Return whether each entry is among the share `density` of largest magnitude, ties included."""
    density = o["density"][t]
    if density in (0, 1):
        return torch.full_like(x, density)
    ordered = x.abs().flatten().sort(descending=True).values
    return (x.abs() >= SAME * ordered[max(1, int(density * x.numel())) - 1]).double()


def trimmed(x: torch.Tensor, t: int, o: Options) -> torch.Tensor:
    density, n = o["density"][t], x.numel()
    keep = int(density * n)
    if density == 1 or keep == 0:
        return torch.full_like(x, float(density == 1))
    ordered = x.abs().flatten().sort(descending=True).values
    dropped = min(int(o["gamma"][t] * n), n - keep)
    last = ordered[dropped + keep - 1]
    return ((x.abs() * SAME <= ordered[dropped]) & (x.abs() >= SAME * last)).double()


def probabilities(x: torch.Tensor, t: int, o: Options, ranked: bool) -> torch.Tensor:
    """Return with which probability DARE or (ranked) DELLA keeps each entry."""
    density = o["density"][t]
    if not ranked or density in (0, 1):
        return torch.full_like(x, density)
    epsilon = o["epsilon"][t]
    rows = x.reshape(1, 1) if x.ndim == 0 else x
    rank = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1).double()
    share = rank / (rows.shape[-1] - 1) if rows.shape[-1] > 1 else rank + 0.5
    probability = density - epsilon + 2 * epsilon * share
    return probability.view(x.shape)


def masked(x: torch.Tensor, t: int, method: str, o: Options, stream: int) -> torch.Tensor:
    """Return one model's update after its mask and the rescaling."""
    paper = o.get("variant") == "paper"
    if method == "ties":
        result = x * largest(x, t, o)
    elif method.startswith("breadcrumbs"):
        result = x * trimmed(x, t, o)
    elif method.startswith(("dare", "della")):
        p = probabilities(x, t, o, ranked=method.startswith("della"))
        mask = random_mask(method, stream, p).double()
        if paper and o["rescale"]:
            return x * mask / p.clamp(min=1e-30)
        result = x * mask
    else:
        return x
    if o["rescale"] and result.abs().sum() > 0:
        result = result * (x.abs().sum() / result.abs().sum())
    return result


def sparse(method: str, vote: bool) -> Callable[[torch.Tensor, Options, Streams], torch.Tensor]:
    """Return the formula of a relative of task arithmetic."""

    def formula(x: torch.Tensor, o: Options, streams: Streams) -> torch.Tensor:
        tau = torch.stack([masked(row, t, method, o, streams[t]) for t, row in enumerate(x)])
        weights = torch.tensor(o["weight"], dtype=torch.float64).view(-1, *[1] * x[0].ndim)
        if not vote:
            divisor = weights.sum() if o["normalize"] else 1.0
            return o["lambda"] * (weights * tau).sum(0) / divisor
        paper = o.get("variant") == "paper"
        ballots = tau if paper else weights * tau
        agrees = (ballots.sign() == torch.where(ballots.sum(0) >= 0, 1, -1)).double()
        merged = (weights * tau * agrees).sum(0)
        if o["normalize"]:
            divisor = (agrees if paper else weights * agrees).sum(0)
            merged = merged / torch.where(divisor == 0, 1.0, divisor)
        return o["lambda"] * merged

    return formula


FORMULAS: dict[str, Callable[[torch.Tensor, Options, Streams], torch.Tensor]] = {
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "karcher": karcher,
    "multislerp": multislerp,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": ram,
    "model_stock": model_stock,
    "sce": sce,
} | {
    name: sparse(name, vote)
    for name, vote in (
        ("task_arithmetic", False),
        ("ties", True),
        ("dare_linear", False),
        ("dare_ties", True),
        ("della", True),
        ("della_linear", False),
        ("breadcrumbs", False),
        ("breadcrumbs_ties", True),
    )
}
