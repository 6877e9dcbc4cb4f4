"""Hostile files: flips, cuts, lies and bombs in every file that the package reads.

python benchmarks/hostile.py --inputs 3000 --seed 0        # all kinds of files: about ten minutes on a quiet core
python benchmarks/hostile.py --inputs 200 --kinds packed   # some kinds alone

Each input is a clean file with one change, read in a child process that may take a gigabyte and 30 seconds. What is
accepted is compared with the clean result; where it differs, with what another reader finds in the file. Faults are
tracebacks, hangs, breaches of the memory limit and results that are silently wrong; each is printed, and the exit code
is 1. `tests/hostile` holds the code, and runs a part of it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hostile"))

if __name__ == "__main__":
    from hostile_suite import main

    main()
