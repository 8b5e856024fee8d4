"""The outer side of Ferry: HTTP API, Python client and command line. Accepts jobs and shows their state."""
