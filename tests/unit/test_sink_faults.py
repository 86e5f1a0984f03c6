import pytest

from capture.errors import UsageError
from capture.sink_faults import KINDS, PORTAL, Fault, FaultPlan


class Clock:
    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


def plan_of(*faults: Fault, clock: Clock | None = None) -> FaultPlan:
    plan = FaultPlan(faults, clock=clock or Clock())
    plan.begin()
    return plan


def name_taken(plan: FaultPlan, **request) -> str | None:
    hit = plan.take(request.pop("method", "POST"), **({"route": "ingest"} | request))
    return hit.fault.name if hit else None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("503", Fault("status", status=503)),
        ("503@10+8", Fault("status", status=503, start=10.0, duration=8.0)),
        ("hang@5+3", Fault("hang", start=5.0, duration=3.0)),
        ("hang+0.5", Fault("hang", duration=0.5)),
        ("401@20+2", Fault("status", status=401, start=20.0, duration=2.0)),
        ("reset#3", Fault("reset", count=3)),
        ("refuse@1.5+2.25", Fault("refuse", start=1.5, duration=2.25)),
        (" lost@1#2 ", Fault("lost", start=1.0, count=2)),
        (
            "429@0+5:Retry-After=2",
            Fault("status", status=429, duration=5.0, headers=(("Retry-After", "2"),)),
        ),
        (
            "302:Location=http://elsewhere.test/?a=b",
            Fault("status", status=302, headers=(("Location", "http://elsewhere.test/?a=b"),)),
        ),
        (
            "200",
            Fault("status", status=200, body=PORTAL, headers=(("Content-Type", "text/html"),)),
        ),
        (
            "503:camera=gate,sequence=7,path=any,method=any,delay=1.5,body=no",
            Fault(
                "status",
                camera="gate",
                sequence=7,
                path="any",
                method="ANY",
                delay=1.5,
                body=b"no",
            ),
        ),
        ("slow:rate=1000", Fault("slow", rate=1000.0)),
        ("half:after=10", Fault("half", after=10)),
    ],
)
def test_a_fault_is_read_from_its_text(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flood",
        "status",
        "Hang",
        "50",
        "5033",
        "100",
        "199",
        "600",
        "503@",
        "503@-1",
        "503@x",
        "503+0",
        "503+8@10",
        "503#0",
        "503#1.5",
        "503#",
        "503@1e3",
        "503@nan",
        "503:",
        "503:colour=red",
        "503:Retry-After",
        "503:sequence=x",
        "503:rate=-1",
        "503:rate=inf",
        "503:delay=nan",
        "503:after=-1",
        "503:path=elsewhere",
        "503:Content-Length=5",
        "503:Transfer-Encoding=chunked",
        "503:X-A=b\r\nX-C: d",
        "503:X A=b",
        "503 hang",
        "٥٠٣",
    ],
)
def test_nonsense_is_refused_with_what_was_found_and_what_to_write(text):
    with pytest.raises(UsageError) as caught:
        FaultPlan.parse([text])
    message = str(caught.value)
    assert message.startswith(f"found the fault {text!r}")
    assert "expected" in message or "use" in message


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_built(kind):
    assert Fault(kind).kind == kind


def test_a_fault_plays_from_its_start_until_its_duration_is_over():
    clock = Clock()
    plan = plan_of(Fault("hang", start=10.0, duration=8.0), clock=clock)
    seen = []
    for now in (1009.9, 1010.0, 1017.9, 1018.0):
        clock.now = now
        seen.append((name_taken(plan), plan.active()))
    assert seen == [(None, []), ("hang", ["hang"]), ("hang", ["hang"]), (None, [])]


def test_nothing_plays_before_the_sink_has_started():
    plan = FaultPlan([Fault("hang")], clock=Clock())
    plan.add(Fault("lost"))
    assert (plan.active(), name_taken(plan)) == ([], None)
    plan.begin()
    assert plan.active() == ["hang", "lost"]


