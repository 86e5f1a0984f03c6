"""Every metric there is, with its labels and what it says; docs/metrics.md is held to this by a test.

A label is one of a few fixed words, or a camera's id. Nothing here ever holds a source, an address, a token
or a text that somebody else wrote.
"""

from enum import StrEnum
from typing import Final

from capture.metrics_text import Metric

# --- what happened to segments: whoever writes the journal line counts it -----------------------------

CAPTURED = Metric(
    "relay_capture_captured_segments_total", "counter", "Segments that were closed and owed.", ("camera",)
)
CAPTURED_BYTES = Metric(
    "relay_capture_captured_bytes_total", "counter", "Bytes of closed and salvaged segments.", ("camera",)
)
SALVAGED = Metric(
    "relay_capture_salvaged_segments_total",
    "counter",
    "Segments that became owed after their ffmpeg or agent had died.",
    ("camera",),
)
DELIVERED = Metric(
    "relay_capture_delivered_segments_total", "counter", "Segments that the cloud confirmed.", ("camera",)
)
DELIVERED_BYTES = Metric(
    "relay_capture_delivered_bytes_total",
    "counter",
    "Bytes of segments that the cloud confirmed.",
    ("camera",),
)
REJECTED = Metric(
    "relay_capture_rejected_segments_total",
    "counter",
    "Segments that the cloud will not take, moved to rejected/.",
    ("camera",),
)
REJECTED_BYTES = Metric(
    "relay_capture_rejected_bytes_total",
    "counter",
    "Bytes of segments that the cloud will not take.",
    ("camera",),
)
DROPPED = Metric(
    "relay_capture_dropped_segments_total",
    "counter",
    "Segments removed undelivered by a limit or an age that is set.",
    ("camera",),
)
DROPPED_BYTES = Metric(
    "relay_capture_dropped_bytes_total",
    "counter",
    "Bytes of owed segments removed undelivered.",
    ("camera",),
)
GAPS = Metric("relay_capture_gaps_total", "counter", "Times without video that are over.", ("camera",))
GAP_SECONDS = Metric(
    "relay_capture_gap_seconds_total",
    "counter",
    "Length of the times without video that are over.",
    ("camera",),
)
GAP_CAUSES = Metric(
    "relay_capture_gap_causes_total",
    "counter",
    "Times without video by what began them; a cause appears when it first happened.",
    ("camera", "cause"),
)

# --- the agent: its cameras ---------------------------------------------------------------------------

CAMERAS = Metric(
    "relay_capture_cameras",
    "gauge",
    "Cameras of the configuration: enabled, disabled, or left out because their table is wrong.",
    ("setting",),
)
CAMERA_STATE = Metric(
    "relay_capture_camera_state",
    "gauge",
    "1 for the state that a camera of this agent is in, 0 for the others.",
    ("camera", "state"),
)
FRAMES = Metric(
    "relay_capture_camera_frames_total", "counter", "Frames that ffmpeg has written.", ("camera",)
)
RESTARTS = Metric(
    "relay_capture_ffmpeg_restarts_total",
    "counter",
    "Times that ffmpeg was started again for a camera.",
    ("camera",),
)
LAST_SEGMENT = Metric(
    "relay_capture_last_segment_age_seconds",
    "gauge",
    "Time since the newest segment was closed; missing while there never was one.",
    ("camera",),
)
TIME = Metric(
    "relay_capture_time_seconds",
    "gauge",
    "What the clock of this machine shows, in seconds since 1970.",
)
BUILD = Metric(
    "relay_capture_build_info",
    "gauge",
    "Always 1: the version that runs.",
    ("component", "python", "version"),
)

# --- the agent: its spool -----------------------------------------------------------------------------

OWED = Metric(
    "relay_capture_owed_segments", "gauge", "Segments that the cloud has not confirmed.", ("camera",)
)
OWED_BYTES = Metric(
    "relay_capture_owed_bytes", "gauge", "Bytes of segments that the cloud has not confirmed.", ("camera",)
)
OLDEST_OWED = Metric(
    "relay_capture_oldest_owed_age_seconds",
    "gauge",
    "Time since the oldest owed segment was closed; 0 when nothing is owed.",
    ("camera",),
)
KEPT_REJECTED = Metric(
    "relay_capture_kept_rejected_segments", "gauge", "Segments that lie in rejected/ now.", ("camera",)
)
SPOOL_BYTES = Metric(
    "relay_capture_spool_bytes",
    "gauge",
    "Bytes of all segments in the spool, whoever wrote them.",
    ("what",),
)
DISK_FREE = Metric(
    "relay_capture_spool_disk_free_bytes", "gauge", "Bytes that are free on the spool's file system."
)
DISK_SIZE = Metric("relay_capture_spool_disk_size_bytes", "gauge", "Size of the spool's file system.")
FULL_IN = Metric(
    "relay_capture_spool_full_in_seconds",
    "gauge",
    "Time until the oldest owed segments have to go, at the rates of the last minutes, or if nothing more "
    "were delivered; +Inf when it does not fill up.",
    ("uploads",),
)
DRAIN = Metric(
    "relay_capture_spool_drain_seconds",
    "gauge",
    "Time until nothing is owed at the rates of the last minutes; +Inf when the debt does not shrink.",
)
READABLE = Metric(
    "relay_capture_spool_readable", "gauge", "1 when the last look at the spool succeeded, else 0."
)
LOOK_AGE = Metric(
    "relay_capture_spool_look_age_seconds",
    "gauge",
    "How old the facts about the spool are; ages are corrected for it, amounts are not.",
)

