"""Suite continual-6: six tasks of six image domains, one after another, on a decoder LM with a projector."""
