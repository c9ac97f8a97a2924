"""The guarantee in sentences, from the plan and nothing else.

Every sentence is held by a test or names an assumption of docs/privacy.md: tests/test_statement.py has the table, and
fails for a sentence that is not in it.
"""

from collections.abc import Iterator

from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.rounding import rounded_up

# Said once by a run whose silos add the noise, in place of the metrics that other runs show.
NO_METRICS = (
    'no loss, accuracy or number of clients is shown or kept by round: with privacy.mechanism = "distributed_discrete_gaussian" nothing leaves a silo but its noised sum. '
    "An update that is not finite counts as zero, and nobody is told. How good the model is, `tff-pipeline evaluate` says on held-out clients once the run is finished."
)


def sentences(
    plan: PrivacyPlan, *, seeded: bool, silos: int, reference: bool = False, metrics: str = "withheld"
) -> list[str]:
    """What a privacy officer reads: paragraphs, each about one question.

    Args:
      plan: the run's.
      seeded: whether `pipeline.seed` is set.
      silos: number of silos; with one there is nothing for its sum to hide in.
      reference: whether the run is simulated under TFF's own executor, whose secure sum is plaintext.
      metrics: "withheld", "released" or "noised", as in `privacy.metrics`.
    """
    said = []
    if plan.private:
        said += [_guarantee(plan), plan.mechanism.mechanism_sentence(plan)]
        if plan.unit == "silo":
            said.append(cost(plan))
        said += [_who_is_protected(plan), _accounting(plan, seeded=seeded)]
    else:
        said.append(plan.mechanism.mechanism_sentence(plan))
    said.append(
        f"Contribution bound: at most {plan.max_examples_per_client} examples of a client are kept, and each is used {plan.local_epochs} time(s) in a round the {plan.unit} takes part in."
        + (" However many clients a silo has, its update is clipped as one." if _clipped_as_one(plan) else "")
    )
    if reference:
        said.append(
            'Simulation: under runtime.kind = "reference" the secure sum is TFF\'s plaintext stand-in. It protects nothing; use it on text you may see.'
        )
    else:
        said += [" ".join(plan.mechanism.secure_sum_sentences(plan, silos)), _PROCESSES]
    if seeded:
        said.append(
            "Seed: pipeline.seed is set, so sampling and noise can be recomputed by anyone who knows it. The guarantee holds only against someone who does not."
        )
    said += [" ".join(plan.mechanism.metrics_sentences(plan, metrics)), " ".join(_not_covered(plan))]
    return said


_PROCESSES = (
    "Processes: this version runs the server and all silos in one process, so whoever reads its memory or the silos' folders sees everything. "
    "What is said here of the server is about what the silos send to it."
)


def _guarantee(plan: PrivacyPlan) -> str:
    said = (
        f"Guarantee: the trained model is ({rounded_up(plan.epsilon())}, {plan.delta!r})-differentially private for the {plan.unit}: adding or removing {_one(plan)}, "
        "changes the probability of any set of outcomes by at most a factor of e^epsilon, plus delta. The same holds for the models of all rounds together, and for whatever is computed from them alone."
    )
    if plan.large_delta:
        said += (
            f" Delta is not below one in the number of {plan.unit}s, {plan.clients}: publishing everything about one of them, chosen at random, would satisfy such a delta. "
            "The configuration insists on it (privacy.allow_large_delta)."
        )
    return said


def _one(plan: PrivacyPlan) -> str:
    return "one client, with all its texts" if plan.unit == "client" else "all texts of one silo, with all its clients"


def cost(plan: PrivacyPlan) -> str:
    """What the noise does to a round, in a sentence."""
    return (
        f"Cost: the noise on a round's mean update is about {plan.noise_over_clip:.3g} times as long as the clip, which no {plan.unit}'s update is longer than; {plan.denominator:g} {plan.unit}(s) a round must outweigh it. "
        f"It falls with more {plan.unit}s in a round, a larger epsilon, fewer rounds, and fewer trained weights (with the root of their number, which is {plan.dimension} here)."
    )


def _who_is_protected(plan: PrivacyPlan) -> str:
    this_run = " The guarantee is about this run; what all runs on the same population spend together is in its ledger."
    if plan.unit == "client":
        return (
            "Who is protected: a client is whoever the client column names at one silo; at a silo without such a column each row is a client. "
            "A person who is a client of two silos, or goes by two names, is protected as two clients, which is less."
            + this_run
        )
    others = ", the other silos among them" if plan.mechanism.holds_against_silos(plan) else ""
    return (
        f"Who is protected: a silo as a whole, against whoever gets the model{others}; that it takes part in the run is public. Each of its clients is protected too, and less: "
        f"a single client can change its silo's update into another one, for which the run is ({rounded_up(plan.client_epsilon)}, {plan.delta!r})-differentially private."
        + (
            ""
            if plan.mechanism.silos_add_noise
            else " In a round for which a single silo was drawn the sum that the server sees is that silo's."
        )
        + this_run
    )


def _accounting(plan: PrivacyPlan, *, seeded: bool) -> str:
    said = [
        f"Accounting: the privacy loss distributions of dp_accounting, composed over the rounds, neighbours by adding or removing one {plan.unit}; the number of {plan.unit}s, from which the sampling probability follows, is treated as public.",
        "A round that is repeated after a crash is the same release, with the same cohort and the same noise, and is charged once; where a key was lost, or the round starts from something else, cohort and noise are drawn anew, and it is charged again.",
    ]
    said += plan.mechanism.accounting_sentences(plan)
    said += [
        f"All randomness is ChaCha20 under secrets {'that follow from the seed' if seeded else 'of the operating system'}, and is accounted for as if it were perfect.",
        "Epsilon is rounded up to four digits, delta and counts are exact, and other numbers are shown to at most six digits.",
    ]
    return " ".join(said)


def _clipped_as_one(plan: PrivacyPlan) -> bool:
    return plan.unit == "silo" and plan.clip_norm is not None


def _not_covered(plan: PrivacyPlan) -> Iterator[str]:
    whom = "those clients" if plan.unit == "client" else "those clients and their silos"
    yield "Not covered: the choice of hyperparameters; what the public checkpoint was trained on; that a run stops with an error."
    yield f"The evaluation on held-out clients, who took no part in training, is a release about {whom}, and no guarantee covers it."
    yield "An evaluation on training clients (`evaluate --split train`) is a release about them that no guarantee covers; it is printed for whoever asks for it, and neither a file of the run nor an exported version has it."
    yield "Label names, the tokenizer, and the numbers of clients and examples by silo, which manifests and exported versions carry, are treated as public."
