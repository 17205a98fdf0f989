"""Passes over the user's data: the items of a file, as batches of a model's inputs."""

from submerge.calibrate._batches import Batch, batches, encode, load_processor
from submerge.calibrate._items import Item, read_items

__all__ = ["Batch", "Item", "batches", "encode", "load_processor", "read_items"]
