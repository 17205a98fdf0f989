"""MASS: which tasks an input looks like, by what a first pass shows of the tasks' subspaces.

updates      what a router must know of the model that it looks at
sites        activations that linear maps take in, found by running one input
scores       how well each task explains an activation
first pass   what a batch shows at the sites, and the heads' outputs
reference    the level from which scores count
calibration  what inputs of each task add to it
router       from that to the tasks of each input
replay       where the first pass's blocks are those of the second, too
"""

from submerge.routing._calibration import CalibrationWeights, RouterCalibration, fit_calibration
from submerge.routing._choose import TaskChoice, choose, combined, complete_evidence, group_means, zscores
from submerge.routing._first_pass import Evidence, FirstPass
from submerge.routing._gated_updates import GatedUpdates
from submerge.routing._order import BatchOrder, batch_order, order_of
from submerge.routing._reference import RouterReference
from submerge.routing._replay import Replay
from submerge.routing._request import RoutingRequest
from submerge.routing._router import Router, Routing
from submerge.routing._scores import SiteScore, TokenPooling, site_score
from submerge.routing._sites import Site, choose_sites, discover_sites
from submerge.routing._updates import InputFactors, TaskUpdates

__all__ = [
    "BatchOrder",
    "CalibrationWeights",
    "Evidence",
    "FirstPass",
    "GatedUpdates",
    "InputFactors",
    "Replay",
    "Router",
    "RouterCalibration",
    "RouterReference",
    "Routing",
    "RoutingRequest",
    "Site",
    "SiteScore",
    "TaskChoice",
    "TaskUpdates",
    "TokenPooling",
    "batch_order",
    "choose",
    "choose_sites",
    "combined",
    "complete_evidence",
    "discover_sites",
    "fit_calibration",
    "group_means",
    "order_of",
    "site_score",
    "zscores",
]
