"""What people use today, to compare with."""
