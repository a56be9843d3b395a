"""Synthetic colonoscopy frames: made on the spot, no patient behind them, every site with a look of its own."""

from polypfed.data.synth.look import Style, style
from polypfed.data.synth.render import Frame, frame
from polypfed.data.synth.seeds import GENERATOR_VERSION
from polypfed.data.synth.tree import synth

__all__ = ["GENERATOR_VERSION", "Frame", "Style", "frame", "style", "synth"]
