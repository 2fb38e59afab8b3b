"""The parts of `real_weights.py`: the checkpoint, what is measured on it, the results' file, and the tables."""
