"""Chains: recipes and the graph they make, changed, searched and taken out of use."""
