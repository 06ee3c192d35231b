"""Replay: work done again and judged, and what rests on that: weights that are evicted and restored."""
