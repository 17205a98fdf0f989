"""Suite multimodal-3: multimodal models of transformers on one chat LM, composed without training."""
