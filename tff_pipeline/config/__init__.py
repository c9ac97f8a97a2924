"""The configuration: one TOML file, read once into frozen types. configs/README.md explains every key.

Unknown keys are errors that name the nearest known key. Relative paths are relative to the file.
"""

from tff_pipeline.config.loading import add_arguments, assemble, known_labels, load
from tff_pipeline.config.schema import (
    SPLITS,
    Config,
    ExportSection,
    GatesSection,
    ModelSection,
    PipelineSection,
    PrepareSection,
    PrivacySection,
    RuntimeSection,
    SecureSumSection,
    SiloSection,
    TaskSection,
    TrainingSection,
)

__all__ = [
    "SPLITS",
    "Config",
    "ExportSection",
    "GatesSection",
    "ModelSection",
    "PipelineSection",
    "PrepareSection",
    "PrivacySection",
    "RuntimeSection",
    "SecureSumSection",
    "SiloSection",
    "TaskSection",
    "TrainingSection",
    "add_arguments",
    "assemble",
    "known_labels",
    "load",
]
