"""Source of synthetic people, rendered in the reading tasks."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from platform.engine.ingest.sources.source import Candidate, ReadingPlan, encode_image, in_units, limited
from reidssl.synthetic.people import SyntheticConfig, SyntheticSpec, render, specifications


@dataclass
class SyntheticSource:
    """Synthetic images. part: "pretrain", "source" or "target". The extra column `planted` is 1 for useless images."""

    config: SyntheticConfig
    part: str
    unit_images: int
    image_format: str
    jpeg_quality: int
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string(), "planted": pa.int32()})

    def plan(self, limit: int) -> ReadingPlan:
        specs = limited(specifications(self.config, self.part), limit)
        return ReadingPlan(in_units(specs, self.unit_images), len(specs))

    def read(self, unit: list[SyntheticSpec]) -> Iterator[Candidate]:
        for spec in unit:
            image = encode_image(render(spec, self.config), self.image_format, self.jpeg_quality)
            yield Candidate(spec.key, image, spec.pid, spec.camid, spec.split, (spec.planted,))
