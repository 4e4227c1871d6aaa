"""Benchmarks: every case is checked for the right answer before it is timed; two things are compared in one process, interleaved,
by the minimum of many short samples. Do not trust a figure of one run on a busy machine: the ratios move by 10 %, the absolute
values by much more.
"""
