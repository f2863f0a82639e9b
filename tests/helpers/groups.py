"""Which tests share a process under ``pytest -n 2 --dist loadgroup``: those of a file,
and all that use the programs of `subjects`.

xdist 3.8 tells groups by what it appends to the ids of tests, which pytest 9 has
forbidden: every test would go to whichever process is free, and each of the two would
train the runs and compile the programs that the tests of a file share.
"""

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling


class ByGroup(LoadScopeScheduling):
    """Hands out whole groups."""

    def _split_scope(self, nodeid):
        return group_of(nodeid)


def group_of(nodeid):
    """The group of a test, by the file in its id."""
    file = Path(nodeid.split("::")[0]).stem
    return "laws" if file.startswith(("test_laws", "test_cells")) else file
