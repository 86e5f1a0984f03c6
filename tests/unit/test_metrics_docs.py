"""docs/metrics.md, the alert rules and the dashboard name the metrics that there are, and only those."""

import json
import re
from pathlib import Path

import pytest

from capture.metrics_agent import INGEST_STATES
from capture.metrics_catalogue import AGENT, WORKER, HeldBack, UploadOutcome
from capture.metrics_causes import CAUSES
from capture.supervision import State

DOCS = Path(__file__).parents[2] / "docs"
MONITORING = DOCS / "monitoring"
PAGE = (DOCS / "metrics.md").read_text()
RULES = (MONITORING / "relay-capture.rules.yml").read_text()
RULE_TESTS = (MONITORING / "relay-capture.test.yml").read_text()
DASHBOARD = json.loads((MONITORING / "relay-capture.dashboard.json").read_text())
METRICS = {metric.name: metric for metric in (*AGENT, *WORKER)}
# What Prometheus and the client library add themselves, and labels of the sample configuration.
FOREIGN = {"up", "process_resident_memory_bytes"}
OUTER_LABELS = {"site", "instance", "job", "le"}
WORDS = {
    "cause": CAUSES,
    "state of a camera": tuple(map(str, State)),
    "state of the ingest": INGEST_STATES,
    "outcome": tuple(map(str, UploadOutcome)),
    "reason": tuple(map(str, HeldBack)),
}


def table(title):
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize(("title", "metrics"), [("The agent", AGENT), ("A worker", WORKER)])
def test_the_page_has_every_metric_with_its_type_labels_and_meaning(title, metrics):
    def row(metric):
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"  # noqa: RUF001 - the sign for none
        return [f"`{metric.name}`", metric.kind, labels, metric.help]

    assert table(title) == [row(metric) for metric in metrics]


def test_the_page_has_the_fixed_words():
    found = {
        " ".join(name.replace("`", "").split()): tuple(re.findall(r"`([a-z_]+)`", words))
        for name, words in table("The fixed words")
    }
    assert WORDS.items() <= found.items()


def test_names_follow_the_conventions():
    for metric in METRICS.values():
        assert re.fullmatch(r"relay_capture_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert len(metric.labels) <= 3
        assert metric.buckets == tuple(sorted(metric.buckets))
    assert len(METRICS) == len({*AGENT, *WORKER})


# --- queries ---------------------------------------------------------------------------------------


def panel_queries():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def queries():
    rules = re.findall(r"expr: (?:>-\n)?((?:.+\n)(?: {10}.+\n)*)", RULES)
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each]
    return [*rules, *panel_queries(), *variables]


def base(name):
    return re.sub(r"_(bucket|count|sum)$", "", name) if name not in METRICS else name


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_metrics_and_labels_that_there_are(query):
    names = set(re.findall(r"\b(?:relay_capture|process)_[a-z_]+|\bup\b", query))
    assert names
    assert {base(name) for name in names} <= {*METRICS, *FOREIGN}
    for name, selector in re.findall(r"(relay_capture_[a-z_]+)\{([^}]*)\}", query):
        labels = set(re.findall(r"([a-z_]+)(?:=~|!~|!=|=)", selector))
        assert labels <= {*METRICS[base(name)].labels, *OUTER_LABELS}, name


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_words_that_there_are(query):
    words = {word for kind in WORDS.values() for word in kind}
    words |= {"enabled", "disabled", "faulty", "as_now", "none", "live", "backlog", "unacked"}
    selected = re.findall(r"(state|outcome|reason|setting|uploads|queue)(?:=~|!=|=)\"([^\"]*)\"", query)
    for label, found in selected:
        assert set(found.split("|")) <= words, label


def test_every_metric_is_shown_or_watched_somewhere():
    everything = " ".join(queries())
    unused = {name for name in METRICS if name not in everything}
    # Amounts for which their segments stand, and what is for looking up.
    assert unused == {
        "relay_capture_ingest_failures_in_a_row",
        "relay_capture_last_delivery_age_seconds",
        "relay_capture_dropped_bytes_total",
        "relay_capture_rejected_bytes_total",
        "relay_capture_rejected_segments_total",
        "relay_capture_delivered_segments_total",
        "relay_capture_salvaged_segments_total",
        "relay_capture_recover_rounds_total",
        "relay_capture_sweeps_total",
        "relay_capture_swept_sessions_total",
        "relay_capture_token_refusals_total",
        "relay_capture_worker_processes",
    }


# --- alerts and panels ------------------------------------------------------------------------------


def test_every_alert_is_tested_both_ways():
    alerts = set(re.findall(r"- alert: (\w+)", RULES))
    assert len(alerts) > 20
    assert set(re.findall(r"name: (\w+) fires", RULE_TESTS)) == alerts
    assert set(re.findall(r"name: (\w+) stays quiet", RULE_TESTS)) == alerts
    for case in RULE_TESTS.split("  - name: ")[1:]:
        name, _, what = case.splitlines()[0].partition(" ")
        assert f"alertname: {name}\n" in case
        assert ("exp_alerts: []" in case) == (what == "stays quiet")


def test_the_dashboard_lets_choose_site_and_camera_and_its_panels_do_not_overlap():
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "site", "camera"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
