"""Submerge: merge fine-tuned models of one base, without training."""
