"""The thread that watches other processes, with a coordinator in this process."""

import threading
import time

import pytest

from jaxrnn.cli import watch
from jaxrnn.training import members, processes
from jaxrnn.training.errors import InputError


class Coordinator:
    """What processes tell each other; `watch` ends when it is over."""

    def __init__(self):
        self.words, self.is_over = {}, False

    def key_value_set(self, key, words, allow_overwrite):
        if self.is_over:
            raise SystemExit  # ends the thread
        self.words[key] = words

    def key_value_dir_get(self, key):
        return [(k, v) for k, v in self.words.items() if k.startswith(key)]


@pytest.fixture
def told(monkeypatch):
    client = Coordinator()
    monkeypatch.setattr(processes, "coordinator", lambda: (client, 1, 2))
    monkeypatch.setattr(watch, "_times", [])
    monkeypatch.setattr(watch, "_ending", threading.Lock())
    yield client.words
    client.is_over = True
    if watch._ending.locked():
        watch._ending.release()
    time.sleep(0.05)


def ends_soon():
    thread = threading.Thread(target=watch.end, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


# That the thread ends by an exception is what the fixture wants.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_program_may_call_several_commands(told):
    own = f"{watch.ALIVE}1"
    for _ in range(2):
        watch.begin(0.2)
        deadline = time.monotonic() + 10
        while not told.get(own, "").isdigit():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert ends_soon()
        time.sleep(0.05)  # several times the interval
        assert told[own] == "ended"
    assert len(watch._times) == 1


@pytest.mark.parametrize("error", [InputError, RuntimeError])
def test_an_error_that_all_are_told_is_no_loss(tmp_path, monkeypatch, error):
    monkeypatch.setattr(processes, "gather", lambda value, what: ["here", "there"])

    def trained():
        with members.recorded(tmp_path):
            assert "one of them failed" in members.last_end(tmp_path)
            raise error("the loss is nan")

    with pytest.raises(error, match="nan"):
        trained()
    assert (members.last_end(tmp_path) is None) == (error is InputError)
