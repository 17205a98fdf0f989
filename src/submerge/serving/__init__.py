"""From a merged folder to a transformers model with a gate."""
