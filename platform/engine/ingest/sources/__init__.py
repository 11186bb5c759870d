"""Sources of raw images: the settings, and the reader for each `raw.kind`."""

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from platform.engine.config.compose import to_plain
from platform.engine.config.paths import InputPath
from platform.engine.errors import UserError
from platform.engine.ingest.sources.image_tree import FileSource, Indexer
from platform.engine.ingest.sources.listed_config import ListedConfig
from platform.engine.ingest.sources.source import Candidate, ReadingPlan, Source
from platform.engine.storage.location import StorageConfig, open_storage
from reidssl.checks import at_least, one_of, within
from reidssl.data import cuhk03, dukemtmc, folder, luperson, market1501, msmt17
from reidssl.data.mot import CropConfig
from reidssl.data.names import spelled
from reidssl.data.records import SPLITS
from reidssl.data.sidecars import FieldConfig
from reidssl.synthetic.people import SyntheticConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Candidate", "RawConfig", "ReadingPlan", "Source", "open_source"]

LAYOUTS: dict[str, Indexer] = {
    "folder": folder.index,
    "market1501": market1501.index,
    "msmt17": msmt17.index,
    "dukemtmc": dukemtmc.index,
    "cuhk03": cuhk03.index,
    "luperson": luperson.index,
}
KINDS = (*LAYOUTS, "luperson_lmdb", "luperson_videos", "webdataset", "video", "synthetic")
PARTS = ("pretrain", "source", "target")
FORMATS = ("jpeg", "png")
NEWER = ("pattern", "splits", "tar", "follow_links")
FILES = ("path", "follow_links", "unit_images")
ENCODED = ("image_format", "jpeg_quality")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LAYOUTS, FILES),
    "folder": (*FILES, "labeled", "pattern", "splits"),
    "cuhk03": (*FILES, "boxes"),
    "luperson_lmdb": ("path", "unit_images"),
    "luperson_videos": ("path", "follow_links", "detections", "listed", "crops", *ENCODED),
    "webdataset": ("path", "follow_links", "tar", "splits"),
    "video": ("path", "follow_links", "detections", "crops", *ENCODED),
    "synthetic": ("part", "synthetic", "unit_images", *ENCODED),
}
"""Kind of source -> the settings that it uses."""
LINES_ONLY = ("crops.form", "crops.classes", "crops.min_visibility")
"""Settings of `crops` that say how the lines of MOTChallenge files are read; luperson_videos has none."""
PRESET = ("part", "synthetic")
"""Settings that the pipeline and its experiments set for every set, so that they may be there for any kind."""


