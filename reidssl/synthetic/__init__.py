"""Drawn street scenes with people, for `reidssl.synthetic.people`."""
