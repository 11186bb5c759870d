"""The tables of the report as plain rows: data sets, stages, provenance, configurations."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from platform.engine.data.people import read_people
from platform.engine.errors import StorageError
from platform.engine.report.contents import DataSet, RunFolder, RunMember
from platform.engine.report.results import expansion_of, place


@dataclass(frozen=True)
class DataRow:
    """A row of the table of data sets."""

    role: str
    kind: str
    images: int
    splits: str
    people: int
    cameras: int
    size: str
    rejected: int
    version: str


def data_rows(folder: RunFolder) -> list[DataRow]:
    """A row for every data set. Adds a note to the folder for a data set that cannot be read."""
    rows = []
    for role, data in folder.data.items():
        try:
            rows.append(_data_row(role, data))
        except StorageError as error:
            folder.notes.append(f"The {role} data set cannot be read: {error}")
    return rows


def _data_row(role: str, data: DataSet) -> DataRow:
    table, people = read_people(data.location, ["camid", "height", "width"])
    cameras = table["camid"].to_numpy()
    sizes, counts = np.unique(np.stack([table["height"].to_numpy(), table["width"].to_numpy()]), axis=1, return_counts=True)
    height, width = sizes[:, counts.argmax()]
    size = f"{height} × {width}" + ("" if len(counts) == 1 else " (most common)")
    order = sorted(data.manifest.splits.items(), key=lambda item: place(item[0], ("train", "query", "gallery")))
    splits = ", ".join(f"{name} {count:,}" for name, count in order)
    return DataRow(
        role,
        str(data.manifest.source.get("kind", "unknown")),
        data.manifest.num_rows,
        splits,
        len(np.unique(people[people >= 0])),
        len(np.unique(cameras[cameras >= 0])),
        size,
        data.manifest.num_rejected,
        data.manifest.checksum[:12],
    )


def stage_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """{"name", "status", "seconds", "share"} of the stages of the pipeline. share: of the longest stage, in [0, 1], for a bar."""
    stages = dict(folder.results.get("stages") or {})
    if stages.get("report", {}).get("status") == "running":  # the stage that makes this page
        del stages["report"]
    longest = max((float(one.get("seconds") or 0) for one in stages.values()), default=0.0)
    return [
        {
            "name": name,
            "status": str(one.get("status", "")),
            "seconds": float(one.get("seconds") or 0),
            "share": float(one.get("seconds") or 0) / longest if longest else 0.0,
        }
        for name, one in stages.items()
    ]


def provenance_rows(folder: RunFolder, hashes: dict[str, str]) -> list[dict[str, str]]:
    """The facts that the results depend on, for every run with a model.

    hashes: run name -> hash of the weights, for runs whose summary has none.
    """
    rows = []
    for one in folder.members:
        if one.program not in ("pretrain", "finetune"):
            continue
        summary = one.summary or {}
        size = summary.get("image_size") or one.setting_of("model", "image_size") or []
        resize = (summary.get("evaluation") or {}).get("resize")
        seed = one.setting_of("seed")
        rows.append(
            {
                "run": one.name,
                "seed": "" if seed is None else str(seed),
                "image_size": " × ".join(map(str, size)) + (f", {resize}" if resize else ""),
                "neck": {"before": "before the neck", "after": "after the neck"}.get(str(summary.get("neck", "")), ""),
                "reranking": _reranking(one),
                "split": _split(one),
                "data": _data_version(folder, one),
                "weights": str(summary.get("weights") or hashes.get(one.name, "")),
                "state": "finished" if summary else "not finished",
            }
        )
    return rows


def _data_version(folder: RunFolder, member: RunMember) -> str:
    """The data checksum that the run recorded, else that of the data set that its configuration names, else "not recorded"."""
    recorded = (member.summary or {}).get("data_checksum")
    if recorded:
        return str(recorded)[:12]
    role, uri = (
        ("pretrain", member.setting_of("data", "uri"))
        if member.program == "pretrain"
        else ("target", member.setting_of("target_set"))
    )
    data = folder.data.get(role)
    named = [part for part in str(uri or "").split("/") if part][-2:]
    if data is None or named != [part for part in data.location.uri.split("/") if part][-2:]:
        return "not recorded"
    return data.manifest.checksum[:12]


def _reranking(member: RunMember) -> str:
    summary = member.summary or {}
    if member.program == "pretrain" or "mAP" not in summary:
        return ""
    expansion = expansion_of(summary)
    return ("also with" if summary.get("reranked") else "without") + (f"; query expansion {expansion}" if expansion else "")


def _split(member: RunMember) -> str:
    if member.program == "pretrain":
        if member.short_name in ("random_part", "inverse_part"):
            return f"the {member.short_name.replace('_', ' ')}".replace("the random", "a random")
        selection = str(member.setting_of("data", "selection") or "")
        return f"images of {selection.rstrip('/').rpartition('/')[2]}" if selection else "all images"
    summary = member.summary or {}
    return f"{summary['queries']:,} queries, {summary['gallery']:,} gallery" if "queries" in summary else ""


def configurations(folder: RunFolder) -> list[tuple[str, str, str]]:
    """(run, program, resolved configuration as YAML) of every run."""
    return [(one.name, one.program, OmegaConf.to_yaml(OmegaConf.create(one.config))) for one in folder.members]


def environments(folder: RunFolder) -> dict[str, list[str]]:
    """Package -> its versions in the runs; more than one if the runs differ."""
    found: dict[str, list[str]] = {}
    for about in [*(one.environment for one in folder.members), folder.results.get("environment") or {}]:
        for name, version in about.items():
            if str(version) not in found.setdefault(str(name), []):
                found[str(name)].append(str(version))
    return found
