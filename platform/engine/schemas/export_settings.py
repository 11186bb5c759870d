"""The settings of platform.export."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.storage.location import StorageConfig
from reidssl.models.given import LoadConfig

FORMATS = ("safetensors", "timm", "torch", "onnx", "released")


@dataclass(kw_only=True)
class ExportConfig:
    """The model to export, the output folder and the formats."""

    checkpoint: InputPath = ""
    """Run folder or checkpoint file."""
    output: OutputPath = ""
    """Folder of the exported model, local or s3://."""
    formats: list[str] = field(default_factory=lambda: ["safetensors", "released"])
    """One or more of safetensors, timm, torch, onnx, released."""
    load: LoadConfig = field(default_factory=LoadConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ValueError(f"formats must be one or more of {', '.join(FORMATS)}: got {', '.join(unknown) or 'none'}")
