"""Merges that keep a gate, at run time: gated layers, routers, and transformers models that have both."""

from submerge.runtime._gate import Gate, Span
from submerge.runtime._layers import Factors, GatedLayer, Kept, Whole, gate_layer
from submerge.runtime._load import load
from submerge.runtime._router import Routing

__all__ = ["Factors", "Gate", "GatedLayer", "Kept", "Routing", "Span", "Whole", "gate_layer", "load"]
