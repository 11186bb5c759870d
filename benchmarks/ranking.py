"""Ranking metrics: this project against the usual sort of the whole gallery, including distances on both sides.

  python -m benchmarks.ranking          1,000 x 5,000
  python -m benchmarks.ranking --full   Market-1501's size (3,368 x 15,913); MSMT17's (11,659 x 82,161) for this project alone,
                                        because the other side's arrays would take about 19 GB

The other side replaces torchreid's Cython evaluator, whose source distribution lacks the Cython file. The steps and NumPy's sort
are the same; numba compiles the loop (benchmarks/dense.py).
"""

from benchmarks.measure import Comparison, measure, print_one
from benchmarks.people import query_and_gallery

SMALL = dict(num_query=40, num_gallery=200, num_identities=9, num_cameras=4)
TINY = {"40 x 200": SMALL}
QUICK = {"1,000 x 5,000": dict(num_query=1000, num_gallery=5000, num_identities=300, num_cameras=6)}
FULL = {"3,368 x 15,913 (Market-1501)": dict(num_query=3368, num_gallery=15913, num_identities=751, num_cameras=6)}
ALONE = {"11,659 x 82,161 (MSMT17)": dict(num_query=11659, num_gallery=82161, num_identities=3060, num_cameras=15)}
COMPARISON = Comparison(
    __spec__.name,
    "ranking {} x 384",
    ("ours", "sorting"),
    "sort + compiled loop (torchreid's)",
    {"tiny": TINY, "quick": QUICK, "full": FULL},
)


def ours(size):
    """This project's side."""
    from reidssl.metrics.ranking import rank

    rank(*query_and_gallery(**SMALL))
    arrays = query_and_gallery(**size)

    def check(found):
        return {"mAP": round(found.mAP, 5), "Rank-1": round(found.rank1, 5), "Rank-10": round(found.rank10, 5)}

    return lambda: rank(*arrays), check


def sorting(size):
    """The other side: distances, a full sort, a compiled loop."""
    from benchmarks.dense import sorted_ranking, squared_distances

    def work(arrays):
        queries, q_pids, q_camids, gallery, g_pids, g_camids = arrays
        return sorted_ranking(squared_distances(queries, gallery), q_pids, g_pids, q_camids, g_camids)

    work(query_and_gallery(**SMALL))
    arrays = query_and_gallery(**size)

    def check(found):
        return {"mAP": round(found[1], 5), "Rank-1": round(found[0][0], 5), "Rank-10": round(found[0][9], 5)}

    return lambda: work(arrays), check


def main() -> None:
    arguments = COMPARISON.main(__doc__)
    for name, size in ALONE.items() if arguments.full else ():
        print_one(f"ranking {name} x 384, this project", measure(__spec__.name, "ours", size, arguments.repeats))


if __name__ == "__main__":
    main()
