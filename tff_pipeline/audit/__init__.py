"""`tff-pipeline audit`: attacks the mechanism of a trained run, and says how much privacy it has at most.

What is attacked is what trains: party keys in files, `Draws`, the compiled process, the local runtime and `rounds.play`,
with the run's own plan. Only the clients are canaries, and the model is small (`testbed`, `canaries`). Nothing that is
random comes from the audit: a fault in a sampler, in the noise, in masks or in the wiring between them is in what it sees.

Three kinds of evidence refute a claim:

1. Checks of what was observed (`checks`): equalities that hold to the last digit, and tests with exact distributions
   (`exact`). All tests together refute a sound run with a probability of at most 5e-4.
2. A lower bound on epsilon (`attack`). The attacker sees what every round releases and says of each canary whether it took
   part, by where the sum lies along the canary's direction. A mechanism that is mu-GDP lets nobody have error rates alpha
   and beta with Phi^-1(1 - alpha) - Phi^-1(beta) > mu (Dong, Roth and Su 2019, arXiv:1905.02383, equation 6); with upper bounds of
   both rates (Clopper and Pearson 1934) this is a lower bound of mu, and 1 / mu an upper bound of the noise multiplier (Nasr
   et al. 2023, arXiv:2302.07956, section 4; after Jagielski et al. 2020, arXiv:2006.07709). A lower bound of how often clients are
   sampled takes the place of the sampling probability, and the accountant turns both into an epsilon of the run's rounds.
   With the stated confidence, by default 0.9995, the run has no smaller one.
3. What the run recorded (`recorded`): charges, cohort sizes, and the noise that its kept states differ by.

Hundreds of observations come from each round (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, use many canaries for the same
reason); they are independent because the directions are orthogonal and the noise of each coordinate is drawn by itself
(rotated back, discrete noise is so but for its shape, which after a sum of a hundred is that of a normal).

Where silos add the noise, the attacker is the server together with as many silos as the claim tolerates: it knows their
shares and subtracts them. Every silo's noise share is checked by itself too. With trees (DP-FTRL) a round's observation is the
noised sum of the node that the round finishes, in which a canary took part at most once.
"""

from tff_pipeline.audit.attack import Finding, audit
from tff_pipeline.audit.recorded import plan_of_run, uncharged

__all__ = ["Finding", "audit", "plan_of_run", "uncharged"]
