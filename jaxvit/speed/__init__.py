"""Benchmarks of speed and memory: models, exported files, and the input pipeline."""
