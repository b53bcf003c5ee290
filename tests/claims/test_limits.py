import mmap
import time

import pytest

from trialrun.claims.limits import LimitExceeded, limited


def test_usage_is_measured():
    with limited(5, 1000) as usage:
        # Fresh pages from the system: the allocator may hand out memory that is resident already.
        block = mmap.mmap(-1, 30 << 20)
        block.write(b"x" * (30 << 20))
        time.sleep(0.2)
    assert usage.seconds >= 0.2
    assert 25e6 < usage.peak_bytes < 200e6
    block.close()


def nap():
    for _ in range(1000):
        time.sleep(0.005)


def test_time_is_limited():
    with pytest.raises(LimitExceeded, match=r"longer than its limit of 0\.1 s"), limited(0.1, 1000):
        nap()


def test_an_error_of_the_body_is_passed_on():
    with pytest.raises(KeyError), limited(5, 1000):
        raise KeyError("mine")


def test_a_body_that_does_not_stop_is_reported_stuck():
    reasons = []
    with pytest.raises(LimitExceeded), limited(0.1, 1000, on_stuck=reasons.append, grace=0.2):
        time.sleep(1.0)
    assert "longer than its limit" in reasons[0]


def test_a_body_that_stops_in_time_is_not_reported_stuck():
    reasons = []
    with limited(5, 1000, on_stuck=reasons.append, grace=0.0):
        pass
    time.sleep(0.1)
    assert reasons == []
