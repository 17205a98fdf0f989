"""Merges that keep a gate, at run time: gated layers, routers, and transformers models that have both."""

from submerge.gating._gate import Gate, Span
from submerge.gating._updates import Factors, GatedLayer, Kept, Whole, gate_layer
from submerge.routing._router import Routing
from submerge.serving._load import load

__all__ = ["Factors", "Gate", "GatedLayer", "Kept", "Routing", "Span", "Whole", "gate_layer", "load"]
