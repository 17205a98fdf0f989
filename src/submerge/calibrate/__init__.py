"""Passes over the user's data: what reducers gather of a model's activations, and the null-space ratio.

batches      read_items, batches                    data as batches of a model's inputs
images       open_image, prepare_image              in the form that a model's processor takes
passes       collect, Reducer, NullSpaceRatio       what is gathered of the inputs of modules
moments      second_moments, layer_input, Mean      what least squares need of them
prototypes   task_prototypes, question_vectors      by which an image, or a question, is told to be of a task
adapters     attached                               adapters at a model's modules, with scales λ
null space   null_space_ratio, null_space_curve     which adapter knows which inputs, and ω(λ)
prompts      prompt_states                          what a model makes of a few texts, layer by layer
learning     learn_coefficients, calibrate_recipe   merge coefficients from unlabelled inputs
"""

from submerge.calibrate._attached import AttachedAdapters, attached
from submerge.calibrate._batches import Batch, batches
from submerge.calibrate._calibration import Calibration
from submerge.calibrate._collect import ModelInputs, Reducer, collect
from submerge.calibrate._encode import encode
from submerge.calibrate._hooks import choose_hooks
from submerge.calibrate._image_files import image_files
from submerge.calibrate._image_positions import image_positions
from submerge.calibrate._image_tokens import count_as_model
from submerge.calibrate._images import EncodedImage, is_pillow, open_image, prepare_image
from submerge.calibrate._item import Item
from submerge.calibrate._items import read_items
from submerge.calibrate._layer_inputs import LayerInput, LayerMoment, layer_input
from submerge.calibrate._learn import learn_coefficients
from submerge.calibrate._null_space import null_space_curve, null_space_ratio
from submerge.calibrate._null_space_results import NullSpaceCurve, NullSpaceMatrix
from submerge.calibrate._numbers import check_counts
from submerge.calibrate._options import Step
from submerge.calibrate._processors import load_processor, processor_for
from submerge.calibrate._prompt_states import PromptPooling, PromptStates, prompt_states
from submerge.calibrate._recipe import calibrate_recipe
from submerge.calibrate._record import describe_inputs, folder_names
from submerge.calibrate._reducers import (
    MOMENT_KINDS,
    Mean,
    NullSpaceRatio,
    SecondMoment,
    block_size,
    row_space,
)
from submerge.calibrate._second_moments import second_moments, shared_inputs
from submerge.calibrate._sources import Data, Inputs, load_backbone, read_data
from submerge.calibrate._task_moments import TaskMoments, task_moments
from submerge.calibrate._task_prototypes import (
    Pooling,
    TaskPrototypes,
    pooled,
    question_vectors,
    task_prototypes,
)

__all__ = [
    "MOMENT_KINDS",
    "AttachedAdapters",
    "Batch",
    "Calibration",
    "Data",
    "EncodedImage",
    "Inputs",
    "Item",
    "LayerInput",
    "LayerMoment",
    "Mean",
    "ModelInputs",
    "NullSpaceCurve",
    "NullSpaceMatrix",
    "NullSpaceRatio",
    "Pooling",
    "PromptPooling",
    "PromptStates",
    "Reducer",
    "SecondMoment",
    "Step",
    "TaskMoments",
    "TaskPrototypes",
    "attached",
    "batches",
    "block_size",
    "calibrate_recipe",
    "check_counts",
    "choose_hooks",
    "collect",
    "count_as_model",
    "describe_inputs",
    "encode",
    "folder_names",
    "image_files",
    "image_positions",
    "is_pillow",
    "layer_input",
    "learn_coefficients",
    "load_backbone",
    "load_processor",
    "null_space_curve",
    "null_space_ratio",
    "open_image",
    "pooled",
    "prepare_image",
    "processor_for",
    "prompt_states",
    "question_vectors",
    "read_data",
    "read_items",
    "row_space",
    "second_moments",
    "shared_inputs",
    "task_moments",
    "task_prototypes",
]
