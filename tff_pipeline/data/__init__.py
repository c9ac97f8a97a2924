"""What a silo's text becomes: tokens, records, snapshots."""
