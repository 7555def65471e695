import signal
import subprocess
import threading
import time

import pytest

from jepa.sweeps.alarm import Alarm


@pytest.fixture
def alarm():
    one = Alarm()
    one.open()
    yield one
    one.close()


def seconds_of(alarm, *, at_most):
    began = time.monotonic()
    alarm.wait(at_most)
    return time.monotonic() - began


def test_the_end_of_a_child_ends_a_wait(alarm):
    child = subprocess.Popen(["sleep", "0.3"])
    assert seconds_of(alarm, at_most=60.0) < 30
    assert child.wait() == 0


def test_a_child_that_ended_before_the_wait_does_not_hurry_it(alarm):
    subprocess.run(["true"], check=True)
    assert seconds_of(alarm, at_most=0.2) > 0.15


def test_a_wait_off_the_main_thread_takes_its_time():
    took = []

    def work():
        one = Alarm()
        one.open()
        took.append(seconds_of(one, at_most=0.2))
        one.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert took[0] > 0.15


def test_it_leaves_signals_as_they_were():
    before = signal.getsignal(signal.SIGCHLD)
    one = Alarm()
    one.open()
    assert signal.getsignal(signal.SIGCHLD) is not before
    one.close()
    assert signal.getsignal(signal.SIGCHLD) is before
    assert signal.set_wakeup_fd(-1) == -1
