"""Runtimes over a case, of which a test says the cohorts and the noise."""

from builders.cases import Case
from tff_pipeline.runtime.scripted import ScriptedRuntime


def local(case: Case) -> ScriptedRuntime:
    """All silos and the server in this process. To be closed, as a context manager does."""
    from tff_pipeline.runtime.local import LocalRuntime

    return ScriptedRuntime(LocalRuntime, case.compiled, case.silos, session="test")


def reference(case: Case) -> ScriptedRuntime:
    """TFF's own executor. To be closed, as a context manager does."""
    from tff_pipeline.runtime.reference import ReferenceRuntime

    return ScriptedRuntime(ReferenceRuntime, case.compiled, case.silos)
