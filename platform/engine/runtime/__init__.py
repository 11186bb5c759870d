"""The process and its cluster: Ray, the terminal, devices, collectives."""
