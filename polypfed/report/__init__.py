"""What people read: the self-contained HTML report of a run, and plots for documents."""

from polypfed.report.page import write_report
from polypfed.report.pictures import Picture, read_pictures
from polypfed.report.plots import HeatMap, LinePlot, write_plot

__all__ = [
    "HeatMap",
    "LinePlot",
    "Picture",
    "read_pictures",
    "write_plot",
    "write_report",
]
