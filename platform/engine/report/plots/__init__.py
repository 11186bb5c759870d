"""Figures as functions from plain data to inline SVG text or JPEG bytes. No state, no files, no network.

SVG takes its colors from CSS variables of the page around it (`--ink`, `--plot-1`, ...), so that one figure reads on
light and dark ground; every variable has a fallback, so that it also stands alone.
"""
