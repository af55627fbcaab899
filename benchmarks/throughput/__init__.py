"""Whole-process throughput: this job against the other ways to caption the same images.

contests.py says who meets whom and what is promised; inputs.py makes the images and lists,
models.py the larger model; each contestant is one module here and one process of its own, started
by harness.py, that prints one JSON line (outcome.py); report.py makes the table and the JSON.
"""
