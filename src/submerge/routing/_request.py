"""What a caller says of the inputs of one call, checked: their tasks, groups, forms, and a prior."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from submerge.errors import Problem, RequestError, few
from submerge.routing._choose import group_numbers

__all__ = ["FORMS", "RoutingRequest"]

FORMS = ("any", "single", "pair")


@dataclass(frozen=True)
class RoutingRequest:
    """What a caller says of a batch of inputs; None where nothing is said.

    Attributes:
        task: a name, or one for each input: nothing is routed.
        group: an id for each input, or "batch": inputs of one id get one decision.
        form: "single" or "pair", or one for each input, where the inputs do not show it.
        prior: log-probabilities of the tasks [B, T], which count beside what the model shows.

    Examples:
        >>> from submerge.routing import RoutingRequest
        >>> call = {"input_ids": [[1, 2]], "task": "code"}
        >>> RoutingRequest.taken_from(call).task, call
        ('code', {'input_ids': [[1, 2]]})
    """

    task: Any = None
    group: Any = None
    form: Any = None
    prior: Any = None

    @classmethod
    def taken_from(cls, arguments: MutableMapping[str, Any]) -> RoutingRequest:
        """Return what the keyword arguments of a call say, which are taken out of them."""
        return cls(**{field.name: arguments.pop(field.name, None) for field in fields(cls)})

    def tasks(self, names: Sequence[str], size: int) -> list[int] | None:
        """Return the number of each input's task; None where tasks have to be found.

        Raises `RequestError` for a task that is not there.
        """
        if self.task is None and len(names) > 1:
            return None
        task = names[0] if self.task is None else self.task
        several = isinstance(task, Iterable) and not isinstance(task, str)
        wanted = list(task) if several else [task] * size
        if len(wanted) != size:
            what = f"task names {len(wanted)} inputs, and there are {size}"
            raise RequestError(Problem(what, "task", "give one name, or one for each input"))
        for name in wanted:
            if name not in names:
                hint = f"there are {few(names, 20)}"
                raise RequestError(Problem(f"there is no task {name!r}", "task", hint))
        return [names.index(name) for name in wanted]

    def groups(self, size: int, device: torch.device, *, batch_is_group: bool) -> torch.Tensor | None:
        """Return the number of each input's group [B]; None where each stands for itself."""
        group = "batch" if self.group is None and batch_is_group else self.group
        if group is None:
            return None
        ids = [0] * size if isinstance(group, str) and group == "batch" else list(group)
        if len(ids) != size:
            what = f"group names {len(ids)} inputs, and there are {size}"
            raise RequestError(Problem(what, "group", 'give one id for each input, or "batch"'))
        return group_numbers([i.item() if isinstance(i, torch.Tensor) else i for i in ids], device)

    def allowed(self, task_forms: Sequence[str], inputs: Mapping[str, Any], size: int) -> torch.Tensor | None:
        """Return which tasks take each input [B, T], by its form; None where that leaves none out."""
        if all(one == "any" for one in task_forms):
            return None
        forms = self._forms(inputs, size)
        fits = [[f == "any" or t in ("any", f) for t in task_forms] for f in forms]
        if untaken := next((f for f, row in zip(forms, fits, strict=True) if not any(row)), None):
            what = f"no task takes inputs of the form {untaken}"
            raise RequestError(Problem(what, "form", "check the inputs"))
        return torch.tensor(fits)

    def _forms(self, inputs: Mapping[str, Any], size: int) -> list[str]:
        """Return each input's form: as told, or by the second segment's token types."""
        if self.form is None:
            types = inputs.get("token_type_ids")
            if not isinstance(types, torch.Tensor):
                return ["any"] * size
            return ["pair" if pair else "single" for pair in (types > 0).any(-1).tolist()]
        forms = [self.form] * size if isinstance(self.form, str) else list(self.form)
        wrong = [one for one in forms if one not in FORMS]
        if wrong or len(forms) != size:
            count = f"form names {len(forms)} inputs, and there are {size}"
            what = f"form is {wrong[0]!r}" if wrong else count
            raise RequestError(Problem(what, "form", f"one of {', '.join(FORMS)}, or one for each input"))
        return forms

    def log_prior(self, size: int, count: int, *, standardised: bool) -> torch.Tensor | None:
        """Return what the caller knows of the tasks [B, T]; None where that is nothing.

        It needs `standardised` scores to stand beside.
        """
        prior = self.prior
        if prior is None:
            return None
        if not isinstance(prior, torch.Tensor) or tuple(prior.shape) != (size, count):
            kind = list(prior.shape) if isinstance(prior, torch.Tensor) else type(prior).__name__
            what = f"prior is {kind}, and must be numbers of shape {[size, count]}"
            raise RequestError(Problem(what, "prior", "give each input a log-probability of every task"))
        if not prior.amax(1).isfinite().all():  # NaN, +inf, or −inf for every task
            what = "prior leaves an input no task, or is no number"
            raise RequestError(Problem(what, "prior", "use −inf for tasks that are ruled out, and no others"))
        if not standardised:
            raise RequestError(Problem("prior does not go with select: weighted", "prior", "use top1"))
        return prior.detach()
