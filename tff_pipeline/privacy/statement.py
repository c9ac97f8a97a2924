"""The guarantee in sentences, from the plan and nothing else.

Every sentence is held by a test or names an assumption of docs/privacy.md: tests/test_statement.py has the table, and
fails for a sentence that is not in it.
"""

import math
from collections.abc import Iterator

from tff_pipeline.privacy.distributed import Integers
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
        said += [_guarantee(plan), _mechanism(plan)]
        if plan.unit == "silo":
            said.append(cost(plan))
        said += [_who_is_protected(plan), _accounting(plan, seeded=seeded)]
    else:
        said.append(
            'No guarantee: privacy.mechanism is "none". Epsilon is infinite; the model may remember its training texts.'
        )
    said.append(
        f"Contribution bound: at most {plan.max_examples_per_client} examples of a client are kept, and each is used {plan.local_epochs} time(s) in a round the {plan.unit} takes part in."
        + (" However many clients a silo has, its update is clipped as one." if _clipped_as_one(plan) else "")
    )
    if reference:
        said.append(
            'Simulation: under runtime.kind = "reference" the secure sum is TFF\'s plaintext stand-in. It protects nothing; use it on text you may see.'
        )
    else:
        said += [_secure_sum(plan, silos), _PROCESSES]
    if seeded:
        said.append(
            "Seed: pipeline.seed is set, so sampling and noise can be recomputed by anyone who knows it. The guarantee holds only against someone who does not."
        )
    said += [" ".join(_training_metrics(plan, metrics)), " ".join(_not_covered(plan))]
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


def _mechanism(plan: PrivacyPlan) -> str:
    if plan.trees:
        return _tree(plan)
    taking_part = f"{plan.rounds} rounds; in each, every one of {plan.clients} {plan.unit}s takes part independently with probability {plan.sampling_probability:.6g} (Poisson sampling), its update is clipped to an L2 norm of {_clip(plan)}"
    if plan.integers:
        return _shared_noise(plan, plan.integers, taking_part)
    return (
        f"Mechanism: {taking_part}, and Gaussian noise of standard deviation {plan.noise_stddev:.6g} {_noise_in_words(plan)} "
        f"is added to the sum at the server. The noised sum is divided by {plan.denominator:g}, the expected cohort."
    )


def cost(plan: PrivacyPlan) -> str:
    """What the noise does to a round, in a sentence."""
    return (
        f"Cost: the noise on a round's mean update is about {plan.noise_over_clip:.3g} times as long as the clip, which no {plan.unit}'s update is longer than; {plan.denominator:g} {plan.unit}(s) a round must outweigh it. "
        f"It falls with more {plan.unit}s in a round, a larger epsilon, fewer rounds, and fewer trained weights (with the root of their number, which is {plan.dimension} here)."
    )


def _clip(plan: PrivacyPlan) -> str:
    """The bound on an update's norm."""
    if not plan.adaptive:
        return f"{plan.clip_norm:g}"
    return f"{plan.clip_norm:g} in the first round, and then of what follows the {plan.clip_quantile:g} quantile of the {plan.unit}s' norms (adaptive clipping)"


def _noise_in_words(plan: PrivacyPlan) -> str:
    """What the noise's standard deviation is made of."""
    others = []
    if plan.adaptive:
        others.append(
            f"the number of {plan.unit}s within the clip, which sets the next one and has noise of standard deviation {plan.clip_count_stddev:g}"
        )
    if plan.metrics_stddev:
        others.append(f"the metrics, whose two sums have noise of standard deviation {plan.metrics_stddev:g}")
    said = f"{plan.update_noise_multiplier:.6g} times the sensitivity, quantisation included"
    if others:
        said += f"; with {' and '.join(others)}, a round is a Gaussian mechanism with noise multiplier {plan.noise_multiplier:g}"
    return ("times the round's clip " if plan.adaptive else "") + f"({said})"


def _tree(plan: PrivacyPlan) -> str:
    """DP-FTRL's mechanism."""
    return (
        f"Mechanism: DP-FTRL (tree aggregation) over {plan.rounds} rounds. A tree spans {plan.rounds_per_tree} rounds, and a {plan.unit} takes part in at most one round of each: every one of {plan.clients} {plan.unit}s draws its turn, and has one with probability "
        f"{min(1.0, plan.rounds_per_tree * plan.sampling_probability):.6g}. So it takes part at most {plan.trees} time(s), in {plan.trees} tree(s) of at most {plan.levels} level(s). Its update is clipped to an L2 norm of {plan.clip_norm:g}. Every node of a tree has Gaussian noise of standard deviation "
        f"{plan.noise_stddev:.6g} ({plan.noise_multiplier:g} times the sensitivity, quantisation included), added at the server, so that the sum of all updates since a tree began has the noise of at most {plan.levels} node(s). A round's noised sum is divided by {plan.denominator:g}, the expected cohort."
    )


