"""Every sentence that a statement can say, and the tests that hold it or the assumptions it names."""

# In the sentences `#` stands for a number, UNIT for client or silo. What holds a sentence is a test by its name (whichever
# file it is in), or after "assumed:" the name of an assumption.
TABLE: dict[str, tuple[str, ...]] = {
    # -- what is promised
    "Guarantee: the trained model is (#, #)-differentially private for the client.": (
        "test_epsilon_is_dp_accountings_own",
        "test_a_sound_mechanism_stands",
        "test_no_float_is_shown_below_what_it_is_and_none_far_above",
    ),
    "Guarantee: the trained model is (#, #)-differentially private for the silo.": (
        "test_a_silo_may_be_one_client",
        "test_a_run_is_charged_for_silos",
        "test_no_client_sends_more_than_the_clip",
    ),
    "Adding one client and all its texts to the training data or removing it changes the probability of any set of outcomes by at most a factor of e^epsilon, plus delta.": (
        "test_any_client_moves_the_sum_by_at_most_the_sensitivity",
        "test_the_noise_of_every_release_is_normal_with_the_stated_variance",
        "test_a_sound_mechanism_stands",
    ),
    "Adding one silo, with all its clients and texts, to the training data or removing it changes the probability of any set of outcomes by at most a factor of e^epsilon, plus delta.": (
        "test_a_silo_may_be_one_client",
        "test_a_run_is_charged_for_silos",
    ),
    "The same holds for the models of all rounds taken together, and for whatever is computed from them alone.": (
        "test_every_round_is_in_the_populations_ledger_and_in_each_silos",
        "test_coordinates_and_rounds_are_independent",
    ),
    "Delta is not below one divided by the number of UNITs, #: publishing everything about one of them, chosen at random, would satisfy such a delta.": (
        "test_a_delta_at_or_above_one_in_the_number_of_clients_is_refused_unless_insisted_upon",
    ),
    "The configuration accepts that explicitly (privacy.allow_large_delta).": (
        "test_a_delta_at_or_above_one_in_the_number_of_clients_is_refused_unless_insisted_upon",
    ),
    'No guarantee: privacy.mechanism is "none".': ("test_a_run_without_privacy_uses_up_its_population",),
    "Epsilon is infinite; the model may reveal texts that it was trained on.": (
        "test_a_run_without_privacy_uses_up_its_population",
    ),
    # -- how
    "Mechanism: training takes # rounds.": ("test_every_round_is_in_the_populations_ledger_and_in_each_silos",),
    "In each round, every one of # UNITs takes part with probability #, independently of all others (Poisson sampling).": (
        "test_cohorts_are_binomial_and_independent",
        "test_a_cohort_follows_from_the_silos_secret_and_the_round",
    ),
    "The update of a UNIT is clipped to an L2 norm of at most #.": (
        "test_no_client_sends_more_than_the_clip",
        "test_no_client_sends_more_than_the_bound",
    ),
    "The server adds Gaussian noise to every coordinate of the sum of the updates, of standard deviation # in the unit of the updates.": (
        "test_the_noise_of_every_release_is_normal_with_the_stated_variance",
    ),
    "That is # times the sensitivity, which is the most that one UNIT can change the sum (in L2 norm, quantization included).": (
        "test_sensitivity_is_the_clip_and_what_float32_may_add",
        "test_any_client_moves_the_sum_by_at_most_the_sensitivity",
    ),
    "The update of a UNIT is clipped to an L2 norm of at most # in the first round; after that, the clip follows the # quantile of the UNITs' norms (adaptive clipping).": (
        "test_the_clip_moves_by_the_share_of_clients_within_it",
        "test_a_client_moves_both_sums_by_no_more_than_the_plan_counts",
    ),
    "The server adds Gaussian noise to every coordinate of the sum of the updates, of standard deviation # times the round's clip.": (
        "test_what_is_released_has_the_plans_noise",
    ),
    "The number of UNITs whose update was within the clip, from which the next round's clip follows, has Gaussian noise of standard deviation #.": (
        "test_what_is_released_has_the_plans_noise",
        "test_the_clip_moves_by_the_share_of_clients_within_it",
    ),
    "Each of the two sums that the released training metrics are computed from has Gaussian noise of standard deviation #.": (
        "test_one_client_adds_its_accuracy_and_itself_and_no_more",
        "test_the_noise_is_normal_and_of_each_round",
    ),
    "All noised sums of a round together are one Gaussian mechanism with noise multiplier #.": (
        "test_update_and_count_together_are_one_mechanism_with_the_plans_noise",
        "test_updates_and_metrics_together_are_one_mechanism_with_the_plans_noise",
    ),
    "The noised sum is divided by #, the expected number of UNITs in a round.": (
        "test_supplied_noise_is_what_reaches_the_weights",
        "test_rounds_nobody_is_sampled_for_are_charged_and_noised",
    ),
    "Mechanism: DP-FTRL (tree aggregation) over # rounds.": (
        "test_prefix_sums_have_a_node_for_each_bit_of_their_length",
    ),
    "A tree spans # rounds, and a UNIT takes part in at most one round of a tree: every one of # UNITs draws its round at random, independently of all others, and takes part in a tree with probability #.": (
        "test_no_client_has_two_turns_in_a_tree",
        "test_every_round_expects_the_same_cohort_and_trees_draw_anew",
    ),
    "So a UNIT takes part at most # time(s), in # tree(s) of at most # level(s).": (
        "test_a_tree_has_as_many_levels_as_a_round_has_nodes",
        "test_no_client_has_two_turns_in_a_tree",
    ),
    "Every node of a tree has Gaussian noise on every coordinate, of standard deviation #, which the server adds.": (
        "test_prefix_sums_have_a_node_for_each_bit_of_their_length",
    ),
    "That is # times the sensitivity, which is the most that one UNIT can change the sum of a node (in L2 norm, quantization included).": (
        "test_sensitivity_is_the_clip_and_what_float32_may_add",
        "test_no_client_has_two_turns_in_a_tree",
    ),
    "The sum of all updates since a tree began has the noise of at most # node(s).": (
        "test_prefix_sums_have_a_node_for_each_bit_of_their_length",
        "test_prefix_sums_share_exactly_the_nodes_they_have_in_common",
    ),
    "The noised sum of a round is divided by #, the expected number of UNITs in a round.": (
        "test_supplied_noise_is_what_reaches_the_weights",
    ),
    "It is rotated at random, and rounded to integer multiples of a step of #.": (
        "test_the_rotation_is_the_hadamard_matrix",
        "test_no_client_sends_more_than_the_bound",
    ),
    "Each of # silos adds its noise share to its sum before the sum is masked: discrete Gaussian noise on every coordinate, of standard deviation #^# steps, which is #.": (
        "test_the_sampler_has_the_discrete_gaussians_probabilities",
        "test_a_sum_that_needs_noise_is_not_masked_without",
        "test_the_noise_is_the_discrete_gaussian_of_all_shares",
    ),
    "The guarantee counts on # of these noise shares, which together are worth a standard deviation of at least # times the sensitivity, the most that one UNIT can change the sum (in L2 norm, rotation and rounding included); all of them together have one of #.": (
        "test_everywhere_the_noise_is_at_least_as_planned_and_the_sum_fits",
        "test_any_client_moves_the_integers_by_at_most_the_plans_bound",
        "test_without_a_silos_own_share_what_the_guarantee_counts_on_is_left",
    ),
    "The sum is taken modulo #^#, and divided by #, the expected number of UNITs in a round.": (
        "test_a_sum_beyond_the_ring_wraps_and_one_inside_does_not",
        "test_a_silo_with_nobody_sampled_adds_its_share_too",
    ),
    "Cost: the noise on the mean update of a round is about # times as long as the clip, the greatest length of a silo's update; the updates of # silo(s) in a round must outweigh it.": (
        "test_the_statement_speaks_of_silos_and_says_what_it_costs",
    ),
    "The noise becomes shorter with more silos in a round, a larger epsilon, fewer rounds, and fewer trained weights (its length grows with the square root of their number, which is # here).": (
        "test_the_cost_falls_as_the_statement_says",
    ),
    # -- for whom
    "Who is protected: a client is whatever the client column of a silo's data names; in data without such a column each row is a client.": (
        "test_a_row_client_is_never_a_named_client",
        "test_rows_that_are_clients_stay_themselves_when_files_grow",
        "assumed: client-column",
    ),
    "A person who is a client of two silos, or has two names in one, counts as two clients and is protected less.": (
        "test_seeds_and_silos_make_different_clients",
        "assumed: client-column",
    ),
    "The guarantee is about this run; the ledger of the population has what all runs on it spend together.": (
        "test_budgets_compose_over_runs_and_say_what_is_left",
        "assumed: custody",
    ),
    "Who is protected: each silo as a whole, against anybody who obtains the model, including the other silos; that the silo takes part in the run is public.": (
        "test_a_run_is_charged_for_silos",
        "assumed: public-counts",
    ),
    "Who is protected: each silo as a whole, against anybody who obtains the model; that the silo takes part in the run is public.": (
        "test_a_run_is_charged_for_silos",
        "assumed: public-counts",
    ),
    "Each client of a silo is protected too, but less: a single client can change its silo's update into another one, and for the client the run is (#, #)-differentially private.": (
        "test_a_client_is_protected_as_one_whose_silo_may_change_its_mind",
    ),
    "In a round for which only one silo was drawn, the sum that the server sees is the update of that silo.": (
        "test_a_single_silo_has_nothing_to_hide_in",
    ),
    # -- how it was worked out
    "Accounting: epsilon is computed from the privacy loss distributions of dp_accounting, composed over the rounds, for populations that differ in one UNIT which is added or removed.": (
        "test_epsilon_is_dp_accountings_own",
        "test_one_sampled_round_is_the_integral",
        "assumed: dp-accounting",
    ),
    "The number of UNITs, from which the sampling probability follows, is treated as public.": (
        "assumed: public-counts",
    ),
    "A round that is repeated after a crash has the same cohort and the same noise; it is the same release, and is charged once.": (
        "test_whatever_is_done_to_its_files_a_round_is_the_same_release_or_a_fresh_one",
        "test_a_round_is_charged_once_and_its_repetition_not_at_all",
    ),
    "Where a key was lost, or the round starts from something else, cohort and noise are drawn anew, and the round is charged again.": (
        "test_whatever_is_lost_or_changed_everything_is_drawn_anew",
        "test_whatever_is_done_to_its_files_a_round_is_the_same_release_or_a_fresh_one",
        "test_a_run_done_again_with_new_keys_pays_again",
    ),
    "The guarantee does not rely on sampling.": ("test_epsilon_is_the_analytic_gaussians_of_all_levels",),
    "Removing a UNIT is the same as replacing its updates by zero, because the sum is divided by a public number and every UNIT's round is drawn independently.": (
        "test_no_client_has_two_turns_in_a_tree",
        "assumed: public-counts",
    ),
    "A tree that the run did not finish is charged for the rounds that were run.": (
        "test_rounds_left_are_those_that_finish_no_level_more",
    ),
    "The sum of the silos' integers is accounted for as having the continuous Gaussian noise that it is proven to be worth; over all rounds no probability differs from that by more than a factor of # + #^-#, which epsilon and delta include.": (
        "test_a_sum_of_shares_is_a_discrete_gaussian_within_the_bound",
        "test_rounding_a_gaussian_gives_the_discrete_one_within_the_bound",
        "test_epsilon_bounds_the_truth_closely",
        "test_the_error_is_counted",
    ),
    "The noise is computed in float64 and accounted for as exactly Gaussian, and the noised sum is rounded to about a thousandth of the noise's standard deviation; docs/privacy.md estimates the error, which epsilon does not include.": (
        "test_the_rounding_step_is_a_power_of_two_about_a_thousandth_of_the_noise",
        "test_what_is_released_is_a_multiple_of_the_rounding_step",
        "assumed: float-noise",
    ),
    "All random numbers come from the stream cipher ChaCha20 under keys from the operating system's generator, and are accounted for as if they were perfectly random.": (
        "test_the_keystream_is_chacha20s",
        "test_a_fault_in_what_training_runs_is_caught",
        "assumed: perfect-randomness",
    ),
    "All random numbers come from the stream cipher ChaCha20 under keys that follow from the seed, and are accounted for as if they were perfectly random.": (
        "test_the_keystream_is_chacha20s",
        "assumed: perfect-randomness",
        "assumed: secret-seed",
    ),
    "Epsilon is rounded up to four digits, delta and counts are exact, and other numbers are shown with at most six digits.": (
        "test_every_epsilon_that_is_shown_is_at_least_what_was_worked_out",
        "test_no_float_is_shown_below_what_it_is_and_none_far_above",
        "test_delta_is_said_as_it_is",
    ),
    "Contribution bound: at most # examples of a client are kept, and each of them is used # time(s) in a round in which the UNIT takes part.": (
        "test_the_bound_does_not_depend_on_the_order_of_rows",
        "test_batches_hold_every_example_once",
        "test_a_silos_turn_goes_through_every_text_once_an_epoch",
    ),
    "The update of a silo is clipped as a whole, however many clients the silo has.": (
        "test_a_silo_may_be_one_client",
        "test_no_client_sends_more_than_the_clip",
    ),
    # -- who sees what
    'Simulation: with runtime.kind = "reference" the secure sum is replaced by TensorFlow Federated\'s sum in plaintext.': (
        "test_every_secure_slot_gives_the_oracles_integers",
    ),
    "It protects nothing; use it only on texts that you are allowed to see.": ("assumed: operator",),
    "Secure sum: there is only one silo, so the masked sum is the sum of that silo.": (
        "test_a_single_silo_has_nothing_to_hide_in",
    ),
    "The server sees it.": ("test_a_single_silo_has_nothing_to_hide_in",),
    "Secure sum: each silo masks what it sends with keys that every two of the # silos agree on.": (
        "test_all_but_one_report_look_uniform",
        "test_the_sum_of_all_reports_is_the_sum_of_all_values",
    ),
    "A server that follows the protocol learns the sums over all silos of the updates, before the noise, and of the training metrics; it learns nothing more, unless a silo tells it its own sums.": (
        "test_all_but_one_report_look_uniform",
        "test_the_sum_of_all_reports_is_the_sum_of_all_values",
        "test_a_process_that_sums_in_the_clear_is_refused",
        "assumed: honest-server",
    ),
    "A server that follows the protocol learns the sums over all silos of the updates and of the number of UNITs within the clip, before the noise, and of the training metrics; it learns nothing more, unless a silo tells it its own sums.": (
        "test_all_but_one_report_look_uniform",
        "test_the_sum_of_all_reports_is_the_sum_of_all_values",
        "test_a_process_that_sums_in_the_clear_is_refused",
        "assumed: honest-server",
    ),
    "A server that follows the protocol learns the sums over all silos of the updates, of the weights that they are multiplied by, and of the training metrics; it learns nothing more, unless a silo tells it its own sums.": (
        "test_all_but_one_report_look_uniform",
        "test_the_sum_of_all_reports_is_the_sum_of_all_values",
        "test_a_process_that_sums_in_the_clear_is_refused",
        "assumed: honest-server",
    ),
    "The server is trusted to add the noise, and the silos are trusted to sample and clip as stated.": (
        "assumed: honest-server",
        "assumed: honest-silo",
    ),
    "The server is trusted to add the noise, and the silos are trusted to draw their clients' rounds and to clip as stated.": (
        "assumed: honest-server",
        "assumed: honest-silo",
    ),
    "The guarantee holds against anybody who obtains the models; it does not hold against the server, which sees every sum before the noise is added.": (
        "test_every_secure_slot_gives_the_oracles_integers",
        "assumed: honest-server",
    ),
    "Secure sum: there is only one silo.": ("test_a_single_silo_has_nothing_to_hide_in",),
    "What it sends to the server has the noise in it already, so nobody outside the silo sees a sum of updates without noise.": (
        "test_a_sum_that_needs_noise_is_not_masked_without",
    ),
    "Secure sum: each silo masks what it sends, which has its noise share in it, with keys that every two of the # silos agree on.": (
        "test_a_sum_that_needs_noise_is_not_masked_without",
        "test_all_but_one_report_look_uniform",
    ),
    "A server that follows the protocol learns the noised sum over all silos, and never a sum of updates without noise.": (
        "test_a_sum_that_needs_noise_is_not_masked_without",
        "test_a_sum_in_a_smaller_ring_tells_nothing_of_a_larger_one",
        "test_a_sum_beside_the_noised_one_is_refused",
        "assumed: honest-server",
    ),
    "Nothing else leaves a silo in a round: no loss, no accuracy and no number of clients; a silo sends as much when none of its clients was drawn.": (
        "test_a_report_is_the_noised_sum_alone_whatever_the_cohort",
        "test_a_sum_beside_the_noised_one_is_refused",
    ),
    "Nothing else leaves a silo in a round: no loss, no accuracy and no number of clients; a silo sends as much when it was not drawn.": (
        "test_a_report_is_the_noised_sum_alone_whatever_the_cohort",
        "test_a_sum_beside_the_noised_one_is_refused",
    ),
    "How long a silo works is not hidden: the time grows with the cohort, and whoever measures it (times in logs and files are enough) may learn how large the cohort was, which the guarantee assumes nobody does.": (
        "assumed: timing",
    ),
    "The guarantee holds against the server.": (
        "test_a_sound_mechanism_stands",
        "test_the_noise_is_the_discrete_gaussian_of_all_shares",
    ),
    "For the clients of the other silos, the guarantee holds against the server together with any one of the silos, which may tell the server its noise share or leave it out.": (
        "test_without_a_silos_own_share_what_the_guarantee_counts_on_is_left",
        "test_a_sound_mechanism_stands",
    ),
    "For the clients of the other silos, the guarantee holds against the server together with any # of the silos, which may tell the server their noise shares or leave them out.": (
        "test_everywhere_the_noise_is_at_least_as_planned_and_the_sum_fits",
        "test_a_fault_in_what_training_runs_is_caught",
    ),
    "For the other silos, the guarantee holds against the server together with any one of the silos, which may tell the server its noise share or leave it out.": (
        "test_without_a_silos_own_share_what_the_guarantee_counts_on_is_left",
    ),
    "For the other silos, the guarantee holds against the server together with any # of the silos, which may tell the server their noise shares or leave them out.": (
        "test_everywhere_the_noise_is_at_least_as_planned_and_the_sum_fits",
    ),
    "It does not hold against a silo, which sees the model of every round and can subtract its own noise share: privacy.tolerated_silos = # covers that.": (
        "test_without_a_silos_own_share_what_the_guarantee_counts_on_is_left",
    ),
    "Each silo trusts # of the # silos to add their noise shares as stated, and all of them to sample and clip as stated.": (
        "test_a_fault_in_what_training_runs_is_caught",
        "assumed: honest-silo",
    ),
    "The silo need not trust anybody; its clients trust it to sample, clip and add the noise as stated.": (
        "assumed: honest-silo",
    ),
    "Processes: this version runs the server and all silos in one process, so anybody who can read its memory or the silos' folders sees everything.": (
        "assumed: one-process",
        "assumed: operator",
    ),
    "What this statement says about the server is about what the silos send to it.": ("assumed: one-process",),
    "Seed: pipeline.seed is set, so anybody who knows it can recompute the sampling and the noise.": (
        "test_runs_of_one_seed_share_no_noise_unless_they_are_the_same",
    ),
    "The guarantee holds only against those who do not know it.": ("assumed: secret-seed",),
    # -- metrics
    "Training metrics: there are none, in no file and no log.": ("test_a_run_tells_nobody_its_cohorts",),
    "An update that is not finite counts as zero, and nobody is told.": (
        "test_an_update_that_is_not_finite_counts_as_zero_and_nobody_is_told",
    ),
    "Training metrics: the loss, the accuracy and the cohort size of every round are sums without noise, which no guarantee covers.": (
        "test_three_rounds_end_in_the_oracles_weights",
        "test_the_operator_has_exact_metrics_and_whoever_reads_the_log",
    ),
    "The operator of the server has them: in memory, in the run's folder (rounds.csv, states and TensorBoard), and on standard error after every round, where anybody who reads its log sees them.": (
        "test_the_operator_has_exact_metrics_and_whoever_reads_the_log",
        "assumed: operator",
    ),
    "The guarantee does not hold against anybody who has the metrics of all rounds.": (
        "test_the_operator_has_exact_metrics_and_whoever_reads_the_log",
        "assumed: operator",
    ),
    "A run that stops because no update of a round was finite reveals as much.": (
        "test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state",
    ),
    "The metrics are withheld: no exported version contains them.": (
        "test_what_is_withheld_is_in_no_exported_file",
        "test_training_metrics_leave_only_where_they_are_released",
    ),
    "The metrics of the last round are released with every exported version, and the guarantee does not cover what they reveal.": (
        "test_training_metrics_leave_only_where_they_are_released",
    ),
    "What is released of a round is the mean of the UNITs' own accuracies, computed from two sums with Gaussian noise of standard deviation #, which epsilon covers.": (
        "test_one_client_adds_its_accuracy_and_itself_and_no_more",
        "test_they_are_one_number_of_the_noise_and_the_sums",
        "test_updates_and_metrics_together_are_one_mechanism_with_the_plans_noise",
    ),
    # -- what is not covered
    "Not covered: the choice of hyperparameters; what the public checkpoint was trained on; the fact that a run stops with an error.": (
        "assumed: hyperparameters",
        "assumed: public-checkpoint",
        "assumed: operator",
    ),
    "The evaluation on held-out clients, who took no part in training, releases information about those clients, and no guarantee covers it.": (
        "test_a_client_in_the_files_of_several_splits_stays_with_what_is_held_out",
        "assumed: held-out",
    ),
    "The evaluation on held-out clients, who took no part in training, releases information about those clients and their silos, and no guarantee covers it.": (
        "test_a_client_in_the_files_of_several_splits_stays_with_what_is_held_out",
        "assumed: held-out",
    ),
    "An evaluation on training clients (`evaluate --split train`) releases information about them that no guarantee covers; it is printed for the person who asks for it, and is kept in no file of the run and in no exported version.": (
        "test_scores_on_training_clients_come_with_a_warning_and_are_kept_nowhere",
        "test_an_evaluation_of_another_split_is_not_exported",
    ),
    "Label names, the tokenizer, and the numbers of clients and examples of each silo are treated as public; manifests and exported versions contain them.": (
        "assumed: public-names",
        "assumed: public-counts",
    ),
}
