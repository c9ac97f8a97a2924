"""One round, as training and the audit both run it.

Comes in: the server's state and the round's draws. Goes out: the state after it, and who took part. What is drawn, where
the noise enters, and what a silo records before it reports are decided here and nowhere else, so that an audit of this
function is an audit of training.
"""

from collections.abc import Mapping

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.privacy.draws import RoundDraws
from tff_pipeline.runtime.base import RoundResult, Runtime, State, noise_places, with_noise, with_rotation


def play(
    compiled: Compiled, runtime: Runtime, state: State, draws: RoundDraws, clients: Mapping[str, int]
) -> tuple[RoundResult, dict[str, np.ndarray]]:
    """Draws the cohorts and the noise of a round, and runs it.

    Args:
      compiled: the process.
      runtime: what runs it.
      state: the server's, before the round.
      draws: of the round.
      clients: how many each silo has to draw from.

    Returns:
      What the round gave, and each silo's cohort: rows of its clients, int64, ascending.

    Raises:
      PrivacyError: if a silo has reported something else under the same draw.
    """
    cohorts = {silo: draws.cohort(silo, count) for silo, count in clients.items()}
    if draws.draws.plan.integers:
        state = with_rotation(compiled, state, draws.rotation())
        shares = draws.noise_share
    else:
        shares = None
        if noise_places(compiled):
            state = with_noise(compiled, state, draws.noise(compiled.shapes))
    result = runtime.run_round(state, cohorts, round_number=draws.number, shares=shares, on_sum=draws.record)
    return result, cohorts
