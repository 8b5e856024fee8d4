"""A stand-in for mamba_ssm on a CPU: its mathematics step by step, none of its kernels."""

__version__ = "2.2.4"
