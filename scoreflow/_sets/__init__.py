"""Folders of samples by seed: made by any number of processes, and read."""
