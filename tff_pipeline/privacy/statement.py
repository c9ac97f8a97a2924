"""The guarantee in sentences, for whoever signs it: from the plan and nothing else.

What a mechanism does, and who is trusted with it, the mechanism says itself; here is what holds for all of them. Every
sentence is held by a test or names an assumption of docs/privacy.md: tests/builders/statement_table.py has the table, and
tests/privacy/test_statement.py fails for a sentence that is not in it.
"""

from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.rounding import rounded_up

# Said once by a run whose silos add the noise, in place of the metrics that other runs show.
NO_METRICS = (
    'no loss, accuracy or number of clients is shown or kept for a round: with privacy.mechanism = "distributed_discrete_gaussian" nothing leaves a silo but its noised sum. '
    "An update that is not finite counts as zero, and nobody is told. Once the run is finished, `tff-pipeline evaluate` measures the model on held-out clients."
)


def sentences(plan: PrivacyPlan, *, seeded: bool, reference: bool = False, metrics: str = "withheld") -> list[str]:
    """What a privacy officer reads: paragraphs, each about one question.

    Args:
      plan: the run's.
      seeded: whether `pipeline.seed` is set.
      reference: whether the run is simulated under TFF's own executor, whose secure sum is plaintext.
      metrics: "withheld", "released" or "noised", as in `privacy.metrics`.
    """
    mechanism = plan.mechanism
    paragraphs = [_guarantee(plan)] if plan.private else []
    paragraphs.append(mechanism.mechanism_sentences(plan))
    if plan.private:
        if plan.unit == "silo":
            paragraphs.append([cost(plan)])
        paragraphs += [_who_is_protected(plan), _accounting(plan, seeded=seeded)]
    paragraphs.append(_contribution(plan))
    paragraphs += [_SIMULATION] if reference else [mechanism.secure_sum_sentences(plan), _PROCESSES]
    if seeded:
        paragraphs.append(_SEED)
    paragraphs += [mechanism.metrics_sentences(plan, metrics), _not_covered(plan)]
    return [" ".join(paragraph) for paragraph in paragraphs]


_SIMULATION = [
    'Simulation: with runtime.kind = "reference" the secure sum is replaced by TensorFlow Federated\'s sum in plaintext.',
    "It protects nothing; use it only on texts that you are allowed to see.",
]
_PROCESSES = [
    "Processes: this version runs the server and all silos in one process, so anybody who can read its memory or the silos' folders sees everything.",
    "What this statement says about the server is about what the silos send to it.",
]
_SEED = [
    "Seed: pipeline.seed is set, so anybody who knows it can recompute the sampling and the noise.",
    "The guarantee holds only against those who do not know it.",
]


def _guarantee(plan: PrivacyPlan) -> list[str]:
    one = "one client and all its texts" if plan.unit == "client" else "one silo, with all its clients and texts,"
    paragraph = [
        f"Guarantee: the trained model is ({rounded_up(plan.epsilon())}, {plan.delta!r})-differentially private for the {plan.unit}.",
        f"Adding {one} to the training data or removing it changes the probability of any set of outcomes by at most a factor of e^epsilon, plus delta.",
        "The same holds for the models of all rounds taken together, and for whatever is computed from them alone.",
    ]
    if plan.large_delta:
        paragraph += [
            f"Delta is not below one divided by the number of {plan.unit}s, {plan.clients}: publishing everything about one of them, chosen at random, would satisfy such a delta.",
            "The configuration accepts that explicitly (privacy.allow_large_delta).",
        ]
    return paragraph


def cost(plan: PrivacyPlan) -> str:
    """What the noise does to a round."""
    return (
        f"Cost: the noise on the mean update of a round is about {plan.noise_over_clip:.3g} times as long as the clip, the greatest length of a {plan.unit}'s update; the updates of {plan.denominator:g} {plan.unit}(s) in a round must outweigh it. "
        f"The noise becomes shorter with more {plan.unit}s in a round, a larger epsilon, fewer rounds, and fewer trained weights (its length grows with the square root of their number, which is {plan.dimension} here)."
    )


def _who_is_protected(plan: PrivacyPlan) -> list[str]:
    this_run = "The guarantee is about this run; the ledger of the population has what all runs on it spend together."
    if plan.unit == "client":
        return [
            "Who is protected: a client is whatever the client column of a silo's data names; in data without such a column each row is a client.",
            "A person who is a client of two silos, or has two names in one, counts as two clients and is protected less.",
            this_run,
        ]
    others = ", including the other silos" if plan.mechanism.holds_against_silos(plan) else ""
    paragraph = [
        f"Who is protected: each silo as a whole, against anybody who obtains the model{others}; that the silo takes part in the run is public.",
        f"Each client of a silo is protected too, but less: a single client can change its silo's update into another one, and for the client the run is ({rounded_up(plan.client_epsilon)}, {plan.delta!r})-differentially private.",
    ]
    if not plan.mechanism.silos_add_noise:
        paragraph.append(
            "In a round for which only one silo was drawn, the sum that the server sees is the update of that silo."
        )
    return [*paragraph, this_run]


def _accounting(plan: PrivacyPlan, *, seeded: bool) -> list[str]:
    keys = "keys that follow from the seed" if seeded else "keys from the operating system's generator"
    return [
        f"Accounting: epsilon is computed from the privacy loss distributions of dp_accounting, composed over the rounds, for populations that differ in one {plan.unit} which is added or removed.",
        f"The number of {plan.unit}s, from which the sampling probability follows, is treated as public.",
        "A round that is repeated after a crash has the same cohort and the same noise; it is the same release, and is charged once.",
        "Where a key was lost, or the round starts from something else, cohort and noise are drawn anew, and the round is charged again.",
        *plan.mechanism.accounting_sentences(plan),
        f"All random numbers come from the stream cipher ChaCha20 under {keys}, and are accounted for as if they were perfectly random.",
        "Epsilon is rounded up to four digits, delta and counts are exact, and other numbers are shown with at most six digits.",
    ]


def _contribution(plan: PrivacyPlan) -> list[str]:
    paragraph = [
        f"Contribution bound: at most {plan.max_examples_per_client} examples of a client are kept, and each of them is used {plan.local_epochs} time(s) in a round in which the {plan.unit} takes part."
    ]
    if plan.unit == "silo" and plan.clip_norm is not None:
        paragraph.append("The update of a silo is clipped as a whole, however many clients the silo has.")
    return paragraph


def _not_covered(plan: PrivacyPlan) -> list[str]:
    whom = "those clients" if plan.unit == "client" else "those clients and their silos"
    return [
        "Not covered: the choice of hyperparameters; what the public checkpoint was trained on; the fact that a run stops with an error.",
        f"The evaluation on held-out clients, who took no part in training, releases information about {whom}, and no guarantee covers it.",
        "An evaluation on training clients (`evaluate --split train`) releases information about them that no guarantee covers; it is printed for the person who asks for it, and is kept in no file of the run and in no exported version.",
        "Label names, the tokenizer, and the numbers of clients and examples of each silo are treated as public; manifests and exported versions contain them.",
    ]
