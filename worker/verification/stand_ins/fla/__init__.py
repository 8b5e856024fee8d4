"""A stand-in for flash-linear-attention on a CPU: its mathematics step by step, none of its kernels."""
