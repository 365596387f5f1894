"""What is counted, sampled and timed. It is told what happens and calls no other part of the daemon."""
