"""``python -m scdisentangle``, for where the command is not on the path."""

import sys

from ._cli import main

sys.exit(main())
