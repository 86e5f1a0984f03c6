"""The capture side: cameras, the spool, the handoff to Celery, and the commands people type."""

__version__ = "0.1.0"
