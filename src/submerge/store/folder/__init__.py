"""Folders of models as people have them: weight files, configurations, tokenizers, the Hub."""

from submerge.store.folder._byte_tokens import TEKKEN, byte_characters
from submerge.store.folder._chat_template import read_chat_template, write_chat_template
from submerge.store.folder._computation import unlike_computation
from submerge.store.folder._config import (
    can_untie,
    edited_text_parts,
    is_t5,
    layer_count,
    quantised_config,
    text_parts,
    tied_embeddings,
    unmergeable_tensors,
    untied,
    vocabulary_size,
    with_vocabulary_size,
)
from submerge.store.folder._hub import Fetched, download_hint, fetch, fetch_config, fetch_tokenizer
from submerge.store.folder._index import read_index
from submerge.store.folder._input_settings import input_settings
from submerge.store.folder._layer_config import ConfiguredLayer, with_layers
from submerge.store.folder._load_tokenizer import load_tokenizer
from submerge.store.folder._manifest import (
    MANIFEST,
    MODALITIES,
    MODALITY_GATE,
    SHARED_PARTS,
    Manifest,
    reading_manifest,
)
from submerge.store.folder._manifest_records import GateRecord, ModelRecord, TensorRecord
from submerge.store.folder._side_files import left_out, side_files
from submerge.store.folder._spec import HubId, is_readable, locate, sibling_hint, with_sibling
from submerge.store.folder._text_encoder import text_encoder
from submerge.store.folder._tokenization import Tokenization, read_tokenization, unlike_settings
from submerge.store.folder._tokenizer import Tokenizer, is_tokenizer_file
from submerge.store.folder._vocabulary import Vocabulary, read_vocabulary
from submerge.store.folder._vocabulary_diff import VocabularyDiff, compare_vocabularies
from submerge.store.folder._weight_file import (
    PICKLE_SUFFIXES,
    HoldsAdapterError,
    WeightFiles,
    choose_adapter,
    choose_weights,
    pickle_refusal,
    weights_beside,
)

__all__ = [
    "MANIFEST",
    "MODALITIES",
    "MODALITY_GATE",
    "PICKLE_SUFFIXES",
    "SHARED_PARTS",
    "TEKKEN",
    "ConfiguredLayer",
    "Fetched",
    "GateRecord",
    "HoldsAdapterError",
    "HubId",
    "Manifest",
    "ModelRecord",
    "TensorRecord",
    "Tokenization",
    "Tokenizer",
    "Vocabulary",
    "VocabularyDiff",
    "WeightFiles",
    "byte_characters",
    "can_untie",
    "choose_adapter",
    "choose_weights",
    "compare_vocabularies",
    "download_hint",
    "edited_text_parts",
    "fetch",
    "fetch_config",
    "fetch_tokenizer",
    "input_settings",
    "is_readable",
    "is_t5",
    "is_tokenizer_file",
    "layer_count",
    "left_out",
    "load_tokenizer",
    "locate",
    "pickle_refusal",
    "quantised_config",
    "read_chat_template",
    "read_index",
    "read_tokenization",
    "read_vocabulary",
    "reading_manifest",
    "sibling_hint",
    "side_files",
    "text_encoder",
    "text_parts",
    "tied_embeddings",
    "unlike_computation",
    "unlike_settings",
    "unmergeable_tensors",
    "untied",
    "vocabulary_size",
    "weights_beside",
    "with_layers",
    "with_sibling",
    "with_vocabulary_size",
    "write_chat_template",
]
