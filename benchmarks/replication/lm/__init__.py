"""A small decoder LM, taught from formula-made text, and what several suites do with it."""
