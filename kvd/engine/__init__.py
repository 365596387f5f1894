"""What happens around a commit, in which order, and what follows from it; start at ``database.py``."""
