"""The kernels as the engine calls them: one adapter for each of its fused operations."""
