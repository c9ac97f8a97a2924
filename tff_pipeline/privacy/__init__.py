"""The guarantee: one plan from the configuration, its accounting, its randomness, its ledger, its sentences."""
