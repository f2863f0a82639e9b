"""The type checker of the tests: beartype, for which an int is a float, as for everybody else."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
