"""Tensors in files: safetensors headers, ranged reads, preallocated writes, the journal, a bank."""

from submerge.store.format._bank import BANK, BankParts, BankTensor, write_bank
from submerge.store.format._byte_view import InMemory, byte_view
from submerge.store.format._digest import DIGEST, digest, file_digest, hasher, joined, range_digest
from submerge.store.format._disk import UNFINISHED, pwrite_all, sync_file, sync_folder, whole_file
from submerge.store.format._dtypes import DTYPES, DType, dtype_named, torch_dtype
from submerge.store.format._file_table import FileTable, file_identity
from submerge.store.format._header import Header, TensorEntry, read_header
from submerge.store.format._header_bytes import TensorSpec, encode_header
from submerge.store.format._header_json import NPZ_HINT
from submerge.store.format._journal import JOURNAL, Journal
from submerge.store.format._json import lenient_json, optional_json, read_json, strict_json
from submerge.store.format._once import Once
from submerge.store.format._pickles import load_pickled, memory_entry
from submerge.store.format._shards import Shard, index_json, plan_shards
from submerge.store.format._source import ComputedSource, FileSource, MemorySource, Source, blocks
from submerge.store.format._spill import Spilled, SpillFile
from submerge.store.format._values import read_elements, read_values, rounded
from submerge.store.format._view_source import ViewSource
from submerge.store.format._writer import MemorySink, ShardWriter, Sink, preallocate

__all__ = [
    "BANK",
    "DIGEST",
    "DTYPES",
    "JOURNAL",
    "NPZ_HINT",
    "UNFINISHED",
    "BankParts",
    "BankTensor",
    "ComputedSource",
    "DType",
    "FileSource",
    "FileTable",
    "Header",
    "InMemory",
    "Journal",
    "MemorySink",
    "MemorySource",
    "Once",
    "Shard",
    "ShardWriter",
    "Sink",
    "Source",
    "SpillFile",
    "Spilled",
    "TensorEntry",
    "TensorSpec",
    "ViewSource",
    "blocks",
    "byte_view",
    "digest",
    "dtype_named",
    "encode_header",
    "file_digest",
    "file_identity",
    "hasher",
    "index_json",
    "joined",
    "lenient_json",
    "load_pickled",
    "memory_entry",
    "optional_json",
    "plan_shards",
    "preallocate",
    "pwrite_all",
    "range_digest",
    "read_elements",
    "read_header",
    "read_json",
    "read_values",
    "rounded",
    "strict_json",
    "sync_file",
    "sync_folder",
    "torch_dtype",
    "whole_file",
    "write_bank",
]
