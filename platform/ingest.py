"""Convert person images into shards: from folders, LMDB, tars, videos with detections, or a synthetic generator.

  python -m platform.ingest raw.kind=folder raw.path=photos output=runs/photos
  python -m platform.ingest raw.kind=market1501 raw.path=Market-1501-v15.09.15 output=runs/market
  python -m platform.ingest raw.kind=msmt17 raw.path=MSMT17_V1 output=s3://bucket/msmt17 storage=s3
  python -m platform.ingest raw.kind=dukemtmc raw.path=DukeMTMC-reID output=runs/duke
  python -m platform.ingest raw.kind=cuhk03 raw.path=cuhk03-np raw.boxes=detected output=runs/cuhk03
  python -m platform.ingest raw.kind=luperson raw.path=LUPerson output=s3://bucket/luperson storage=s3   (images/ tree)
  python -m platform.ingest raw.kind=luperson_lmdb raw.path=LUPerson output=s3://bucket/luperson storage=s3
  python -m platform.ingest raw.kind=luperson_videos raw.path=videos raw.listed.names=vnames.txt raw.detections=dets \\
      raw.listed.without_size=boxes output=runs/luperson-videos
  python -m platform.ingest raw.kind=webdataset raw.path=s3://bucket/tars output=s3://bucket/shards storage=s3
  python -m platform.ingest raw.kind=video raw.path=street.avi raw.detections=street.txt output=runs/street
  python -m platform.ingest raw.kind=synthetic raw.part=pretrain output=runs/synthetic

Ray Data reads units of the source in parallel, checks that every image decodes, keeps the original bytes and writes Parquet
shards. Images are JPEG, PNG, WebP, BMP, TIFF, GIF or PPM. When an image is used, it is turned upright by its EXIF orientation,
16-bit levels are scaled to 8 bits, transparency is composed over white, and only the first of several frames is read
(reidssl/data/color_modes.py lists every case). The manifest counts these conversions. Images with unusable content or labels
are listed with a reason in rejected.parquet and never stop the job; docs/sources.md defines the labels. The manifest is
published last: an interrupted ingest leaves no data set, and the same command continues after the last finished round of
`resume_units` units; other arguments for the same output are refused unless overwrite=true. Equal arguments on an unchanged
source give equal shards, whatever the number of machines.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("ingest")

import fnmatch
import pickle
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from platform.engine.data.shards import (
    MANIFEST,
    REJECTED,
    Manifest,
    read_manifest,
    write_manifest,
    write_rejected,
)
from platform.engine.errors import StorageError, UserError, user_error_of
from platform.engine.ingest.arguments import arguments_of, differences
from platform.engine.ingest.rounds import Rounds, unfinished
from platform.engine.ingest.sources import ReadingPlan, Source, open_source
from platform.engine.ingest.tasks import ReadUnits, Written, shard_sink
from platform.engine.runs.owner import claim
from platform.engine.runtime.datasets import prepare
from platform.engine.runtime.progress import progress
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.ingest_settings import IngestConfig
from platform.engine.storage.location import Location, abort_incomplete_uploads, open_storage
from reidssl.data.color_modes import CONVERSIONS
from reidssl.data.decode import MAX_PIXELS

MOST_KINDS = 6  # largest number of reasons, and of notes, that the terminal shows


def main(config: IngestConfig) -> Manifest:
    """Ingest the data set, unless the output holds the same one already. Returns its manifest.

    Raises UserError if the source cannot be used, or the output holds a data set or an interrupted ingest of other arguments.
    """
    if not config.output:
        raise UserError("output is empty: say where the shards go, e.g. output=runs/photos or output=s3://bucket/photos")
    output = open_storage(config.output, config.storage)
    arguments = arguments_of(config)
    existing = existing_data_set(output, arguments, config.overwrite)
    if existing is not None:
        say(f"{output} is complete already: {summary(existing)}; nothing to do (overwrite=true makes it anew)")
        return existing
    unfinished(output, with_units(arguments, config), config.overwrite)
    source = open_source(config.raw, config.storage)
    plan = source.plan(config.limit)
    claim(output.prepare_output())
    if (made := existing_data_set(output, arguments, config.overwrite)) is not None:  # by a command that has just ended
        say(f"{output} is complete: {summary(made)}")
        return made
    connect(config.runtime, "ingest", output.uri)
    manifest = ingest(source, plan, output, config, arguments)
    say(f"{output}: {summary(manifest)}")
    return manifest


def existing_data_set(output: Location, arguments: Mapping[str, Any], overwrite: bool) -> Manifest | None:
    """The finished data set at `output`; None if there is none or with `overwrite`.

    Raises UserError if it was made with other arguments.
    """
    if overwrite or not output.joinpath(MANIFEST).exists():
        return None
    manifest = read_manifest(output)
    # Older data sets have neither; their shards do not depend on the rounds.
    known = {"max_pixels": MAX_PIXELS, "resume_units": arguments["resume_units"]} | manifest.arguments
    changed = differences(known, arguments)
    if not changed:
        return manifest
    raise UserError(
        f"{output} holds a data set made with other arguments ({changed}). Choose another output, or set "
        "overwrite=true to replace it"
    )


def with_units(arguments: Mapping[str, Any], config: IngestConfig) -> dict[str, Any]:
    """The arguments of an interrupted ingest: also the size of the units of which its rounds consist."""
    return {**arguments, "raw": {**arguments["raw"], "unit_images": config.raw.unit_images}}


def ingest(source: Source, plan: ReadingPlan, output: Location, config: IngestConfig, arguments: dict[str, Any]) -> Manifest:
    """The whole job after the plan: read, check, write, publish. Returns the published manifest.

    Raises UserError if the source has no usable images; then nothing is published.
    """
    import ray.data

    if not plan.units:
        raise UserError(
            f"nothing to ingest: {config.raw.path or config.raw.kind} holds no images that this kind "
            f"of source ({config.raw.kind}) takes"
        )
    rounds = Rounds(output, with_units(arguments, config), plan.units, config.resume_units)
    if not output.joinpath(MANIFEST).exists():
        rounds.find(config.overwrite)
    clean(output, rounds.kept())
    with progress("ingest", "images", plan.num_images) as counter:
        for done in rounds.done.values():
            found, bad = sum(entry.rows for entry in done.entries), len(done.rejected)
            counter.add.remote(images=found + bad, rejected=bad)

        def write(units: list[Any]) -> Written:
            items = ray.data.from_items([{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units))
            read = ReadUnits(source, counter, config.max_pixels)
            dataset = items.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=1)
            dataset.context.execution_options.preserve_order = True  # shards must not depend on which task is faster
            sink = shard_sink(output, config.shard_mb << 20, config.row_group_rows)
            try:
                prepare(dataset).write_datasink(sink, ray_remote_args={"num_cpus": 0.5})
            except Exception as error:
                raise user_error_of(error) or error from None
            return sink.written

        entries, rejected, splits, converted, labels = rounds.run(write)
    if not entries:
        examples = "; ".join(f"{key}: {reason}" for key, reason in rejected[:3])
        raise UserError(f"none of the {len(rejected):,} images could be used ({examples}). Nothing was published")
    write_rejected(output, rejected)
    manifest = Manifest(
        files=entries,
        num_rejected=len(rejected),
        source={"kind": config.raw.kind, "path": arguments["raw"].get("path", "")},
        arguments=arguments,
        splits=dict(sorted(splits.items())),
        converted=dict(sorted(converted.items())),
        extra_columns={name: str(kind) for name, kind in source.extra_columns.items()},
    )
    write_manifest(output, manifest)
    rounds.forget()
    for remark in remarks(manifest.num_rows, rejected, labels):
        say(remark)
    return manifest


def remarks(num_rows: int, rejected: Sequence[tuple[str, str]], labels: Mapping[str, int]) -> list[str]:
    """Lines for the terminal about rejected images, missing labels and notes of the source.

    Args:
        num_rows: images in the data set.
        rejected: (key, reason) pairs; a reason begins with its kind and a colon.
        labels: counts as in `Written.labels` (platform/engine/ingest/tasks.py).
    """
    lines = []
    if rejected:
        kinds = Counter(reason.partition(":")[0] for _, reason in rejected)
        common = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(MOST_KINDS))
        more = f" and {len(kinds) - MOST_KINDS} further reasons" if len(kinds) > MOST_KINDS else ""
        lines.append(f"set aside, each with its reason in {REJECTED}: {common}{more}")
    known, no_camera = labels.get("identity", 0), labels.get("no camera", 0)
    if 0 < known < num_rows:
        lines.append(f"note: {num_rows - known:,} of {num_rows:,} images have no identity (pid -1), while the others have one")
    if no_camera:
        lines.append(
            f"note: {no_camera:,} of {known:,} labeled images have no camera (camid -1): an mAP of them counts matches "
            "within one camera, which published figures leave out. raw.pattern (folder) or raw.tar.camid_field "
            "says where cameras are"
        )
    notes = Counter({note: count for note, count in labels.items() if note not in ("identity", "no camera")})
    lines += [f"note: {count:,} images: {note}" for note, count in notes.most_common(MOST_KINDS)]
    return lines


def clean(output: Location, kept: Collection[str] = ()) -> None:
    """Remove the files of an earlier ingest, except the `kept` ones. The manifest goes first: a rest is no data set.

    Unfinished uploads are no part of it. They stay if the store or the rights do not allow to look for them.
    """
    output.joinpath(MANIFEST).delete()
    for item in output.list(recursive=False):
        if item.name in kept:
            continue
        if item.name == REJECTED or fnmatch.fnmatch(item.name, "shard-*.parquet"):
            output.joinpath(item.name).delete()
    try:
        abort_incomplete_uploads(output.uri, output.config, older_than_h=1.0)
    except StorageError as error:
        say(f"note: uploads that an earlier ingest has not finished, if there are any, stay: {error}")


def summary(manifest: Manifest) -> str:
    """The data set in one line: images by split, shards, size, rejected and converted images."""
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items())
    count = len(manifest.files)
    converted = ", ".join(f"{number:,} {CONVERSIONS.get(name, name)}" for name, number in manifest.converted.items())
    return (
        f"{manifest.num_rows:,} images ({splits}) in {count} shard{'s' * (count != 1)}, "
        f"{manifest.num_bytes / 1e6:,.1f} MB, {manifest.num_rejected:,} rejected" + f"; when used: {converted}" * bool(converted)
    )
