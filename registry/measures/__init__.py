"""Measures: what versions score, and the guards that hold scores against bounds."""
