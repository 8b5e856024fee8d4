"""HF <-> Megatron-Core: config fields, tensor rules and plans; pure, and without Megatron at import time."""
