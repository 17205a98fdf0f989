"""From a merged folder to a transformers model with a gate, or to adapters that others serve."""

from submerge.serving._architecture import architectures
from submerge.serving._attach import attach_bank
from submerge.serving._calibrate_router import calibrate_router
from submerge.serving._controller import Call, Controller
from submerge.serving._export import Exported, export_adapters
from submerge.serving._folder import Folder, open_folder
from submerge.serving._input_names import input_names
from submerge.serving._load import CONTROLLERS, load
from submerge.serving._load_processor import load_processor
from submerge.serving._mass import MassController
from submerge.serving._modality import ModalityController
from submerge.serving._processor import ModalityProcessor
from submerge.serving._projectors import ProjectorController

__all__ = [
    "CONTROLLERS",
    "Call",
    "Controller",
    "Exported",
    "Folder",
    "MassController",
    "ModalityController",
    "ModalityProcessor",
    "ProjectorController",
    "architectures",
    "attach_bank",
    "calibrate_router",
    "export_adapters",
    "input_names",
    "load",
    "load_processor",
    "open_folder",
]
