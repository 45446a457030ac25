"""The whole loop: from a charter to a better model, with proof."""

from spiritlevel.align.loop import AlignConfig, Progress, align

__all__ = ["AlignConfig", "Progress", "align"]
