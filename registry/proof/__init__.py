"""Proof in the weights: claims about steps, and the heritage of models that nobody knows."""