def test_a_second_start_does_not_begin_the_faults_again():
    clock = Clock()
    plan = plan_of(Fault("hang", duration=5.0), clock=clock)
    clock.now += 6
    plan.begin()
    assert plan.active() == []


def test_a_fault_that_is_added_later_counts_its_start_from_then():
    clock = Clock()
    plan = plan_of(clock=clock)
    clock.now += 500
    plan.add(Fault("hang", start=1.0, duration=2.0))
    assert plan.active() == []
    clock.now += 1
    assert plan.active() == ["hang"]
    clock.now += 2
    assert plan.active() == []


def test_a_count_is_spent_hit_by_hit():
    plan = plan_of(Fault("reset", count=2))
    assert [name_taken(plan) for _ in range(3)] == ["reset", "reset", None]
    assert plan.active() == []


def test_only_requests_that_fit_spend_a_count():
    plan = plan_of(Fault("reset", count=1, camera="gate"))
    assert name_taken(plan, camera="yard") is None
    assert name_taken(plan, camera="gate") == "reset"


def test_the_first_fault_that_is_on_and_fits_wins():
    plan = plan_of(
        Fault("hang", start=60.0),
        Fault("lost", camera="yard"),
        Fault("status", status=429, count=1),
        Fault("status", status=503),
    )
    assert plan.active() == ["lost", "429", "503"]
    assert [name_taken(plan, camera="gate") for _ in range(2)] == ["429", "503"]


@pytest.mark.parametrize(
    ("limits", "request_", "fits"),
    [
        ({}, {}, True),
        ({}, {"method": "DELETE"}, False),
        ({}, {"route": "cameras"}, False),
        ({"method": "any"}, {"method": "DELETE"}, True),
        ({"path": "cameras"}, {"route": "cameras"}, True),
        ({"path": "cameras"}, {}, False),
        ({"path": "any"}, {"route": "none"}, True),
        ({"camera": "gate"}, {"camera": "gate"}, True),
        ({"camera": "gate"}, {"camera": "yard"}, False),
        ({"camera": "gate"}, {}, False),
        ({"sequence": 3}, {"sequence": 3}, True),
        ({"sequence": 3}, {"sequence": 4}, False),
    ],
)
def test_a_fault_hits_only_what_it_is_meant_for(limits, request_, fits):
    plan = plan_of(Fault("hang", **limits))
    assert (name_taken(plan, **request_) == "hang") is fits


def test_a_refusal_without_limits_closes_the_door_to_everything():
    plan = plan_of(Fault("refuse", duration=5.0))
    assert plan.refusing()
    assert name_taken(plan, method="GET", route="health") == "refuse"


@pytest.mark.parametrize("limits", [{"count": 2}, {"camera": "gate"}, {"sequence": 1}])
def test_a_refusal_with_limits_leaves_the_door_open(limits):
    assert not plan_of(Fault("refuse", **limits)).refusing()


def test_a_hit_is_over_with_the_time_of_its_fault_not_with_its_count():
    clock = Clock()
    plan = plan_of(Fault("hang", duration=5.0, count=1), clock=clock)
    hit = plan.take("POST", route="ingest")
    assert hit is not None
    assert name_taken(plan) is None
    assert not hit.over()
    clock.now += 5
    assert hit.over()


@pytest.mark.parametrize("end", [FaultPlan.clear, lambda plan: plan.remove(Fault("hang"))])
def test_a_fault_taken_out_of_the_plan_is_over_for_those_it_holds(end):
    plan = plan_of(Fault("hang"))
    hit = plan.take("POST", route="ingest")
    assert hit is not None
    assert not hit.over()
    end(plan)
    assert hit.over()
    assert plan.active() == []


def test_removing_one_fault_leaves_the_others():
    plan = plan_of(Fault("hang"), Fault("lost"))
    plan.remove(Fault("hang"))
    assert plan.active() == ["lost"]
