"""Wall time and peak memory of whole merges: Submerge, mergekit, and the I/O that no tool can avoid."""
