"""Trainers: what each reads, a file a trainer."""
