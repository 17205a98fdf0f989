"""Suite nli-6: six tasks of natural language inference as LoRA adapters of one pretrained chat LM."""
