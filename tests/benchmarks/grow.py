"""A side whose memory is known, in a module that imports little: another process imports it by name."""

import numpy as np


def grows(arguments):
    def work():
        block = np.ones(arguments["mib"] * 2**17)
        return block[:1000]

    return work, lambda result: {"sum": float(result.sum())}
