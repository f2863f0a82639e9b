"""The examples in docstrings give what they say.

They run as all tests do: with shapes checked, and without silent promotion, but for
those that train, because optax promotes. Not with ``pytest --doctest-modules``: the
checker wraps every function, and doctest passes over functions that were defined
elsewhere without a word.
"""

import doctest
import importlib
import inspect
import re

import pytest
from import_graph import FILES, module_of

TRAINING = ("jaxrnn.training.", "jaxrnn.tasks.")  # where optax runs
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLES = [
    module_of(path)
    for path in FILES
    if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
]


class Finder(doctest.DocTestFinder):
    """Also what a decorator has wrapped."""

    def _from_module(self, module, object):
        try:
            object = inspect.unwrap(object)
        except ValueError:
            return False
        return super()._from_module(module, object)


def examples_of(module):
    """Examples that a file shows: lines that begin with three of these brackets."""
    return len(re.findall(r"^\s*>>> ", inspect.getsource(module), re.MULTILINE))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, request):
    if name.startswith(TRAINING):
        request.getfixturevalue("optax_promotion")
    module = importlib.import_module(name)
    runner, said = doctest.DocTestRunner(optionflags=FLAGS), []
    for test in Finder().find(module, name.rpartition(".")[2]):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries == examples_of(module), "an example is in no docstring found"
