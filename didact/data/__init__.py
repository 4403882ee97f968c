"""Files to records, records to token rows, rows to batches; a batch is a pure function of (seed, step)."""