@dataclass(kw_only=True)
class RawConfig:
    """The raw images to read. `kind` determines which of the other fields are used; one that is not used is refused."""

    kind: str = "folder"
    """folder, market1501, msmt17, dukemtmc, cuhk03 (new protocol), luperson (images/ tree), luperson_lmdb, luperson_videos (the
    released lists and the downloaded videos), webdataset, video or synthetic."""
    path: InputPath = ""
    """Folder, file or s3:// prefix; not for synthetic."""
    follow_links: bool = False
    """Not for luperson_lmdb and synthetic: follow links that lead out of the folder. Otherwise they are rejected: a foreign data
    set must not name other files."""
    labeled: bool = False
    """folder: read labels from paths <identity>/<image> or <split>/<identity>/<image>."""
    pattern: str = ""
    """folder, labeled: regular expression that is searched in each path. Its named groups pid, camid and split match the labels,
    e.g. '_c(?P<camid>[0-9]+)_'."""
    splits: list[str] = field(default_factory=list)
    """folder (labeled), webdataset: foreign split names and the split train, query or gallery that each stands for, e.g.
    [val:train,test:gallery]."""
    tar: FieldConfig = field(default_factory=FieldConfig)
    boxes: str = ""
    """cuhk03: labeled or detected. May be empty if the data set has only one of them."""
    detections: InputPath = ""
    """video: MOTChallenge file of the video. For a folder of videos, the folder with a <video's name>.txt for each.
    luperson_videos: the folder with a <video's name>.pkl for each, or one file of all."""
    listed: ListedConfig = field(default_factory=ListedConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    part: str = "pretrain"
    """synthetic: part to generate: pretrain (unlabeled), source or target (labeled)."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    image_format: str = "jpeg"
    """video, luperson_videos, synthetic: jpeg or png. Other kinds keep the original bytes."""
    jpeg_quality: int = 95
    """video, luperson_videos, synthetic: JPEG quality, 1 to 100."""
    unit_images: int = 256
    """Images that one reading task reads; not for webdataset, video and luperson_videos."""

    def __post_init__(self) -> None:
        one_of(KINDS, kind=self.kind)
        one_of(PARTS, part=self.part)
        one_of(FORMATS, image_format=self.image_format)
        if self.boxes:
            one_of(cuhk03.BOXES, boxes=self.boxes)
        within("[1, 100]", jpeg_quality=self.jpeg_quality)
        at_least(1, unit_images=self.unit_images)
        if self.pattern:
            folder.check_pattern(self.pattern)
            if not self.labeled:
                raise ValueError(f"pattern says where labels are; it needs labeled=true: got {self.pattern!r}")
        self._refuse_unused()
        for pair in self.splits:
            name, _, split = pair.rpartition(":")
            if not name or split not in SPLITS or name in SPLITS:
                raise ValueError(
                    f"splits must say which of {', '.join(SPLITS)} another name is, as in [test:gallery]: got {pair!r}"
                )
        if self.splits and self.kind == "folder" and not self.labeled:
            raise ValueError(f"splits says which folders are which split; it needs labeled=true: got {self.splits}")

    def _refuse_unused(self) -> None:
        """Raise ValueError for a setting that this kind of source would ignore: the images would not be what was asked for."""
        for name, value in _given(self).items():
            section = name.partition(".")[0]
            used_by = [kind for kind, names in OPTIONS.items() if section in names]
            if name in LINES_ONLY:
                used_by = ["video"]
            if self.kind not in used_by and section not in ("kind", *PRESET):
                raise ValueError(
                    f"{name} is not used by kind={self.kind}, only by {', '.join(used_by)}: got {value!r}. Leave it out, or "
                    "choose another kind"
                )

    @property
    def split_names(self) -> dict[str, str]:
        """`splits` as a mapping."""
        return dict(pair.rpartition(":")[::2] for pair in self.splits)

    def arguments(self) -> dict[str, Any]:
        """The settings that determine the images of this kind, as JSON-compatible values."""
        names = {"kind", *OPTIONS[self.kind]} - {"unit_images"}
        values = {name: value for name, value in to_plain(self).items() if name in names}
        for name in NEWER:  # left out at their defaults, so that the arguments of older data sets still match
            if values.get(name) == to_plain(RawConfig())[name]:
                values.pop(name)
        for name in {"path", "detections"} & set(values):
            values[name] = open_storage(values[name]).uri if values[name] else ""
        for name in {"names", "sizes"} & set(values.get("listed", ())):
            values["listed"][name] = open_storage(values["listed"][name]).uri if values["listed"][name] else ""
        return _finite(values)


def open_source(config: RawConfig, storage: StorageConfig) -> Source:
    """The reader for `config`. Raises UserError if a required field is empty or a path is not valid UTF-8."""
    # Imported here: the settings above must load without the libraries for videos, tars and LMDB.
    from platform.engine.ingest.sources.drawn import SyntheticSource
    from platform.engine.ingest.sources.listed_videos import ListedVideoSource
    from platform.engine.ingest.sources.lmdb_file import LmdbSource
    from platform.engine.ingest.sources.tar_archives import TarSource
    from platform.engine.ingest.sources.video_crops import VideoSource

    common: dict[str, Any] = {"image_format": config.image_format, "jpeg_quality": config.jpeg_quality}
    if config.kind == "synthetic":
        return SyntheticSource(config.synthetic, config.part, config.unit_images, **common)
    if not config.path:
        raise UserError(f"raw.path is empty: say where the {config.kind} source is")
    for name in ("path", "detections"):
        if getattr(config, name) != spelled(getattr(config, name)) and not getattr(config, name).isprintable():
            raise UserError(f"raw.{name} {spelled(getattr(config, name))} is not UTF-8: rename it, or give a link to it")
    root = open_storage(config.path, storage)
    if config.kind == "video":
        if not config.detections:
            raise UserError(
                "raw.detections is empty: a video needs person detections in MOTChallenge form "
                "(frame, track, left, top, width, height, score)"
            )
        return VideoSource(
            root, open_storage(config.detections, storage), config.crops, follow_links=config.follow_links, **common
        )
    if config.kind == "luperson_videos":
        missing = [key for key, value in (("listed.names", config.listed.names), ("detections", config.detections)) if not value]
        if missing:
            raise UserError(
                f"raw.{missing[0]} is empty: luperson_videos needs the published list and detections (docs/luperson.md)"
            )
        return ListedVideoSource(
            root,
            open_storage(config.detections, storage),
            open_storage(config.listed.names, storage),
            open_storage(config.listed.sizes, storage) if config.listed.sizes else None,
            config.listed.without_size,
            config.crops,
            follow_links=config.follow_links,
            **common,
        )
    if config.kind == "luperson_lmdb":
        return LmdbSource(root, config.unit_images)
    if config.kind == "webdataset":
        return TarSource(root, config.tar, config.split_names, config.follow_links)
    index: Callable[..., Any] = LAYOUTS[config.kind]
    if config.kind == "folder":
        index = partial(index, labeled=config.labeled, pattern=config.pattern, splits=config.split_names)
    if config.kind == "cuhk03":
        index = partial(index, boxes=config.boxes)
    return FileSource(root, index, config.unit_images, config.follow_links)


def _given(config: "DataclassInstance") -> dict[str, Any]:
    """The settings that differ from their defaults, with dotted names."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            found |= {f"{item.name}.{name}": each for name, each in _given(value).items()}
        elif value != (item.default_factory() if item.default_factory is not MISSING else item.default):
            found[item.name] = value
    return found


def _finite(value: Any) -> Any:
    """`value` with infinite and NaN floats as strings: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
