"""Stage 1: a silo's raw text becomes a snapshot. The only place that imports Apache Beam; importing it starts nothing."""
