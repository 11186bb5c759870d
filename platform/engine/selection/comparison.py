"""Agreement of scores, lists and selections with each other."""

import itertools
from typing import Any

from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.runtime.terminal import say
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.selection.rankings import Ranking, any_ranking
from platform.engine.storage.location import Location, open_storage
from reidssl.selection.agreement import agreement


def comparison(config: SelectConfig, root: Location) -> tuple[None, dict[str, Any]]:
    """(no index, summary) with the agreement of every two of the rankings in config.compare."""
    manifest = read_manifest(root)
    keys = read_rows(root, ["key"])["key"].to_pylist()
    rankings = {uri: any_ranking(open_storage(uri, config.storage), config.data, manifest, keys) for uri in config.compare}
    pairs = []
    for first, second in itertools.combinations(rankings, 2):
        agreed = compared(config, keys, rankings[first], rankings[second], f"of {first} and {second}")
        pairs.append({"first": first, "second": second, **agreed})
    records = {uri: ranking.record for uri, ranking in rankings.items()}
    return None, {"data": config.data, "data_checksum": manifest.checksum, "compared": records, "pairs": pairs}


def compared(config: SelectConfig, keys: list[str], first: Ranking, second: Ranking, which: str) -> dict[str, Any]:
    """The agreement of two rankings, see reidssl.selection.agreement. which: their names, for the terminal."""
    agreed = agreement(keys, first.values, second.values, sorted({*config.compare_at, config.fraction}))
    say(f"select: agreement {which}: {in_words(agreed)}")
    return agreed


def in_words(agreed: dict[str, Any]) -> str:
    """An agreement in one line."""
    if agreed["spearman"] is None:
        return f"{agreed['num_compared']:,} images in common, too few or too equal to compare their order"
    tops = ", ".join(f"{float(fraction):.0%}: {share:.3f}" for fraction, share in agreed["overlaps"].items())
    return (
        f"{agreed['num_compared']:,} images in common ({agreed['common']:.1%} of the shorter one), Spearman "
        f"{agreed['spearman']:.3f}, overlap of the top {tops}"
    )
