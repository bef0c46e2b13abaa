"""Reports: what a run or a pool amounts to, as a summary, on the terminal, in HTML, as PNG and as a model card."""

from evomerge.reports.extremes import extreme_warnings
from evomerge.reports.glances import Glances
from evomerge.reports.html import write_report
from evomerge.reports.model_card import model_card
from evomerge.reports.png import write_png
from evomerge.reports.pool_page import write_kinship
from evomerge.reports.pool_tables import print_kinship
from evomerge.reports.screen import screen
from evomerge.reports.standing import MANY, Standing, Tally
from evomerge.reports.summarize import summarize
from evomerge.reports.summary import Summary
from evomerge.reports.terminal import print_verdict
from evomerge.reports.verdict import Verdict, verdict

__all__ = [
    "MANY",
    "Glances",
    "Standing",
    "Summary",
    "Tally",
    "Verdict",
    "extreme_warnings",
    "model_card",
    "print_kinship",
    "print_verdict",
    "screen",
    "summarize",
    "verdict",
    "write_kinship",
    "write_png",
    "write_report",
]
