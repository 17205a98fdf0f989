"""Suite skills-8: eight skills of one chat LM that people would merge, scored on what it answers."""
