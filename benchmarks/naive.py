"""The worker that everybody writes first: one task for each file, a client in each process, and nothing else.

No digest, no journal, no lock, no sync, no deadline of its own, no retry: a measure for what Celery itself
costs. ``celery -A benchmarks.naive worker``, with the broker in NAIVE_BROKER.
"""

import os
from functools import lru_cache
from pathlib import Path

import httpx
from celery import Celery

QUEUE = "naive"
TASK = "naive.send"

app = Celery("naive", broker=os.environ.get("NAIVE_BROKER", "memory://"))
app.conf.update(task_ignore_result=True, task_default_queue=QUEUE)


@lru_cache(maxsize=1)
def _client() -> httpx.Client:
    return httpx.Client(trust_env=False, timeout=60.0)


@app.task(name=TASK)
def send(url: str, path: str) -> None:
    """Post a file, and delete it when it was confirmed."""
    headers = {"X-API-Key": "benchmark", "Content-Type": "video/mp2t"}
    with Path(path).open("rb") as file:
        headers["Content-Length"] = str(os.fstat(file.fileno()).st_size)
        answer = _client().post(url, headers=headers, content=file)
    if answer.status_code == httpx.codes.NO_CONTENT:
        Path(path).unlink()
