"""The guarantee in sentences, from the plan and nothing else."""

import math

from tff_pipeline.privacy.distributed import Integers
from tff_pipeline.privacy.plan import PrivacyPlan


def rounded_up(epsilon: float) -> str:
    """To four digits, never down: what is promised is at least what was worked out."""
    if not 0 < epsilon < math.inf:
        return f"{epsilon:g}"
    digits = 3 - math.floor(math.log10(epsilon))
    return f"{math.ceil(round(epsilon * 10**digits, 6)) / 10**digits:.4g}"


def sentences(
    plan: PrivacyPlan, *, seeded: bool, silos: int, reference: bool = False, metrics: str = "withheld"
) -> list[str]:
    """What a privacy officer reads, one statement a sentence group.

    Args:
      plan: the run's.
      seeded: whether `pipeline.seed` is set.
      silos: number of silos; with one there is nothing for its sum to hide in.
      reference: whether the run is simulated under TFF's own executor, whose secure sum is plaintext.
      metrics: "withheld", "released" or "noised", as in `privacy.metrics`.
    """
    said = []
    if plan.private:
        said.append(
            f"Guarantee: the trained model is ({rounded_up(plan.epsilon())}, {plan.delta:g})-differentially private for the {plan.unit}: adding or removing {_one(plan)}, "
            f"changes the probability of any set of outcomes by at most a factor of e^epsilon, plus delta."
        )
        taking_part = f"{plan.rounds} rounds; in each, every one of {plan.clients} {plan.unit}s takes part independently with probability {plan.sampling_probability:.6g} (Poisson sampling), its update is clipped to an L2 norm of {_clip(plan)}"
        if plan.integers:
            said.append(_shared_noise(plan, plan.integers, taking_part))
        elif plan.trees:
            said.append(_tree(plan))
        else:
            said.append(
                f"Mechanism: {taking_part}, and Gaussian noise of standard deviation {plan.noise_stddev:.6g} {_noise_in_words(plan)} "
                f"is added to the sum at the server. The noised sum is divided by {plan.denominator:g}, the expected cohort."
            )
        if plan.unit == "silo":
            said.append(cost(plan))
        said.append(
            _who_is_protected(plan)
            + " The guarantee is about this run; what all runs on the same population spend together is in its ledger."
        )
        said.append(
            f"Accounting: the privacy loss distributions of dp_accounting, composed over the rounds, neighbours by adding or removing one {plan.unit}; the number of {plan.unit}s, from which the sampling probability follows, is treated as public. A round that was repeated after a crash is the same draw "
            "and is charged once."
            + (
                f" No sampling is counted on. A {plan.unit} that is removed is one whose updates are replaced by zero, since the denominator is a public number and every {plan.unit}'s turn is drawn by itself: "
                "the two neighbouring relations are the same here. A tree that the run did not finish is charged as far as it went."
                if plan.trees
                else ""
            )
            + (
                f" The silos' integers are accounted for as the Gaussian noise they are proven to be worth, which no probability differs from by more than a factor of 1 + 10^{math.ceil(math.log10(2 * plan.log_error))} over all rounds; that is counted."
                if plan.integers
                else ""
            )
        )
    else:
        said.append(
            'No guarantee: privacy.mechanism is "none". Epsilon is infinite; the model may remember its training texts.'
        )
    said.append(
        f"Contribution bound: at most {plan.max_examples_per_client} examples of a client are kept, and each is used {plan.local_epochs} time(s) in a round the {plan.unit} takes part in."
        + (" However many clients a silo has, its update is clipped as one." if plan.unit == "silo" else "")
    )
    if reference:
        said.append(
            'Simulation: under runtime.kind = "reference" the secure sum is TFF\'s plaintext stand-in. It protects nothing; use it on text you may see.'
        )
    elif plan.integers:
        said.append(_who_adds_noise(plan.integers))
    elif silos == 1:
        said.append("Secure sum: there is one silo, so its masked sum is its sum. The server sees it.")
    else:
        said.append(
            f"Secure sum: what a silo sends is masked with keys agreed pairwise among the {silos} silos; a server that follows the protocol learns the sum over all silos before the noise, and nothing of a single "
            "silo. The server is trusted to add the noise, and the silos to sample and clip as stated."
        )
    if seeded:
        said.append(
            "Seed: pipeline.seed is set, so sampling and noise can be recomputed by anyone who knows it. The guarantee holds only against someone who does not."
        )
    said.append(
        "Training metrics (loss, accuracy and the size of the cohort, by round) are secure sums without noise, which epsilon does not cover. "
        + (
            "Those of the last round are released with every exported version."
            if metrics == "released"
            else "They are withheld: they stay in the run's folder, for its operator, and no exported version has them."
            + (
                f" What is released of a round is the mean of the {plan.unit}s' own accuracies, from two sums with Gaussian noise of standard deviation {plan.metrics_stddev:g}, which epsilon covers."
                if metrics == "noised"
                else ""
            )
        )
    )
    said.append(
        f"Not covered: the choice of hyperparameters; the evaluation on held-out clients, which is a release about those clients, who took no part in training{_held_out(plan)}; label names, the tokenizer and the counts in the "
        "manifests, which are treated as public."
    )
    return said