def _shared_noise(plan: PrivacyPlan, integers: Integers, taking_part: str) -> str:
    return (
        f"Mechanism: {taking_part}, rotated at random and rounded to whole multiples of {integers.quantum:.6g}. Each of {integers.silos} silos adds to its sum, before it is masked, discrete Gaussian noise of "
        f"standard deviation 2^{integers.log2_share} such multiples, {integers.quantum * 2**integers.log2_share:.6g}. The guarantee counts on {integers.honest} of these shares, which together are at least {plan.noise_multiplier:g} times the sensitivity, "
        f"rotation and rounding included; all of them have a standard deviation of {plan.noise_stddev:.6g}. The sum is taken modulo 2^{integers.bits}, and divided by {plan.denominator:g}, the expected cohort."
    )


def _who_is_protected(plan: PrivacyPlan) -> str:
    this_run = " The guarantee is about this run; what all runs on the same population spend together is in its ledger."
    if plan.unit == "client":
        return (
            "Who is protected: a client is whoever the client column names at one silo; at a silo without such a column each row is a client. "
            "A person who is a client of two silos, or goes by two names, is protected as two clients, which is less."
            + this_run
        )
    others = ", the other silos among them" if _holds_against_a_silo(plan) else ""
    return (
        f"Who is protected: a silo as a whole, against whoever gets the model{others}; that it takes part in the run is public. Each of its clients is protected too, and less: "
        f"a single client can change its silo's update into another one, for which the run is ({rounded_up(plan.client_epsilon)}, {plan.delta!r})-differentially private."
        + (
            ""
            if plan.integers
            else " In a round for which a single silo was drawn the sum that the server sees is that silo's."
        )
        + this_run
    )


def _holds_against_a_silo(plan: PrivacyPlan) -> bool:
    """Whether a silo, which sees every round's model and knows its own share of the noise, is one of those it holds against."""
    return plan.integers is None or plan.integers.honest < plan.integers.silos


def _accounting(plan: PrivacyPlan, *, seeded: bool) -> str:
    said = [
        f"Accounting: the privacy loss distributions of dp_accounting, composed over the rounds, neighbours by adding or removing one {plan.unit}; the number of {plan.unit}s, from which the sampling probability follows, is treated as public.",
        "A round that is repeated after a crash is the same release, with the same cohort and the same noise, and is charged once; where a key was lost, or the round starts from something else, cohort and noise are drawn anew, and it is charged again.",
    ]
    if plan.trees:
        said += [
            "No sampling is counted on.",
            f"A {plan.unit} that is removed is one whose updates are replaced by zero, since the denominator is a public number and every {plan.unit}'s turn is drawn by itself: the two neighbouring relations are the same here.",
            "A tree that the run did not finish is charged as far as it went.",
        ]
    if plan.integers:
        said.append(
            f"The silos' integers are accounted for as the Gaussian noise they are proven to be worth, which no probability differs from by more than a factor of 1 + 10^{math.ceil(math.log10(2 * plan.log_error))} over all rounds; that is counted."
        )
    else:
        said.append(
            "The noise is computed in float64, rounded to about a thousandth of its standard deviation, and accounted for as exactly Gaussian; docs/privacy.md estimates what that leaves out."
        )
    said += [
        f"All randomness is ChaCha20 under secrets {'that follow from the seed' if seeded else 'of the operating system'}, and is accounted for as if it were perfect.",
        "Epsilon is rounded up to four digits, delta and counts are exact, and other numbers are shown to at most six digits.",
    ]
    return " ".join(said)


def _clipped_as_one(plan: PrivacyPlan) -> bool:
    return plan.unit == "silo" and plan.clip_norm is not None


