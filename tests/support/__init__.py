"""What tests share: fakes, factories, clusters, and ways to run the job.

Processes that tests start import the project and these helpers from this checkout too.
"""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]

os.environ["PYTHONPATH"] = os.pathsep.join(
    [os.fspath(TESTS.parent), os.fspath(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
