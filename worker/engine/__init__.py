"""Runs a plan: parts cut, bytes moved by several processes, digests taken on the way."""
