"""What a caller says of a batch, checked; and the order in which the batch then runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from submerge.errors import RequestError
from submerge.gating import Span
from submerge.routing import RoutingRequest, batch_order

NAMES = ("one", "two", "three")
CPU = torch.device("cpu")


def test_a_request_is_taken_out_of_the_arguments() -> None:
    arguments: dict[str, Any] = {"input_ids": 1, "task": "two", "prior": None}
    assert RoutingRequest.taken_from(arguments) == RoutingRequest(task="two")
    assert arguments == {"input_ids": 1}


def test_named_tasks() -> None:
    assert RoutingRequest().tasks(NAMES, 2) is None
    assert RoutingRequest().tasks(NAMES[:1], 2) == [0, 0], "where there is one task nothing is routed"
    assert RoutingRequest(task="two").tasks(NAMES, 2) == [1, 1]
    assert RoutingRequest(task=["three", "one"]).tasks(NAMES, 2) == [2, 0]
    with pytest.raises(RequestError, match="there is no task 'four'"):
        RoutingRequest(task="four").tasks(NAMES, 1)
    with pytest.raises(RequestError, match="task names 1 inputs, and there are 2"):
        RoutingRequest(task=["one"]).tasks(NAMES, 2)
    with pytest.raises(RequestError, match="task names 0 inputs, and there are 2"):
        RoutingRequest(task=[]).tasks(NAMES, 2)
    with pytest.raises(RequestError, match="there is no task 1 — there are one"):
        RoutingRequest(task=1).tasks(NAMES, 2)


def test_groups_and_forms() -> None:
    def groups(group: Any, **more: bool) -> list[int] | None:
        found = RoutingRequest(group=group).groups(3, CPU, **{"batch_is_group": False, **more})
        return None if found is None else found.tolist()

    assert groups(None) is None
    assert groups(None, batch_is_group=True) == groups("batch") == [0, 0, 0]
    assert groups(["b", "a", "b"]) == groups(torch.tensor([7, 3, 7])) == [0, 1, 0]
    types = torch.tensor([[0, 0], [0, 1]])
    allowed = RoutingRequest().allowed(("single", "pair", "any"), {"token_type_ids": types}, 2)
    assert allowed is not None
    assert allowed.tolist() == [[True, False, True], [False, True, True]]
    assert RoutingRequest(form="pair").allowed(("any", "any"), {}, 2) is None
    with pytest.raises(RequestError, match="no task takes inputs of the form single"):
        RoutingRequest(form="single").allowed(("pair", "pair"), {}, 2)


def test_a_prior_is_finite_somewhere_and_needs_standardised_scores() -> None:
    prior = torch.tensor([[0.0, -torch.inf]])
    found = RoutingRequest(prior=prior).log_prior(1, 2, standardised=True)
    assert found is not None
    assert torch.equal(found, prior)
    with pytest.raises(RequestError, match="prior does not go with select: weighted"):
        RoutingRequest(prior=prior).log_prior(1, 2, standardised=False)
    with pytest.raises(RequestError, match=r"prior is \[1, 2\], and must be numbers of shape \[1, 3\]"):
        RoutingRequest(prior=prior).log_prior(1, 3, standardised=True)


def test_samples_of_one_set_run_together_and_come_back_in_their_order() -> None:
    sets = [(0,), (1, 2), (0,), (0,), (1, 2)]
    order = batch_order(sets, [0, 2, 0, 0, 1])
    assert order.spans == (Span((0,), 0, 3), Span((1, 2), 3, 5))
    assert order.leads == (Span((0,), 0, 3), Span((1,), 3, 4), Span((2,), 4, 5))
    x = torch.arange(5)
    assert torch.equal(order.restored(order.sorted({"x": x}, 5), 5)["x"], x)
    beams = order.sorted(x, 5).repeat_interleave(2)
    assert torch.equal(order.restored(beams, 10), x.repeat_interleave(2)), "two rows a sample stay together"
    assert batch_order([(0,), (0,), (1,)], [0, 0, 1]).order is None
