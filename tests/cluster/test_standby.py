"""Who gets a process that is free."""

import pytest

from mmdistill.cluster import standby


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(standby.time, "monotonic", lambda: now[0])
    return now


def test_an_order_waits_for_the_process_that_is_started_for_it_but_not_for_ever(clock):
    taken = []
    started_for = {"second": "process of the second"}
    reuse = standby.patient(lambda order: not taken.append(order), started_for)
    assert reuse("first")
    assert not reuse("second")
    clock[0] = standby.START_SECONDS - 1
    assert not reuse("second")
    clock[0] = standby.START_SECONDS + 1
    assert reuse("second")
    assert taken == ["first", "second"]


def test_each_process_that_is_started_is_waited_for_anew(clock):
    started_for = {"order": "one process"}
    reuse = standby.patient(lambda _order: True, started_for)
    assert not reuse("order")
    clock[0] = standby.START_SECONDS + 1
    started_for["order"] = "another process"
    assert not reuse("order")
