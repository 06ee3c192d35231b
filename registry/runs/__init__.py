"""Runs: steps that are made ready, done and recorded, here or elsewhere."""
