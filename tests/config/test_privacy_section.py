"""The keys of [privacy]: none is left out by accident, and none is given where it means nothing."""

import re

import pytest
from builders.configurations import MINIMAL, failure

from tff_pipeline.config import load


class TestPrivacyIsNeverLeftOutByAccident:
    def test_there_is_no_default_mechanism(self, write):
        assert 'privacy.mechanism is missing, and has no default; expected "gaussian", ' in failure(
            write('mechanism = "gaussian"\n', "")
        )

    def test_a_missing_section_is_an_error(self, write):
        section = MINIMAL[MINIMAL.index("[privacy]") :]

        assert "the section [privacy] is missing; expected it, since not all" in failure(write(section, ""))

    @pytest.mark.parametrize("key", ["clip_norm = 1.0\n", "delta = 1e-5\n"])
    def test_a_mechanism_needs_its_numbers(self, write, key):
        message = failure(write(key, ""))

        assert f"privacy.{key.split(' ')[0]} is None; expected a number with mechanism" in message
        assert 'For a run without privacy, write mechanism = "none"' in message

    def test_no_mechanism_takes_no_numbers(self, write):
        message = failure(write(), "privacy.mechanism=none")

        assert 'expected nothing with mechanism = "none", which promises nothing' in message

    @pytest.mark.parametrize("change", ["noise_multiplier = 1.0\ntarget_epsilon = 2.0", ""])
    def test_noise_is_given_in_exactly_one_way(self, write, change):
        message = failure(write("noise_multiplier = 1.0", change))

        assert "exactly one of privacy.noise_multiplier and privacy.target_epsilon" in message

    @pytest.mark.parametrize("key", ["clip_norm", "noise_multiplier", "delta"])
    def test_zero_is_no_number_for_it(self, write, key):
        assert f"privacy.{key} is 0.0; expected a number above 0" in failure(write(), f"privacy.{key}=0.0")

    def test_weights_by_examples_are_refused(self, write):
        message = failure(write(), "training.weighting=examples")

        assert "a weight is something a client can change beyond its clip" in message

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["privacy.tolerated_silos=0"], "privacy.tolerated_silos is 0; expected 0 to 0 .* nothing with another"),
            (["secure_sum.bits=16"], "secure_sum.bits is 16; expected 32 with another mechanism"),
            (["secure_sum.bits=24"], "secure_sum.bits is 24; expected 16 or 32"),
            (
                ["privacy.mechanism=distributed_discrete_gaussian", "privacy.tolerated_silos=1"],
                r"privacy.tolerated_silos is 1; expected 0 to 0 \(one silo at least has to be honest\)",
            ),
            (["privacy.mechanism=distributed_discrete_gaussian", "training.weighting=examples"], "beyond its clip"),
            (["privacy.mechanism=distributed_discrete_gaussian", "privacy.clip_norm="], "clip_norm is None"),
        ],
    )
    def test_noise_that_silos_add_has_keys_of_its_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                ["privacy.clipping=adaptive", "privacy.mechanism=tree"],
                'privacy.clipping is .adaptive.; expected "fixed" with another',
            ),
            (["privacy.clip_quantile=0.5"], 'clip_quantile is 0.5; expected .* with clipping = "adaptive"'),
            (
                ["privacy.clipping=adaptive", "privacy.clip_quantile=1.0"],
                "clip_quantile is 1.0; expected a fraction between 0 and 1",
            ),
            (["privacy.clip_count_stddev=3"], 'clip_count_stddev is 3.0; expected .* with clipping = "adaptive"'),
            (["privacy.clipping=adaptive", "privacy.clip_norm="], "clip_norm is None"),
        ],
    )
    def test_a_clip_that_adapts_has_keys_of_its_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                ["privacy.metrics=noised", "privacy.mechanism=tree"],
                'metrics is .noised.; expected "withheld" or "released"',
            ),
            (
                ["privacy.metrics=released", "privacy.mechanism=distributed_discrete_gaussian"],
                'metrics is .released.; expected "withheld" with "distributed_discrete_gaussian": there nothing leaves',
            ),
            (["privacy.metrics_stddev=3"], 'metrics_stddev is 3.0; expected .* with metrics = "noised"'),
        ],
    )
    def test_metrics_with_noise_have_a_key_of_their_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("training.weighting=examples", "beyond its clip"),
            ("privacy.clip_norm=", "clip_norm is None"),
            ("privacy.tolerated_silos=0", "tolerated_silos is 0"),
            ("secure_sum.bits=16", "secure_sum.bits is 16"),
        ],
    )
    def test_trees_take_what_the_gaussian_mechanism_takes(self, write, override, said):
        assert load(write(), ["privacy.mechanism=tree"]).privacy.mechanism == "tree"
        assert said in failure(write(), "privacy.mechanism=tree", override)

    def test_one_silo_may_be_curious_unless_it_is_alone(self, write, tmp_path):
        path = write()
        mechanism = "privacy.mechanism=distributed_discrete_gaussian"
        assert load(path, [mechanism]).tolerated_silos == 0
        path.write_text(MINIMAL + '[[silos]]\nname = "shop"\ninput = "x"\nformat = "csv"\n')
        assert load(path, [mechanism]).tolerated_silos == 1
        assert load(path, [mechanism, "privacy.tolerated_silos=0"]).tolerated_silos == 0
        assert load(path).tolerated_silos == 0

    def test_delta_is_a_probability(self, write):
        assert "privacy.delta is 1.5; expected a number above 0 and below 1" in failure(write(), "privacy.delta=1.5")

    def test_without_privacy_there_is_no_delta_to_insist_on(self, write):
        none = (
            "privacy.mechanism=none",
            *(f"privacy.{key}=" for key in ("noise_multiplier", "delta", "target_epsilon")),
        )
        said = failure(write(), *none, "privacy.allow_large_delta=true")
        assert 'privacy.allow_large_delta is True; expected false with mechanism = "none"' in said
