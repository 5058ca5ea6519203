"""Benchmarks of glassformer: every time stands beside the answer that was checked first."""
