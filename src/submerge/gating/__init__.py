"""Modules of a model that run with updates of their own for samples, tokens or all rows."""
