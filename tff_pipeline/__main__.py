"""`python -m tff_pipeline`: the same as the `tff-pipeline` command."""

import sys

from tff_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
