"""The example that `config init` writes: every key, its default, and what it is for."""

EXAMPLE = """\
# relay.toml: the settings of relay-capture. `relay-capture config check -c relay.toml` finds what is wrong.
#
# A line that begins with "#" and a key shows the default, or an example where there is none. Flags beat
# RELAY_* variables, and these beat this file. Durations are seconds, or "500ms", "90s", "15m", "1h", "7d".
#
# Where a secret can stand (ingest.token, broker.url, a camera's source and password) it can be given
#   as it is        password = 'odd/"pass\\word"'             in single quotes nothing is special
#   in a file       password = { file = "gate.password" }   on one line; looked for beside this file
#   in a variable   password = { env = "GATE_PASSWORD" }
# Keep this file to its owner (chmod 600) as long as a secret stands in it.

# How long a stop waits for uploads, and which ffmpeg to take (else the system's, or the packaged one).
#drain_timeout = 10
#ffmpeg = "/usr/bin/ffmpeg"

[ingest]
# Base URL of the cloud, and the key that it issued: in a file that is read again at each attempt, or here.
url = "https://cloud.example.com"
token_file = "relay.token"
#token = { env = "CLOUD_TOKEN" }
# Token files by camera, for workers that do not read its table; cameras.<id>.token_file does the same.
#token_files = { gate = "gate.token" }
# Status codes that confirm a segment, and what to do after 401 or 403: "stop", or "hold" and go on capturing.
#success = [204]
#on_refused = "stop"
#hold_probe_every = 30
# Deadline of one attempt, plus size / slowest_uplink (bytes per second); attempts per message.
#attempt_seconds = 30
#slowest_uplink = 64000
#tries = 4
# The most that all uploads of this host together may take: a rate, or times of the day with a rate for each.
#max_rate = "08:00-18:00 2Mbit, 18:00-08:00 10Mbit"
# Authorities to trust instead of the public ones.
#ca_file = "ca.pem"

[spool]
# Where segments wait until the cloud has confirmed them. Workers need the same directory.
path = "/var/spool/relay"
# false once the spool is a mount of its own: then nothing is begun on the disk below it.
#create = true
# When it is full the oldest go first. Without max_bytes the disk is the limit; min_free stays free.
#max_bytes = "50GB"
#min_free = "1GB"
# Age at which owed segments are dropped; never, unless this is set.
#retention = "7d"
#sweep_after = "1h"
#keep_rejected = "7d"
# Days of a camera's journal that are kept: what became of each segment, 550 bytes for each.
#keep_journal = "365d"
#recover_after = 15

[broker]
# Redis or Valkey. `relay-capture up` runs its own unless this is set.
#url = "redis://127.0.0.1:6379/0"
#key_prefix = "relay:"

[web]
# A page with all cameras and the agent's metrics, and a worker's metrics: a port of this machine alone, or
# HOST:PORT. Off unless set. There is no password.
#listen = 8090
#worker_listen = 9108

[defaults]
# What every camera does unless its own table says otherwise.
#segment_seconds = 10
# Either of these means transcoding; without them video is copied.
#fps = 10
#resolution = "1280x720"
# "off", "copy" or "aac"; realtime = false reads a file as fast as it goes.
#audio = "off"
#realtime = true

# One table for each camera. Its id (here: gate) is the cloud's name for it: letters, digits, "_", ".", "-".
[cameras.gate]
source = "rtsp://192.0.2.10/stream1"
#name = "North gate"
# The login as it is, however odd: nothing needs encoding. It can also stand in the URL: rtsp://user:password@…
#user = "viewer"
#password = { file = "gate.password" }
#segment_seconds = 10
#fps = 10
#resolution = "1280x720"
#audio = "off"
#realtime = true
# A key of this camera's own, instead of that of [ingest].
#token_file = "gate.token"
# false: leave it out.
#enabled = true
"""
