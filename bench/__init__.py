"""Benchmarks: each is `python -m bench.NAME [--json FILE] [--full]`; they report and never judge.

Figures are ratios against a peer of the same run where there is one: machines are noisy.
"""
