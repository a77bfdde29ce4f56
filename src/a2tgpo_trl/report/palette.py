"""Colours that stay apart for all kinds of colour vision, after Okabe and Ito, on light and on dark."""

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0508a", "#b37a00", "#3a9ad9", "#8b95a3")
DARK = ("#56b4e9", "#ff8a3d", "#2ac79a", "#e293c2", "#f0b429", "#8fa8ff", "#7c8796")
"""By run, or by line where there is one run; both in the same order."""
DASHES = ((), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3), (12, 4), (4, 6), (10, 2, 2, 2))
"""By what a line shows, where runs have the colours: lengths of strokes and gaps in pixels, none for a whole line."""
