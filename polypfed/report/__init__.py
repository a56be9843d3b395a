"""What people read: the self-contained HTML report of a run, and plots for documents."""

from polypfed.report.comparison import Goal, Outcome
from polypfed.report.comparison_files import write_comparison
from polypfed.report.page import write_report
from polypfed.report.pictures import Picture, read_pictures
from polypfed.report.plots import HeatMap, LinePlot, write_plot

__all__ = [
    "Goal",
    "HeatMap",
    "LinePlot",
    "Outcome",
    "Picture",
    "read_pictures",
    "write_comparison",
    "write_plot",
    "write_report",
]
