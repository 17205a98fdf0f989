"""Which names of two models mean the same: layers, modules and tensors, with no value read."""

from submerge.names._assembly import assembled
from submerge.names._correspondence import correspond, is_buffer
from submerge.names._family import is_composite, model_types, related
from submerge.names._fused import fused_layout, is_fused, may_be_fused
from submerge.names._layers import (
    depths,
    is_before_layers,
    is_further,
    layer_index,
    layer_of,
    layer_stacks,
    with_layer,
)
from submerge.names._match import (
    NameMatch,
    has_match,
    match_names,
    respelling,
    same_parameters,
    without_training,
    without_wrappers,
)
from submerge.names._modules import (
    Loading,
    empty_model,
    loadable_model,
    loaded_names,
    loading,
    module_names,
)
from submerge.names._multimodal import (
    MultimodalParts,
    has_layers,
    is_output_head,
    module_prefix,
    multimodal_parts,
    projector_of,
)
from submerge.names._sections import module_of_each
from submerge.names._view import Block, Shape, View, contiguous_strides

__all__ = [
    "Block",
    "Loading",
    "MultimodalParts",
    "NameMatch",
    "Shape",
    "View",
    "assembled",
    "contiguous_strides",
    "correspond",
    "depths",
    "empty_model",
    "fused_layout",
    "has_layers",
    "has_match",
    "is_before_layers",
    "is_buffer",
    "is_composite",
    "is_further",
    "is_fused",
    "is_output_head",
    "layer_index",
    "layer_of",
    "layer_stacks",
    "loadable_model",
    "loaded_names",
    "loading",
    "match_names",
    "may_be_fused",
    "model_types",
    "module_names",
    "module_of_each",
    "module_prefix",
    "multimodal_parts",
    "projector_of",
    "related",
    "respelling",
    "same_parameters",
    "with_layer",
    "without_training",
    "without_wrappers",
]
