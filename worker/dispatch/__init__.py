"""Celery, and only Celery: what wakes workers, runs attempts in processes of their own and keeps a service together."""
