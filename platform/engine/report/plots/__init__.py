"""Figures as functions from plain data to inline SVG text or JPEG bytes. No state, no files, no network.

The colors of an SVG are CSS variables of the page (`--ink`, `--plot-1`, ...), so that a figure is readable on light and dark
backgrounds. Every variable has a fallback, so that the SVG also works without a page.
"""
