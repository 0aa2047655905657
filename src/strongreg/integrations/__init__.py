"""Regularizers in the programs that train for their users; each module imports its host only when it is imported."""
