"""What a silo's data steward has approved, and what waits for approval: two files in the silo's work directory.

    approved.json     the digests of the processes that may run here (`agreement.Agreement.digest`)
    pending.json      the newest that was asked for and is not approved, with the statement of its guarantee

`tff-pipeline silo approve` shows the one and adds it to the other. A silo takes part in nothing that is not approved.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import now, read_json, write_json
from tff_pipeline.errors import ArtifactError, ConfigError


class Approvals:
    """The approvals of one silo.

    Args:
      folder: the silo's work directory.
    """

    def __init__(self, folder: Path):
        self._approved, self._pending = folder / "approved.json", folder / "pending.json"

    def approved(self, digest: str) -> bool:
        """Whether a process may run here.

        Raises:
          ArtifactError: if the file of approvals is damaged: then nothing may.
        """
        return digest in self._digests()

    def ask(self, digest: str, sentences: Sequence[str], **facts: Any) -> None:
        """Notes what waits for approval: the process, and what it promises."""
        write_json(self._pending, {"process": digest, "asked": now(), "statement": list(sentences), **facts})

    def pending(self) -> dict[str, Any] | None:
        """What waits for approval, or None."""
        return read_json(self._pending) if self._pending.exists() else None

    def approve(self, digest: str) -> None:
        """Approves the process that waits for it.

        Raises:
          ConfigError: if it is not the one that waits: what was not shown is not approved.
        """
        pending = self.pending()
        if pending is None or pending["process"] != digest:
            waiting = "none" if pending is None else pending["process"]
            raise ConfigError(
                f"{self._pending}: the process that waits for approval is {waiting}; expected {digest}. Look at it again with `tff-pipeline silo approve`."
            )
        if not self.approved(digest):
            entries = [*self.entries(), {"process": digest, "approved": now(), "statement": pending["statement"]}]
            write_json(self._approved, {"approved": entries})
        self._pending.unlink()

    def _digests(self) -> set[str]:
        return {entry["process"] for entry in self.entries()}

    def entries(self) -> list[dict[str, Any]]:
        """What was approved, oldest first."""
        if not self._approved.exists():
            return []
        entries = read_json(self._approved).get("approved")
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and "process" in entry for entry in entries
        ):
            raise ArtifactError(
                f"{self._approved}: does not hold a list of approvals; expected what `tff-pipeline silo approve` writes. Nothing takes part until it is restored or removed."
            )
        return entries
