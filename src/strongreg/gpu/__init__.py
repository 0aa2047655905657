"""A whole step on a GPU in a few launches, where all is as it mostly is."""
