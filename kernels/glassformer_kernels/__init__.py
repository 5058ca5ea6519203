"""Triton kernels for the fused operations of glassformer."""
