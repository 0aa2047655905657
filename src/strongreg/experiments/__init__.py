"""Experiments on real data: data, networks, the training engine, the four-way comparison and its report."""
