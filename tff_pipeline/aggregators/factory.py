"""From a mechanism to the `tff.aggregators` factory that carries it out: the one place that knows both.

Every aggregator clips on the client, sums securely, and divides by the expected cohort. Where the server adds the noise, it
is in the aggregator's state (`dp_sum`); where the silos add it, it is in the sum (`distributed_discrete_gaussian`).
"""

from collections.abc import Sequence

import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_pipeline.aggregators.distributed_discrete_gaussian import DistributedDiscreteGaussianFactory
from tff_pipeline.aggregators.dp_sum import AdaptiveClipSumQuery, SuppliedNoiseSumQuery
from tff_pipeline.aggregators.quantized_sum import QuantizedSumFactory
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, DistributedDiscreteGaussian, Gaussian, NoPrivacy, Tree
from tff_pipeline.privacy.plan import PrivacyPlan


def aggregator_for(plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> tff.aggregators.UnweightedAggregationFactory:
    """The aggregator of the plan's mechanism, for weights of these shapes.

    Raises:
      PrivacyError: for a mechanism that has no aggregator.
    """
    match plan.mechanism:
        case DistributedDiscreteGaussian() as mechanism:
            return DistributedDiscreteGaussianFactory(
                mechanism.discretization(plan), denominator=plan.denominator, shapes=shapes
            )
        case AdaptiveGaussian() as mechanism:
            query: tfp.SumAggregationDPQuery = AdaptiveClipSumQuery(
                clip_norm=mechanism.clip_norm,
                quantization=plan.quantization,
                quantile=mechanism.quantile,
                cohort=plan.denominator,
                rounding_step=plan.rounding_step,
                count_rounding_step=mechanism.count_rounding_step,
                shapes=shapes,
            )
        case Gaussian() | Tree() | NoPrivacy():
            query = SuppliedNoiseSumQuery(
                clip_norm=plan.clip_norm,
                quantization=plan.quantization,
                rounding_step=plan.rounding_step,
                shapes=shapes,
            )
        case other:
            raise PrivacyError(
                f'the mechanism "{other.kind}" ({type(other).__name__}) has no aggregator; expected one in tff_pipeline.aggregators.factory.'
            )
    quantized_sum = QuantizedSumFactory(
        largest=plan.quantization.largest_summand, clients=plan.quantization.largest_cohort
    )
    return tff.aggregators.DifferentiallyPrivateFactory(
        tfp.NormalizedQuery(query, plan.denominator), record_aggregation_factory=quantized_sum
    )


def weighted_aggregator_for(plan: PrivacyPlan, *, largest_weight: float) -> tff.aggregators.WeightedAggregationFactory:
    """Mean weighted by examples, without privacy. An empty cohort gives a mean of zero.

    Raises:
      PrivacyError: for a plan with privacy: a weight is something a client can change beyond its clip.
    """
    if plan.private:
        raise PrivacyError(
            f'clients are weighted by examples, and the mechanism is "{plan.mechanism.kind}"; expected training.weighting = "uniform" with privacy on: a weight is something a client can change beyond its clip.'
        )
    bound = plan.quantization.value_range * largest_weight
    return tff.aggregators.MeanFactory(
        value_sum_factory=tff.aggregators.SecureSumFactory(bound, -bound),
        weight_sum_factory=tff.aggregators.SecureSumFactory(float(largest_weight), 0.0),
        no_nan_division=True,
    )
