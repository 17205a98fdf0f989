"""MASS: which tasks an input looks like, by what a first pass shows."""
