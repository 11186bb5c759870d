"""Synthetic images of people in street scenes; `reidssl.synthetic.people` is the entry point."""
