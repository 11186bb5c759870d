"""The settings of platform.ingest."""

from dataclasses import dataclass, field

from platform.engine.config.paths import OutputPath
from platform.engine.ingest.sources import RawConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, within
from reidssl.data.decode import LARGEST_MAX_PIXELS, MAX_PIXELS


@dataclass(kw_only=True)
class IngestConfig:
    """The source of the images, the output and the size of the shards."""

    raw: RawConfig = field(default_factory=RawConfig)
    output: OutputPath = ""
    """Folder or s3:// prefix of the shards."""
    shard_mb: int = 64
    """Approximate size of a shard in MiB of images."""
    row_group_rows: int = 256
    """Images in a row group, the unit that training reads with one request."""
    limit: int = 0
    """Read only the first `limit` images of the source; 0: all."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels of an image. Larger images are rejected undecoded, here and whenever the data set is read."""
    resume_units: int = 256
    """Units of reading (a video, a tar, `raw.unit_images` images) in a round; an interrupted ingest continues after the last
    finished round."""
    overwrite: bool = False
    """Replace an existing data set."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        at_least(1, shard_mb=self.shard_mb, row_group_rows=self.row_group_rows, resume_units=self.resume_units)
        within(f"[1, {LARGEST_MAX_PIXELS}]", max_pixels=self.max_pixels)
        at_least(0, "(all)", limit=self.limit)
