"""What a silo agrees to before it takes part in a run: what is computed, and what is promised. A digest names both.

The digest covers the graphs of the process, every number of the privacy plan, the labels, the silos and the threshold of the
secure sum. Each party works it out for itself, from its own copy of the process and its own installation; a silo compares it
with what its data steward has approved.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.learning.process import Compiled
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.runtime.fingerprint import graph_digest


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What is agreed.

    Attributes:
      graphs: the digest of what silos and server compute (`runtime.fingerprint.graph_digest`).
      plan: the numbers of the guarantee.
      labels: of the model.
      silos: the names of all silos.
      threshold: the number of silos without which nothing is unmasked.
    """

    graphs: str
    plan: PrivacyPlan
    labels: tuple[str, ...]
    silos: tuple[str, ...]
    threshold: int

    @classmethod
    def of(
        cls, compiled: Compiled, plan: PrivacyPlan, *, labels: Sequence[str], silos: Sequence[str], threshold: int
    ) -> "Agreement":
        """The agreement on a compiled process."""
        return cls(graph_digest(compiled), plan, tuple(labels), tuple(sorted(silos)), threshold)

    @property
    def digest(self) -> str:
        """A SHA-256, 64 hex digits."""
        parts = {
            "graphs": self.graphs,
            "plan": self.plan.as_json(),
            "labels": self.labels,
            "silos": self.silos,
            "threshold": self.threshold,
        }
        return hashlib.sha256(b"tff-pipeline agreement\0" + canonical_json(parts)).hexdigest()
