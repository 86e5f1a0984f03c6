"""The workers: ``celery -A tasks worker``, ``celery -A tasks beat``, ``celery -A tasks flower``."""

from tasks.celery import app

__all__ = ["app"]
