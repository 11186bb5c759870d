"""A benchmark side with known memory, in a module with few imports, because another process imports it by name."""

import numpy as np


def grows(arguments):
    def work():
        block = np.ones(arguments["mib"] * 2**17)
        return block[:1000]

    return work, lambda result: {"sum": float(result.sum())}
