"""Weights on disk: safetensors headers, checkpoints and Hub ids, ranged reads, preallocated writes."""

from submerge.store._adapted import lay_over, side_by_side
from submerge.store._adapter import Adapter, is_adapter, open_adapter
from submerge.store._adapter_config import ADAPTER_CONFIG
from submerge.store._adapter_fit import fit_adapter
from submerge.store._adapter_layout import LoraKeys
from submerge.store._adapter_parts import Add, Kind, LowRank, Part, Replace, Rows
from submerge.store._adapter_writer import ADAPTER_STEM, LORA_STEM, AdapterWriter
from submerge.store._aliases import Aliases, AliasGroup, find_aliases
from submerge.store._align import Aligner, Alignment
from submerge.store._bank import BANK, BankParts, write_bank
from submerge.store._checkpoint import Checkpoint, open_checkpoint, same_values
from submerge.store._config import can_untie, is_t5, layer_count, tied_embeddings, untied, vocabulary_size
from submerge.store._digest import DIGEST, digest, file_digest, hasher, joined
from submerge.store._dtypes import DTYPES, DType, dtype_named
from submerge.store._encode import encode_header
from submerge.store._header import Header, TensorEntry, read_header
from submerge.store._hub import fetch
from submerge.store._journal import JOURNAL, Journal
from submerge.store._lora_file import lora_file
from submerge.store._manifest import MANIFEST, Manifest, checked
from submerge.store._manifest_records import GateRecord, ModelRecord, TensorRecord
from submerge.store._model import open_model, split_spec
from submerge.store._module_names import loaded_names, module_names
from submerge.store._names import depths, layer_of
from submerge.store._prefixes import NameMatch, match_names, respelling
from submerge.store._shards import Shard, index_json, plan_shards
from submerge.store._source import FileSource, FileTable, MemorySource, Source, file_identity
from submerge.store._vocabulary import (
    Tokenizer,
    Vocabulary,
    VocabularyDiff,
    compare_vocabularies,
    is_tokenizer_file,
    read_vocabulary,
)
from submerge.store._writer import MemorySink, ShardWriter, Sink, preallocate, sync_file, sync_folder

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_STEM",
    "BANK",
    "DIGEST",
    "DTYPES",
    "JOURNAL",
    "LORA_STEM",
    "MANIFEST",
    "Adapter",
    "AdapterWriter",
    "Add",
    "AliasGroup",
    "Aliases",
    "Aligner",
    "Alignment",
    "BankParts",
    "Checkpoint",
    "DType",
    "FileSource",
    "FileTable",
    "GateRecord",
    "Header",
    "Journal",
    "Kind",
    "LoraKeys",
    "LowRank",
    "Manifest",
    "MemorySink",
    "MemorySource",
    "ModelRecord",
    "NameMatch",
    "Part",
    "Replace",
    "Rows",
    "Shard",
    "ShardWriter",
    "Sink",
    "Source",
    "TensorEntry",
    "TensorRecord",
    "Tokenizer",
    "Vocabulary",
    "VocabularyDiff",
    "can_untie",
    "checked",
    "compare_vocabularies",
    "depths",
    "digest",
    "dtype_named",
    "encode_header",
    "fetch",
    "file_digest",
    "file_identity",
    "find_aliases",
    "fit_adapter",
    "hasher",
    "index_json",
    "is_adapter",
    "is_t5",
    "is_tokenizer_file",
    "joined",
    "lay_over",
    "layer_count",
    "layer_of",
    "loaded_names",
    "lora_file",
    "match_names",
    "module_names",
    "open_adapter",
    "open_checkpoint",
    "open_model",
    "plan_shards",
    "preallocate",
    "read_header",
    "read_vocabulary",
    "respelling",
    "same_values",
    "side_by_side",
    "split_spec",
    "sync_file",
    "sync_folder",
    "tied_embeddings",
    "untied",
    "vocabulary_size",
    "write_bank",
]
