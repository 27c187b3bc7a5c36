"""What a trial can be judged by, untrained or after a few batches."""
