"""Celery's own settings, each with its reason. The relay's settings are in capture/settings.py."""

from datetime import timedelta

from kombu import Exchange, Queue

from capture.handoff import BACKLOG, LIVE, RECOVER, SWEEP

# --- what there is to run -------------------------------------------------------------------------
imports = ("tasks.upload", "tasks.register", "tasks.recover", "tasks.sweep")
# Each bound to an exchange of its own name: by default both would hang on the first one's.
task_queues = tuple(Queue(name, Exchange(name), routing_key=name) for name in (LIVE, BACKLOG))
task_default_queue = LIVE
# A mistyped queue would swallow messages that no worker ever reads.
task_create_missing_queues = False

# --- messages: names only -------------------------------------------------------------------------
# Pickle runs whatever a message says; a message needs two names.
task_serializer = "json"
accept_content = ["json"]
enable_utc = True

# Celery's own ends the worker on a message that it cannot make sense of, and the next worker as well; and it
# waits for up to half a minute before it looks for its broker again.
worker_consumer = "tasks.consumer:RelayConsumer"

# --- no message is done before its work is --------------------------------------------------------
task_acks_late = True
# A child killed in mid-upload: without this its message counts as done.
task_reject_on_worker_lost = True
# A task that ran into its hard limit stays owed; recover brings it back, so the message itself may go.
# (Requeued at once it would take its child down again and again, ahead of everything else.)
task_acks_on_timeout = True
task_acks_on_failure = True
# Uploads in flight go on when the broker's connection is lost: the segment's lock keeps a second worker off.
worker_cancel_long_running_tasks_on_connection_loss = False
# One task per process and no hoard: at 4 a new segment waited five times as long behind old ones.
worker_prefetch_multiplier = 1

# --- what it costs --------------------------------------------------------------------------------
# The file system says what was delivered; a result backend would cost a quarter more CPU to repeat it.
task_ignore_result = True
# Task events cost close to half of the throughput; Flower switches them on while it watches.
worker_send_task_events = False
task_send_sent_event = False

# --- limits behind each attempt's own deadline ----------------------------------------------------
# For messages that bring none; uploads carry limits worked out from the segment's size.
task_soft_time_limit = 120
task_time_limit = 140
# Soft limits exist in this pool alone; with any other a silent cloud would pin a worker for ever.
worker_pool = "prefork"
# Recycle children rarely: a new one costs more than a hundred uploads.
worker_max_tasks_per_child = 10_000

# --- a broker that comes and goes -----------------------------------------------------------------
broker_connection_retry_on_startup = True
# Never give up: a count means that the worker ends itself after so many minutes without a broker.
broker_connection_max_retries = None
# Survive a broker that is out of memory or being loaded; without it the worker ends.
broker_channel_error_retry = True
broker_connection_timeout = 4
# Warn-free start on 5.x: says that the retry above is meant for start-up, too.
broker_connection_retry = True
broker_transport_options = {
    # A message whose worker vanished comes back after this. Above hard limit + longest countdown for
    # ordinary segments; a longer upload is found locked by the second worker, which ends quietly.
    "visibility_timeout": 150,
    # How often that is looked at; by default it takes more than a minute and a half longer.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # A half-open connection is noticed in about ten seconds; by default not at all.
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 5,
    # live before backlog, in the order of -Q.
    "queue_order_strategy": "priority",
}

# --- beat -----------------------------------------------------------------------------------------
# In memory: the schedule is fixed, and a schedule file would only be one more thing to corrupt.
beat_scheduler = "tasks.beat:Scheduler"
beat_max_loop_interval = 5
beat_schedule = {
    # A tick that nobody took in time is worth nothing: the next one does its work. Long enough for the
    # clocks of two hosts to differ: a worker that is ahead of beat would throw all of them away. An hour's
    # worth of ticks, after a time without a worker, is done in a second.
    "recover": {
        "task": RECOVER,
        "schedule": timedelta(seconds=5),
        "options": {"queue": LIVE, "expires": 3600},
    },
    "sweep": {
        "task": SWEEP,
        "schedule": timedelta(seconds=60),
        "options": {"queue": LIVE, "expires": 3600},
    },
}

# --- what is said ---------------------------------------------------------------------------------
# Our own logging: state changes, with camera and session, and no line per task.
worker_hijack_root_logger = False
worker_redirect_stdouts = False
