"""How fast kvd is, as ratios to other servers and floors measured in the same run. Start with README.md."""
