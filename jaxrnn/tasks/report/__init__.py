"""The page and the model card of a run, from what its directory holds."""

from .card import write_card as write_card
from .facts import Facts as Facts
from .facts import facts_of as facts_of
from .page import write_report as write_report
