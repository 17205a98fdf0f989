"""Whole recipes beside mergekit: a stack of layers, several documents, a mixture of experts, vocabularies."""
