"""Runs verification.py on a version in a fresh process, which has loaded nothing that a model server does not have."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tff_pipeline.errors import ExportError
from tff_pipeline.export import verification
from tff_pipeline.export.verification_request import VerificationRequest

TIMEOUT_S = 600.0


def verify(model: Path, request: VerificationRequest, *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Verifies `model` in a process that ends when this one does.

    Returns:
      What each check saw.

    Raises:
      ExportError: naming the check that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        request_file, errors = Path(folder) / "request.json", Path(folder) / "stderr"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        script = [sys.executable, "-I", verification.__file__, str(model), str(request_file)]
        with (Path(folder) / "stdout").open("w+b") as output, errors.open("wb") as error_output:
            # Standard input stays open as long as this process lives; the child watches it.
            with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=output, stderr=error_output) as child:
                try:
                    exit_code = child.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    raise ExportError(
                        f"the exported model did not pass its verification: it took longer than {timeout_s:g} s. No version was made."
                    ) from None
                finally:
                    child.kill()
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        try:
            result = json.loads(lines[-1])
        except (IndexError, ValueError):
            last = errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise ExportError(
                f"the verification of the exported model ended with code {exit_code} and no result ({' '.join(last)[:300]}). No version was made."
            ) from None
    if "failed" in result:
        raise ExportError(
            f"the exported model did not pass its verification. {result['failed']}: {result['because']}. No version was made."
        )
    return result["passed"]