def _one(plan: PrivacyPlan) -> str:
    return "one client, with all its texts" if plan.unit == "client" else "all texts of one silo, with all its clients"


def _held_out(plan: PrivacyPlan) -> str:
    return "" if plan.unit == "client" else ", and about their silos"


def _who_is_protected(plan: PrivacyPlan) -> str:
    if plan.unit == "client":
        return "Who is protected: a client is whoever the client column names at one silo. A person who is a client of two silos, or goes by two names, is protected as two clients, which is less."
    return (
        "Who is protected: a silo as a whole, against whoever gets the model, the other silos among them; that it takes part in the run is public. Each of its clients is protected too, and less: "
        f"a single client can change its silo's update into another one, for which the run is ({rounded_up(plan.client_epsilon)}, {plan.delta:g})-differentially private."
        + (
            ""
            if plan.integers
            else " In a round for which a single silo was drawn the sum that the server sees is that silo's."
        )
    )


def cost(plan: PrivacyPlan) -> str:
    """What the noise does to a round, in a sentence."""
    return (
        f"Cost: the noise on a round's mean update is about {plan.noise_over_clip:.3g} times as long as the clip, which no {plan.unit}'s update is longer than: {plan.denominator:g} {plan.unit}(s) a round have to be heard over it. "
        f"It falls with the number of {plan.unit}s in a round, with a larger epsilon, fewer rounds, and the root of the number of weights trained, which is {plan.dimension} here."
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
        f"standard deviation 2^{integers.log2_share} such multiples, {integers.quantum * 2**integers.log2_share:.6g}. The guarantee counts on {integers.honest} of these shares, which together are {plan.noise_multiplier:g} times the sensitivity, "
        f"rotation and rounding included; all of them have a standard deviation of {plan.noise_stddev:.6g}. The sum is taken modulo 2^{integers.bits}, and divided by {plan.denominator:g}, the expected cohort."
    )


def _who_adds_noise(integers: Integers) -> str:
    """Who is trusted where silos add the noise."""
    if integers.silos == 1:
        return (
            "Secure sum: there is one silo. The server sees what it sends, which has the noise in it already, so nobody outside the silo sees a sum of updates without noise. "
            "The silo trusts nobody; its clients trust it to sample, clip and add the noise as stated."
        )
    against = (
        "the server"
        if integers.honest == integers.silos
        else "the server together with any one of the silos, which may tell it its share or leave it out"
        if integers.silos - integers.honest == 1
        else f"the server together with any {integers.silos - integers.honest} of the silos, which may tell it their shares or leave them out"
    )
    weaker = (
        ""
        if integers.honest < integers.silos
        else " It does not hold against a silo, which sees every round's model and can take its own share away: privacy.tolerated_silos = 1 covers that."
    )
    return (
        f"Secure sum: what a silo sends has its share of the noise in it, and is masked with keys agreed pairwise among the {integers.silos} silos; a server that follows the protocol learns the noised sum over all silos, "
        f"never a sum of updates without noise. The guarantee holds against {against}.{weaker} Each silo trusts {integers.honest} of the {integers.silos} to add their shares as stated, and all to sample and clip."
    )
