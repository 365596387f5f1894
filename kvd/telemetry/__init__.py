"""What is counted, sampled and timed. Other parts of the daemon report to it; it calls none of them."""