# --- the agent: broker and cloud ----------------------------------------------------------------------

INGEST_STATE = Metric(
    "relay_capture_ingest_state",
    "gauge",
    "1 for what the workers found out about the cloud, 0 for the others; down is an open breaker.",
    ("state",),
)
INGEST_FAILURES = Metric(
    "relay_capture_ingest_failures_in_a_row", "gauge", "Attempts that failed since the last one that passed."
)
LAST_DELIVERY = Metric(
    "relay_capture_last_delivery_age_seconds",
    "gauge",
    "Time since the last confirmed segment; missing while the journals' ends name none.",
)
BROKER_UP = Metric("relay_capture_broker_up", "gauge", "1 when the broker answered, else 0.")
QUEUE = Metric(
    "relay_capture_queue_messages",
    "gauge",
    "Messages that wait in a queue, and those that workers have in hand (unacked).",
    ("queue",),
)

# --- the workers --------------------------------------------------------------------------------------

ATTEMPTS = Metric(
    "relay_capture_upload_attempts_total",
    "counter",
    "Uploads that went out, by what came of them.",
    ("camera", "outcome"),
)
RETRIES = Metric(
    "relay_capture_upload_retries_total",
    "counter",
    "Attempts that were not the first one of their message.",
    ("camera",),
)
HELD_BACK = Metric(
    "relay_capture_upload_held_back_total",
    "counter",
    "Uploads that did not go out, by the reason; the segment stays owed.",
    ("reason",),
)
ATTEMPT_SECONDS = Metric(
    "relay_capture_upload_attempt_duration_seconds",
    "histogram",
    "Time from the request to the answer, or to the end of waiting for it.",
    ("outcome",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
CONFIRM_SECONDS = Metric(
    "relay_capture_close_to_confirmed_seconds",
    "histogram",
    "Time from a segment's end to its confirmation, by the queue that brought it.",
    ("queue",),
    (
        *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
        *(300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0),
    ),
)
RECOVER_ROUNDS = Metric(
    "relay_capture_recover_rounds_total", "counter", "Rounds of recover that this worker ran."
)
RECOVER_SENT = Metric(
    "relay_capture_recover_messaged_segments_total",
    "counter",
    "Owed segments for which recover sent a message.",
)
SWEEPS = Metric("relay_capture_sweeps_total", "counter", "Sweeps that this worker ran.")
SWEPT = Metric("relay_capture_swept_sessions_total", "counter", "Session directories that a sweep removed.")
TOKEN_REFUSALS = Metric(
    "relay_capture_token_refusals_total", "counter", "Answers 401 and 403, to uploads and to registrations."
)
REFUSED_MESSAGES = Metric(
    "relay_capture_refused_messages_total", "counter", "Messages from the broker that are not ours."
)
LOCAL_ERRORS = Metric(
    "relay_capture_worker_local_errors_total",
    "counter",
    "Uploads that failed because of this machine's disk or mount.",
)
PROCESSES = Metric(
    "relay_capture_worker_processes", "gauge", "Processes of this worker that can send at once."
)


class UploadOutcome(StrEnum):
    """What came of an upload that went out."""

    OK = "ok"
    TRANSIENT = "transient"
    DEADLINE = "deadline"  # transient, too: its time was used up
    REJECTED = "rejected"
    FATAL = "fatal"


class HeldBack(StrEnum):
    """Why an upload did not go out."""

    BREAKER_OPEN = "breaker_open"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a word, no token
    NEWER_FIRST = "newer_first"
    SLOW_LINE = "slow_line"


AGENT_COUNTERS: Final = (
    *(CAPTURED, CAPTURED_BYTES, SALVAGED, DROPPED, DROPPED_BYTES, GAPS, GAP_SECONDS, GAP_CAUSES),
)
AGENT: Final = (
    *AGENT_COUNTERS,
    *(CAMERAS, CAMERA_STATE, FRAMES, RESTARTS, LAST_SEGMENT, TIME, BUILD),
    *(OWED, OWED_BYTES, OLDEST_OWED, KEPT_REJECTED, SPOOL_BYTES, DISK_FREE, DISK_SIZE, FULL_IN, DRAIN),
    *(READABLE, LOOK_AGE, INGEST_STATE, INGEST_FAILURES, LAST_DELIVERY, BROKER_UP, QUEUE),
)
WORKER_COUNTERS: Final = (
    *(DELIVERED, DELIVERED_BYTES, REJECTED, REJECTED_BYTES),
    *(SALVAGED, CAPTURED_BYTES, DROPPED, DROPPED_BYTES),
    *(ATTEMPTS, RETRIES, HELD_BACK, ATTEMPT_SECONDS, CONFIRM_SECONDS, RECOVER_ROUNDS, RECOVER_SENT),
    *(SWEEPS, SWEPT, TOKEN_REFUSALS, REFUSED_MESSAGES, LOCAL_ERRORS),
)
WORKER: Final = (*WORKER_COUNTERS, PROCESSES, TIME, BUILD)
