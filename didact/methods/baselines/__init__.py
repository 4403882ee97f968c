"""Methods in common use today, to compare with."""
