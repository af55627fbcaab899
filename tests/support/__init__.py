"""What tests share: fakes, factories, clusters, and ways to run the job.

Processes that tests start import the project and these helpers from this checkout too.
"""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
CRELLO_LIKE = TESTS / "data" / "crello_like"
"""Real shapes in the job's input format; `expected.json` has the outcome of each."""

os.environ["PYTHONPATH"] = os.pathsep.join(
    [os.fspath(TESTS.parent), os.fspath(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
