"""Models and data: what a version consists of, on its way in and out, and its tensors as numbers."""
