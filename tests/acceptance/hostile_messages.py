"""Messages that no agent sends: what anybody can do who can write to the broker."""

import base64
import json
import pickle
import uuid
from dataclasses import dataclass, field
from typing import Any

from capture.handoff import (
    END_SESSION,
    LIVE,
    RECOVER,
    REGISTER_CAMERA,
    SWEEP,
    UPLOAD_BATCH,
    UPLOAD_SEGMENT,
)

HUGE = 300_000  # characters
SECRET = "hunter2-in-a-body"


@dataclass(frozen=True)
class Hostile:
    """One message as it stands in the broker's list."""

    task: object = UPLOAD_SEGMENT
    args: object = ("a", "b")
    kwargs: object = field(default_factory=dict)
    embed: object = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None  # instead of the three
    content_type: str = "application/json"
    without: tuple[str, ...] = ()
    raw: bytes | None = None  # instead of all

    def envelope(self) -> bytes:
        """Return it in kombu's Redis form."""
        if self.raw is not None:
            return self.raw
        number = str(uuid.uuid4())
        body = json.dumps([self.args, self.kwargs, self.embed]).encode() if self.body is None else self.body
        headers = {"lang": "py", "task": self.task, "id": number, "root_id": number, "parent_id": None}
        headers |= {"retries": 0, "timelimit": [None, None], "eta": None, "expires": None, "group": None}
        headers |= self.headers
        message = {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": self.content_type,
            "headers": {key: value for key, value in headers.items() if key not in self.without},
            "properties": {
                "correlation_id": number,
                "reply_to": None,
                "delivery_mode": 2,
                "delivery_info": {"exchange": LIVE, "routing_key": LIVE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
                **self.properties,
            },
        }
        for key in self.without:
            message["properties"].pop(key, None)
        for key in self.without:
            message.pop(key, None)
        return json.dumps(message).encode()


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


NAMES: dict[str, object] = {
    "dots": ["..", ".."],
    "a path": ["../../etc", "passwd"],
    "an absolute path": ["/etc", "/etc/passwd"],
    "a NUL": ["relay-segments-a\0", "b\0"],
    "lone surrogates": ["\ud800", "\udfff"],
    "full-width digits": ["relay-segments-gate-\uff12\uff10260601T120000Z-aaaaaaaa", "\uff100000001.ts"],
    "a right-to-left override": ["relay-segments-\u202egate", "\u202e.ts"],
    "terminal escapes": ["\x1b[2J\x1b]0;x\x07", "\x1b[31m"],
    "huge strings": ["a" * HUGE, SECRET * 1000],
    "numbers": [1, 1e308],
    "a huge number": [10**4000, 0],
    "not a number": [float("nan"), float("inf")],
    "nothing": [None, None],
    "lists": [["a"], ["b"]],
    "tables": [{"a": 1}, {"b": {"c": []}}],
    "too many": ["a", "b", "c", "d"],
    "too few": ["a"],
    "none at all": [],
}

CALLBACK = {"task": SWEEP, "args": [], "kwargs": {}, "options": {"queue": "planted"}, "subtask_type": None}

HOSTILE: dict[str, Hostile] = {
    **{f"{name} to upload": Hostile(args=args) for name, args in NAMES.items()},
    **{f"{name} to batch": Hostile(UPLOAD_BATCH, [[args]]) for name, args in NAMES.items()},
    **{f"{name} to register": Hostile(REGISTER_CAMERA, args) for name, args in NAMES.items()},
    **{f"{name} to end": Hostile(END_SESSION, args) for name, args in NAMES.items()},
    **{f"{name} to sweep": Hostile(SWEEP, args) for name, args in NAMES.items() if args},
    "a batch of thousands": Hostile(UPLOAD_BATCH, [[["a", "b"]] * 5000]),
    "a batch that is none": Hostile(UPLOAD_BATCH, ["abc"]),
    "recover with more": Hostile(RECOVER, ["x", "y"]),
    "keywords": Hostile(kwargs={"session": "a", "segment": "b"}),
    "keywords of the task": Hostile(args=[], kwargs={"self": "a", "session": "a", "segment": "b"}),
    "arguments that are no list": Hostile(args=7),
    "arguments that are a text": Hostile(args="ab"),
    "keywords that are no table": Hostile(kwargs=[1]),
    "no embed": Hostile(embed=None),
    "a body of two": Hostile(body=b"[[], {}]"),
    "a body that is a number": Hostile(body=b"7"),
    "a body that is a table": Hostile(body=b'{"task": "x"}'),
    "a body that is no JSON": Hostile(body=SECRET.encode() * 20_000),
    "an empty body": Hostile(body=b""),
    "a body of no UTF-8": Hostile(body=b"\xff\xfe\x00"),
    "a nested body": Hostile(body=nested(100_000)),
    "a pickled body": Hostile(body=pickle.dumps([[], {}, {}]), content_type="application/x-python-serialize"),
    "a YAML body": Hostile(body=b"!!python/object/apply:os.system [true]", content_type="application/x-yaml"),
    "an unknown content type": Hostile(content_type="application/x-nonsense"),
    "no content type": Hostile(without=("content-type",)),
    "another encoding": Hostile(headers={}, body=b"[[], {}, {}]", content_type="text/plain"),
    "an unknown task": Hostile("tasks.upload.rm_rf"),
    "a task of Celery's": Hostile("celery.backend_cleanup"),
    "a task that is a list": Hostile(["x"]),
    "a task that is a number": Hostile(7),
    "no task": Hostile(task=None),
    "without a task": Hostile(without=("task",)),
    "without an id": Hostile(without=("id",)),
    "without headers": Hostile(without=("headers",)),
    "without properties": Hostile(without=("properties",)),
    "without a delivery tag": Hostile(without=("delivery_tag",)),
    "without delivery info": Hostile(without=("delivery_info",)),
    "an id that is a list": Hostile(headers={"id": ["x"]}),
    "an id that is huge": Hostile(headers={"id": "x" * HUGE}),
    "huge headers": Hostile("tasks.upload.rm_rf", headers={"x": SECRET * 20_000}),
    "a shadow": Hostile(headers={"shadow": "y" * HUGE}),
    "an absurd ETA": Hostile(headers={"eta": "9999-12-31T23:59:59+00:00"}),
    "an ETA long ago": Hostile(headers={"eta": "0001-01-01T00:00:00+00:00"}),
    "an ETA that is none": Hostile(headers={"eta": "soon"}),
    "an ETA that is a number": Hostile(headers={"eta": 7}),
    "an expiry that is none": Hostile(headers={"expires": "never"}),
    "an expiry that is a table": Hostile(headers={"expires": {}}),
    "limits of 0": Hostile(headers={"timelimit": [0, 0]}),
    "negative limits": Hostile(headers={"timelimit": [-5, -5]}),
    "limits that are texts": Hostile(headers={"timelimit": ["a", "b"]}),
    "limits that are infinite": Hostile(headers={"timelimit": [1e400, 1e400]}),
    "three limits": Hostile(headers={"timelimit": [1, 2, 3]}),
    "limits that are a number": Hostile(headers={"timelimit": 7}),
    "huge retries": Hostile(headers={"retries": 10**30}),
    "negative retries": Hostile(headers={"retries": -10}),
    "retries that are a text": Hostile(headers={"retries": "many"}),
    "callbacks": Hostile(embed={"callbacks": [CALLBACK], "errbacks": [CALLBACK], "chain": [CALLBACK]}),
    "callbacks that are none": Hostile(embed={"callbacks": 7, "errbacks": "x", "chain": {}, "chord": 1}),
    "a chord": Hostile(embed={"chord": CALLBACK}, headers={"group": "g"}),
    "a reply to another queue": Hostile(properties={"reply_to": "planted", "correlation_id": "x"}),
    "stamps": Hostile(headers={"stamped_headers": ["a"], "a": {"b": 1}}),
    "stamps that are none": Hostile(headers={"stamped_headers": 7}),
    "not an envelope": Hostile(raw=b"hello"),
    "an envelope that is a list": Hostile(raw=b"[1]"),
    "an envelope that is a number": Hostile(raw=b"7"),
    "an empty envelope": Hostile(raw=b"{}"),
    "a nested envelope": Hostile(raw=nested(100_000)),
    "a body encoding that is none": Hostile(properties={"body_encoding": "rot13"}),
    "a body that is no base64": Hostile(
        raw=json.dumps(
            {
                "body": "é",
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {"task": UPLOAD_SEGMENT, "id": "x"},
                "properties": {
                    "delivery_tag": "x",
                    "body_encoding": "base64",
                    "delivery_info": {"exchange": LIVE, "routing_key": LIVE},
                },
            }
        ).encode()
    ),
}
