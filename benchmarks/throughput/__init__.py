"""Whole-process throughput: this job against other ways to caption the same images.

contests.py says who competes and what is promised; inputs.py makes the images and lists,
models.py the larger model; each contestant is one module here and runs in one process, started
by harness.py, that prints one JSON line (outcome.py); report.py makes the table and the JSON.
"""
