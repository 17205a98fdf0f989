"""Benchmarks of Submerge against its peers."""
