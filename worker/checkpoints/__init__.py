"""Checkpoint files as bytes: safetensors folders, torch_dist folders, manifest, publishing. Knows no family."""
