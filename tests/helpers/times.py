"""What each test costs: ``JAXRNN_TEST_TIMES=times.json pytest -n 0 ...`` writes CPU
seconds (of this process and those it waited for, setup and teardown included) and
resident megabytes afterwards, by test. Under xdist each process writes a file of its
own.
"""

import json
import os
from pathlib import Path

import pytest
from memory import resident


def cpu_seconds():
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


class Times:
    def __init__(self, path):
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        path = Path(path)
        self.path = path.with_stem(f"{path.stem}_{worker}") if worker else path
        self.rows = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        before = cpu_seconds()
        try:
            return (yield)
        finally:
            self.rows[item.nodeid] = (
                round(cpu_seconds() - before, 3),
                round(resident() / 1e6),
            )
            if len(self.rows) % 20 == 0:  # a run that is cut short tells something
                self.write()

    def pytest_sessionfinish(self):
        self.write()

    def write(self):
        self.path.write_text(json.dumps(self.rows, indent=0))
