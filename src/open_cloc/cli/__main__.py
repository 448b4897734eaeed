"""`python -m open_cloc.cli`."""

import sys

from open_cloc.cli.main import main

sys.exit(main())
