"""The mechanism of every gate: modules that run with updates of their own for samples, tokens or all rows.

It knows no method, no folder and no recipe: an `Assignment` says which updates act on which rows, a
`GatedModule` runs one module so, and `Gate` is what all of them share.

    assignments   SampleAssignment, TokenAssignment, …        which updates act on which rows
    updates       GatedFactors, GatedDense, GatedTable        what members add to a parameter
                  GatedProducts                               the same, of kernels and packed experts
                  GatedAssembly                               the same, of the tensors that it is made of
                  GatedValues                                 what they replace it by
    modules       GatedLinear, GatedEmbedding, …              how a kind of module runs with them
    branches      SelectedBranches, MixedBranches, Heads      parameter sets of one module
                  PrototypeBranches                           mixed by what the module is given
    observe       Observer, StopForward                       passes that only look
    kinds         token_modules                               in which tokens may have parameters of their own
    reroute       rerouted                                    passes in which a function runs modules
    replaced      replace_parameters, reader_of               parameters that other modules read
"""

from submerge.gating._assembled import GatedAssembly, place_blocks
from submerge.gating._assignment import (
    Assignment,
    ConstantAssignment,
    ConstantScales,
    MixtureAssignment,
    ResidentAssignment,
)
from submerge.gating._batch import cut, each, joined, leaves, reordered, tensors
from submerge.gating._branches import Branches, MixedBranches, SelectedBranches, branch_module
from submerge.gating._by_sample import SampleAssignment
from submerge.gating._by_token import TokenAssignment
from submerge.gating._cache import Recent
from submerge.gating._foreign_reads import reader_of
from submerge.gating._gate import Gate
from submerge.gating._gated_dense import GatedDense, GatedSum
from submerge.gating._gated_embedding import GatedEmbedding
from submerge.gating._gated_factors import GatedFactors, GatedTable
from submerge.gating._gated_linear import GatedLinear, GatedMap, is_linear_map, is_transposed
from submerge.gating._gated_model import GatedModel, parameter_of, parameter_places
from submerge.gating._gated_module import GatedModule, GatedOther
from submerge.gating._gated_products import GatedProducts
from submerge.gating._gated_rows import GatedLayerNorm, GatedRows
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._heads import CompetingHeads, Heads, best_head, head_width
from submerge.gating._layout import Group, Layout, Span, UnsplitError
from submerge.gating._modules import gate_module, ungate_module
from submerge.gating._observe import Observer, StopForward, is_same, observe
from submerge.gating._positions import positions_apart
from submerge.gating._prototype_branches import ModuleInputs, PrototypeAssignment, PrototypeBranches
from submerge.gating._replaced import ReplacedParameter, replace_parameters, restore_parameters
from submerge.gating._reroute import Run, rerouted
from submerge.gating._token_modules import TokenModules, token_modules
from submerge.gating._values import GatedValues

__all__ = [
    "Assignment",
    "Branches",
    "CompetingHeads",
    "ConstantAssignment",
    "ConstantScales",
    "Gate",
    "GatedAssembly",
    "GatedDense",
    "GatedEmbedding",
    "GatedFactors",
    "GatedLayerNorm",
    "GatedLinear",
    "GatedMap",
    "GatedModel",
    "GatedModule",
    "GatedOther",
    "GatedProducts",
    "GatedRows",
    "GatedSum",
    "GatedTable",
    "GatedUpdate",
    "GatedValues",
    "Group",
    "Heads",
    "Layout",
    "MixedBranches",
    "MixtureAssignment",
    "ModuleInputs",
    "Observer",
    "PrototypeAssignment",
    "PrototypeBranches",
    "Recent",
    "ReplacedParameter",
    "ResidentAssignment",
    "Run",
    "SampleAssignment",
    "SelectedBranches",
    "Span",
    "StopForward",
    "TokenAssignment",
    "TokenModules",
    "UnsplitError",
    "best_head",
    "branch_module",
    "cut",
    "each",
    "gate_module",
    "head_width",
    "is_linear_map",
    "is_same",
    "is_transposed",
    "joined",
    "leaves",
    "observe",
    "parameter_of",
    "parameter_places",
    "place_blocks",
    "positions_apart",
    "reader_of",
    "reordered",
    "replace_parameters",
    "rerouted",
    "restore_parameters",
    "tensors",
    "token_modules",
    "ungate_module",
]
