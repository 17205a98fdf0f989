"""A small decoder LM, pretrained on formula-made text, and what several suites do with it."""