def _secure_sum(plan: PrivacyPlan, silos: int) -> str:
    if plan.integers:
        return " ".join(_who_adds_noise(plan, plan.integers))
    said = (
        "Secure sum: there is one silo, so its masked sum is its sum. The server sees it."
        if silos == 1
        else f"Secure sum: what a silo sends is masked with keys agreed pairwise among the {silos} silos; a server that follows the protocol learns the sums over all silos of {_summed(plan)}, and nothing more as long as no silo tells it its own."
    )
    if plan.private:
        said += (
            f" The server is trusted to add the noise, and the silos to {'give turns' if plan.trees else 'sample'} and clip as stated. "
            "The guarantee holds against whoever gets the models; it does not hold against the server, which has every sum without noise."
        )
    return said


def _summed(plan: PrivacyPlan) -> str:
    """What a round's secure sums are of, where the server adds the noise."""
    if not plan.private:
        return "their updates, of the weights that these are counted by, and of their training metrics"
    within = f" and of the number of {plan.unit}s within the clip" if plan.adaptive else ""
    return f"their updates{within}, before the noise, and of their training metrics"


def _who_adds_noise(plan: PrivacyPlan, integers: Integers) -> Iterator[str]:
    """Who is trusted where silos add the noise."""
    if integers.silos == 1:
        yield "Secure sum: there is one silo."
        yield "The server sees what it sends, which has the noise in it already, so nobody outside the silo sees a sum of updates without noise."
    else:
        yield (
            f"Secure sum: what a silo sends has its share of the noise in it, and is masked with keys agreed pairwise among the {integers.silos} silos; a server that follows the protocol learns the noised sum over all silos, "
            "never a sum of updates without noise."
        )
    yield (
        f"Nothing else leaves a silo in a round: no loss, no accuracy and no number of clients, and it sends as much when {'it was not' if plan.unit == 'silo' else 'none of its clients was'} drawn."
    )
    yield (
        "How long a silo works is not hidden: it grows with what was drawn, and whoever measures it (times in logs and files are enough) may learn how large a cohort was, which the guarantee assumes nobody does."
    )
    if integers.silos == 1:
        yield "The guarantee holds against the server."
        yield "The silo trusts nobody; its clients trust it to sample, clip and add the noise as stated."
        return
    several, others = (
        integers.silos - integers.honest,
        "for the others" if plan.unit == "silo" else "for the clients of the others",
    )
    yield (
        "The guarantee holds against the server."
        if not several
        else f"The guarantee holds against the server together with any one of the silos, which may tell it its share or leave it out, {others}."
        if several == 1
        else f"The guarantee holds against the server together with any {several} of the silos, which may tell it their shares or leave them out, {others}."
    )
    if not several:
        yield "It does not hold against a silo, which sees every round's model and can take its own share away: privacy.tolerated_silos = 1 covers that."
    yield f"Each silo trusts {integers.honest} of the {integers.silos} to add their shares as stated, and all to sample and clip."


def _training_metrics(plan: PrivacyPlan, metrics: str) -> Iterator[str]:
    if plan.integers:
        yield "Training metrics: there are none, in no file and no log."
        yield "An update that is not finite counts as zero, and nobody is told."
        return
    yield "Training metrics: the loss, the accuracy and the size of the cohort of every round are sums without noise, which no guarantee covers."
    yield "The server's operator has them: in memory, in the run's folder (rounds.csv, states and TensorBoard), and on standard error after every round, from where they reach whoever reads its log."
    if plan.private:
        yield "The guarantee does not hold against whoever has those of all rounds."
    yield "A run that stops because no update of a round was finite tells as much."
    if metrics == "released":
        yield "Those of the last round are released with every exported version, and the guarantee does not cover what they tell."
        return
    yield "They are withheld: no exported version has them."
    if metrics == "noised":
        yield f"What is released of a round is the mean of the {plan.unit}s' own accuracies, from two sums with Gaussian noise of standard deviation {plan.metrics_stddev:g}, which epsilon covers."


def _not_covered(plan: PrivacyPlan) -> Iterator[str]:
    whom = "those clients" if plan.unit == "client" else "those clients and their silos"
    yield "Not covered: the choice of hyperparameters; what the public checkpoint was trained on; that a run stops with an error."
    yield f"The evaluation on held-out clients, who took no part in training, is a release about {whom}, and no guarantee covers it."
    yield "An evaluation on training clients (`evaluate --split train`) is a release about them that no guarantee covers; it is printed for whoever asks for it, and neither a file of the run nor an exported version has it."
    yield "Label names, the tokenizer, and the numbers of clients and examples by silo, which manifests and exported versions carry, are treated as public."
