"""From files to records, from records to token rows, from rows to batches that are pure in (seed, step)."""
