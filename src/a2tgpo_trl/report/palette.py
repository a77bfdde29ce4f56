"""Colours that stay apart for all kinds of colour vision, after Okabe and Ito, on light and on dark."""

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0508a", "#b37a00", "#3a9ad9", "#8b95a3")
DARK = ("#56b4e9", "#ff8a3d", "#2ac79a", "#e293c2", "#f0b429", "#8fa8ff", "#7c8796")
"""By run, or by line where there is one run; both in the same order."""
