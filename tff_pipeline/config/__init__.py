"""The configuration: one TOML file, read once into frozen types. configs/README.md explains every key.

Unknown keys are errors that name the nearest known key. Relative paths are relative to the file.
"""

from tff_pipeline.config.loading import add_arguments, known_labels
from tff_pipeline.config.parties import (
    CoordinatorFile,
    Patience,
    Policy,
    SiloFile,
    coordinator_config,
    load,
    read_coordinator,
    read_silo,
    silo_config,
)
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
    "CoordinatorFile",
    "ExportSection",
    "GatesSection",
    "ModelSection",
    "Patience",
    "PipelineSection",
    "Policy",
    "PrepareSection",
    "PrivacySection",
    "RuntimeSection",
    "SecureSumSection",
    "SiloFile",
    "SiloSection",
    "TaskSection",
    "TrainingSection",
    "add_arguments",
    "coordinator_config",
    "known_labels",
    "load",
    "read_coordinator",
    "read_silo",
    "silo_config",
]
