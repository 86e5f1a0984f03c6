# Runs as a service within the box of box.sh; what is found goes to /out, a file for each question.
set -u
cd /out
trap 'journalctl --no-pager --output=cat >journal; systemctl exit 0' EXIT
say() { echo "$2" >"$1"; }
shown() { systemctl show --property="$2" --value "$1"; }
# until_true SECONDS COMMAND...: wait for it; tell whether it came.
until_true() {
  local left=$(($1 * 5))
  shift
  while [ "$left" -gt 0 ]; do
    if "$@" >/dev/null 2>&1; then return 0; fi
    left=$((left - 1))
    sleep 0.2
  done
  return 1
}
arrived() { [ "$(find /run/sink -name '*.ts' | wc -l)" -gt "$1" ]; }
as_relay() { setpriv --reuid relay --regid relay --clear-groups "$@"; }
is() { [ "$(shown "$1" ActiveState)" = "$2" ]; }
ended() { say "$1" "$(shown "$2" ExecMainStatus) $(shown "$2" ActiveState) $(shown "$2" NRestarts)"; }

# --- all on one machine ---
systemctl start relay-capture
up=$?
say up.start $up
# Nothing else would work, either.
[ $up -eq 0 ] || exit 1
say up.state "$(shown relay-capture ActiveState) $(shown relay-capture SubState)"
until_true 30 arrived 2
say up.arrived $?
as_relay env XDG_RUNTIME_DIR=/run/relay-capture /opt/relay/bin/relay-capture health --spool /var/lib/relay-capture/spool >up.health 2>&1
say up.healthy $?
grep -hE '^(CapEff|NoNewPrivs|Seccomp):' "/proc/$(shown relay-capture MainPID)/status" >up.confined
ls -A /run/relay-capture >up.runtime
systemctl stop relay-capture
ended up.stopped relay-capture
say up.left "$(ls -A /run/relay-capture 2>/dev/null)"

# --- what needs a person is not tried again ---
echo wrong >/etc/relay-capture/token
systemctl start relay-capture
until_true 30 is relay-capture failed
ended refused relay-capture
systemctl reset-failed relay-capture
echo "made-up-token" >/etc/relay-capture/token
cp /etc/relay-capture/relay.toml /etc/relay-capture/good.toml
echo 'nonsense = 1' >/etc/relay-capture/relay.toml
systemctl start relay-capture
ended misconfigured relay-capture
systemctl reset-failed relay-capture
cp /etc/relay-capture/good.toml /etc/relay-capture/relay.toml

# --- the parts by themselves ---
before=$(find /run/sink -name '*.ts' | wc -l)
systemctl start relay-capture-agent # first, without a broker
say parts.agent $?
systemctl start valkey-server relay-capture-worker@1 relay-capture-worker@2 relay-capture-beat
say parts.others $?
until_true 30 arrived $((before + 2))
say parts.arrived $?
for role in agent worker beat; do
  as_relay env RELAY_PULSE_DIR=/run/relay-capture /opt/relay/bin/relay-capture health "$role" >"parts.health.$role" 2>&1
  say "parts.healthy.$role" $?
done

# --- one that is frozen is killed by the watchdog, and replaced ---
was=$(shown relay-capture-agent MainPID)
kill -STOP "$was"
until_true 30 sh -c "[ \$(systemctl show --property=NRestarts --value relay-capture-agent) -gt 0 ]"
say watchdog.restarted $?
until_true 30 is relay-capture-agent active
say watchdog.active $?
systemctl stop relay-capture-agent
ended parts.stopped.agent relay-capture-agent
for unit in worker@1 worker@2 beat; do
  systemctl stop "relay-capture-$unit"
  ended "parts.stopped.$unit" "relay-capture-$unit"
done
