"""What a step of `learn_coefficients` costs, beside a plain implementation of the paper's equations."""
