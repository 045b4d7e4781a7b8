"""`python -m perceivers` is the command `perceivers`; torchrun starts its processes this way."""

import sys

from perceivers.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
