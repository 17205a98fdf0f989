"""Passes over the user's data: what is in a file, as batches of a model's inputs."""

from submerge.calibrate._items import Item, prepared, read_items

__all__ = ["Item", "prepared", "read_items"]
